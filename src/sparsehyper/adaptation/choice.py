"""The choice among ways to adapt, from their outputs on samples held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehyper.adaptation.held_out import HeldOut
from sparsehyper.adaptation.judge import fitted_temperature, stacking_weights
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.adaptation.usual import Usual

_PRIOR_COUNT = 3.0  # samples that the prior on weights is worth
_LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Choice:
    """Weighted ways, and how they did.

    Attributes:
        weights: weights of the chosen ways, the largest first.
        temperatures: of every way.
        losses: mean loss of every way on samples held out; what is usual, where there were none.
        loss: mean loss of the weighted average.
        right: whether each sample held out was classified correctly, ``[judged]``.
    """

    weights: dict[str, float]
    temperatures: dict[str, float]
    losses: dict[str, float]
    loss: float
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
    weights = stacking_weights(matrix, prior)
    kept = (weights >= min(_LEAST_WEIGHT, float(weights.max()))).nonzero()[:, 0]
    weights = stacking_weights(matrix[kept], prior[kept])
    mixed = (matrix[kept] + weights.log()[:, None]).logsumexp(0)
    order = weights.argsort(descending=True)
    chosen, weights = kept[order].tolist(), weights[order]
    chosen_weights = {names[i]: float(w) for i, w in zip(chosen, weights, strict=True)}
    return Choice(
        chosen_weights,
        temperatures,
        losses,
        -float(mixed.mean()),
        right_of(held, task, chosen_weights, temperatures),
    )


def right_of(
    held: HeldOut,
    task: TaskSamples,
    weights: Mapping[str, float],
    temperatures: Mapping[str, float],
) -> Tensor:
    """Whether the weighted average classifies samples held out correctly, ``[judged]``."""
    judged = torch.stack([held.judged[name] for name in weights]).all(0)
    logs = [
        (held.outputs[name][judged] / temperatures[name]).log_softmax(1) + math.log(weight)
        for name, weight in weights.items()
    ]
    return torch.stack(logs).logsumexp(0).argmax(1) == task.y[judged]


def _best(held: HeldOut, task: TaskSamples) -> Choice:
    losses = {
        name: float(task.losses(outputs[held.out], task.y[held.out]).mean())
        for name, outputs in held.outputs.items()
    }
    best = min(losses, key=losses.__getitem__)
    none = torch.zeros(0, dtype=torch.bool)
    return Choice({best: 1.0}, dict.fromkeys(losses, 1.0), losses, losses[best], none)
