"""The choice among ways to adapt, from their outputs on samples held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehyper.adaptation.held_out import HeldOut
from sparsehyper.adaptation.judge import fitted_temperature, fold_numbers, stacking_weights
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.adaptation.usual import Usual

_PRIOR_COUNT = 3.0  # samples that the prior on weights is worth
_LEAST_WEIGHT = 0.05
_PARTS = 5  # of the samples, for each of which ways are weighted without it
_MANY = 500  # samples, of which one does not sway the choice


@dataclass(frozen=True)
class Weighted:
    """Ways weighted by some of the samples held out.

    Attributes:
        weights: weights of the chosen ways, the largest first.
        temperatures: of every way.
        losses: mean loss of every way on the samples; what is usual, for one that none of them
            judges.
        loss: mean loss of the weighted average.
    """

    weights: dict[str, float]
    temperatures: dict[str, float]
    losses: dict[str, float]
    loss: float


@dataclass(frozen=True)
class Choice(Weighted):
    """Ways weighted by all samples held out, and how such a choice does on samples without a say.

    Attributes:
        judged: whether a sample held out can judge it, ``[n]``.
        right: whether each of these was classified correctly, ``[judged]``, by ways that were
            weighted without it, or, of many samples, by those chosen.
    """

    judged: Tensor
    right: Tensor


def choose(held: HeldOut, task: TaskSamples, usual: Mapping[str, Usual]) -> Choice:
    """Weight the ways so that labels held out are likeliest; without classes, choose the best."""
    if not task.n_classes:
        return _best(held, task)
    found = _weighted(held, task, usual, held.out)
    judged, right = torch.zeros_like(held.out), torch.zeros_like(held.out)
    for part, others in _parts(held, task):
        by = _weighted(held, task, usual, others)
        of_part, right_in_part = right_of(held, task, by.weights, by.temperatures, part)
        judged |= of_part
        right |= right_in_part
    return Choice(**vars(found), judged=judged, right=right[judged])


def _weighted(held: HeldOut, task: TaskSamples, usual: Mapping[str, Usual], by: Tensor) -> Weighted:
    """The weights and temperatures that make some of the labels likeliest.

    Args:
        held: the outputs on samples held out.
        task: their labels.
        usual: what ways are usually worth.
        by: whether a label counts, ``[n]``.
    """
    names, guess, y = list(held.outputs), math.log(task.n_classes), task.y[by]
    temperatures, losses, scores = {}, {}, []
    for name in names:
        judged, expected, logits = held.judged[name][by], usual[name], held.outputs[name][by]
        temperature = fitted_temperature(logits[judged], y[judged], expected.temperature)
        predicted = (logits / temperature).log_softmax(1)
        score = predicted.gather(1, y[:, None])[:, 0]
        scores.append(torch.where(judged, score, -expected.loss * guess))
        temperatures[name], losses[name] = temperature, -float(scores[-1].mean())
    prior = torch.tensor([usual[name].weight for name in names]).to(scores[0])
    prior *= _PRIOR_COUNT / prior.sum()
    matrix = torch.stack(scores)
    weights = stacking_weights(matrix, prior)
    kept = (weights >= min(_LEAST_WEIGHT, float(weights.max()))).nonzero()[:, 0]
    weights = stacking_weights(matrix[kept], prior[kept])
    mixed = (matrix[kept] + weights.log()[:, None]).logsumexp(0)
    order = weights.argsort(descending=True)
    chosen = {names[kept[i]]: float(weights[i]) for i in order}
    return Weighted(chosen, temperatures, losses, -float(mixed.mean()))


def right_of(
    held: HeldOut,
    task: TaskSamples,
    weights: Mapping[str, float],
    temperatures: Mapping[str, float],
    part: Tensor,
) -> tuple[Tensor, Tensor]:
    """Which samples of a part judge a weighted average, and which of them it classifies rightly.

    Args:
        held: the outputs on samples held out.
        task: their labels.
        weights: of the ways that are averaged.
        temperatures: of these.
        part: whether a sample is in the part, ``[n]``.

    Returns:
        Two masks of the samples, ``[n]``.
    """
    judged = torch.stack([part, *(held.judged[name] for name in weights)]).all(0)
    logs = [
        (held.outputs[name] / temperatures[name]).log_softmax(1) + math.log(weight)
        for name, weight in weights.items()
    ]
    return judged, judged & (torch.stack(logs).logsumexp(0).argmax(1) == task.y)


def _parts(held: HeldOut, task: TaskSamples) -> list[tuple[Tensor, Tensor]]:
    """Parts of the samples held out, and the samples ``[n]`` that choose the ways for each.

    These are all samples held out that are not in the part. Of many, all choose for all, as a
    single one does not sway the choice.
    """
    places = held.out.nonzero()[:, 0]
    distinct = len(task.first_equal[places].unique())
    if distinct > _MANY:
        return [(held.out, held.out)]
    some, parts = task.some(places), []
    numbers = fold_numbers(some.y, some.first_equal, min(distinct, _PARTS))
    for number in numbers.unique():
        part = torch.zeros_like(held.out)
        part[places] = numbers == number
        parts.append((part, held.out & ~part))
    return parts


def _best(held: HeldOut, task: TaskSamples) -> Choice:
    losses = {
        name: float(task.losses(outputs[held.out], task.y[held.out]).mean())
        for name, outputs in held.outputs.items()
    }
    best = min(losses, key=losses.__getitem__)
    none = torch.zeros_like(held.out)
    temperatures = dict.fromkeys(losses, 1.0)
    return Choice({best: 1.0}, temperatures, losses, losses[best], none, none[none])
