"""The choice among ways to adapt, from their outputs on samples held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehyper.adaptation.held_out import HeldOut
from sparsehyper.adaptation.judge import fitted_temperature, fold_numbers, stacking_weights
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.adaptation.usual import Usual

_PRIOR_COUNT = 3.0  # samples that the prior on weights is worth
_LEAST_WEIGHT = 0.05
_PARTS = 10  # of the samples, for each of which ways are weighted without it
_MANY = 1000  # samples, of which one does not sway the choice


@dataclass(frozen=True)
class Choice:
    """Weighted ways, and how they did.

    Attributes:
        weights: weights of the chosen ways, the largest first.
        temperatures: of every way.
        losses: mean loss of every way on samples held out; what is usual, where there were none.
        loss: mean loss of the weighted average.
        judged: whether a sample held out can judge the choice, ``[n]``.
        right: whether each of these was classified correctly, ``[judged]``, by ways that were
            weighted without it.
    """

    weights: dict[str, float]
    temperatures: dict[str, float]
    losses: dict[str, float]
    loss: float
    judged: Tensor
    right: Tensor


def choose(held: HeldOut, task: TaskSamples, usual: Mapping[str, Usual]) -> Choice:
    """Weight the ways so that labels held out are likeliest; without classes, choose the best."""
    if not task.n_classes:
        return _best(held, task)
    names, guess, y = list(held.outputs), math.log(task.n_classes), task.y
    temperatures, losses, scores = {}, {}, []
    for name in names:
        judged, expected = held.judged[name], usual[name]
        logits = held.outputs[name]
        temperature = fitted_temperature(logits[judged], y[judged], expected.temperature)
        predicted = (logits / temperature).log_softmax(1)
        score = predicted.gather(1, y[:, None])[:, 0]
        score = torch.where(judged, score, -expected.loss * guess)
        temperatures[name], losses[name] = temperature, -float(score[held.out].mean())
        scores.append(score[held.out])
    prior = torch.tensor([usual[name].weight for name in names]).to(scores[0])
    prior *= _PRIOR_COUNT / prior.sum()
    matrix = torch.stack(scores)
    weights = _weights(matrix, prior)
    mixed = (matrix + weights.log()[:, None]).logsumexp(0)
    judged, right = torch.zeros_like(held.out), torch.zeros_like(held.out)
    for part in _parts(held, task):
        others = ~part[held.out]
        by_others = _weights(matrix[:, others], prior) if others.any() else weights
        of_part, right_in_part = right_of(held, task, _chosen(names, by_others), temperatures, part)
        judged |= of_part
        right |= right_in_part
    return Choice(
        _chosen(names, weights), temperatures, losses, -float(mixed.mean()), judged, right[judged]
    )


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


def _weights(matrix: Tensor, prior: Tensor) -> Tensor:
    """Weights of ways by log-probabilities ``[ways, n]``, 0 for those that do not matter."""
    weights = stacking_weights(matrix, prior)
    kept = weights >= min(_LEAST_WEIGHT, float(weights.max()))
    found = torch.zeros_like(weights)
    found[kept] = stacking_weights(matrix[kept], prior[kept])
    return found


def _chosen(names: Sequence[str], weights: Tensor) -> dict[str, float]:
    """The weights above 0, the largest first."""
    order = weights.argsort(descending=True)
    return {names[i]: float(weights[i]) for i in order if weights[i] > 0}


def _parts(held: HeldOut, task: TaskSamples) -> list[Tensor]:
    """Parts of the samples held out, ``[n]`` each, which the weights for them are chosen without.

    One of many samples has no say in the choice, and those are one part.
    """
    distinct = len(task.first_equal[held.out].unique())
    if not 1 < distinct <= _MANY:
        return [held.out]
    numbers = fold_numbers(task.y, task.first_equal, min(distinct, _PARTS))
    parts = [held.out & (numbers == part) for part in range(_PARTS)]
    return [part for part in parts if part.any()]


def _best(held: HeldOut, task: TaskSamples) -> Choice:
    losses = {
        name: float(task.losses(outputs[held.out], task.y[held.out]).mean())
        for name, outputs in held.outputs.items()
    }
    best = min(losses, key=losses.__getitem__)
    none = torch.zeros_like(held.out)
    temperatures = dict.fromkeys(losses, 1.0)
    return Choice({best: 1.0}, temperatures, losses, losses[best], none, none[none])
