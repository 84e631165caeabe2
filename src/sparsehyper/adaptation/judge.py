"""Judging ways to adapt by examples held out: temperatures, weights and expected accuracy.

A way is judged by the log-probability that it gives to the label of each example that it was not
fitted to. Several ways are combined by the weights w that make the labels likeliest,

    max_w  Σ_i log Σ_m w_m p_mi + Σ_m α_m log w_m        w ≥ 0, Σ w = 1,

where α is a Dirichlet prior, whose effect fades with the number of examples.

Source: stacking, as in D. Wolpert, "Stacked generalization" (1992), here of probabilities; one
temperature for each classifier, C. Guo et al., "On calibration of modern neural networks" (ICML
2017); intervals after E. Wilson, "Probable inference, the law of succession, and statistical
inference" (1927).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_TEMPERATURES = torch.logspace(-1, 1.2, 34)
_TEMPERATURE_SPREAD = 0.7  # standard deviation of the prior on the logarithm
_ROUNDS = 200
_Z = 1.959964  # of a normal distribution, for 95%


def fold_numbers(y: Tensor, first_equal: Tensor, folds: int) -> Tensor:
    """The fold of each sample, so that every class is spread evenly over the folds.

    Equal samples are in one fold: a model would know those held out from those it is fitted to.

    Args:
        y: class numbers ``[n]``, in any order.
        first_equal: as `Inputs.first_equal`.
        folds: number of folds.
    """
    distinct = first_equal.unique()
    place = torch.empty_like(y)
    place[distinct[y[distinct].argsort(stable=True)]] = torch.arange(len(distinct), device=y.device)
    return place[first_equal] % folds


def fitted_temperature(logits: Tensor, y: Tensor, usual: float = 1.0) -> float:
    """The temperature that makes labels likeliest, under a prior around a ``usual`` one.

    Args:
        logits: ``[n, classes]``.
        y: class numbers ``[n]``.
        usual: centre of the prior.
    """
    tried = usual * _TEMPERATURES.to(logits)
    losses = torch.stack([F.cross_entropy(logits / t, y, reduction="sum") for t in tried])
    prior = (tried / usual).log().square() / (2 * _TEMPERATURE_SPREAD**2)
    return float(tried[(losses + prior).argmin()])


def stacking_weights(scores: Tensor, prior: Tensor) -> Tensor:
    """Weights of ways ``[ways]``.

    Args:
        scores: log-probabilities of the labels ``[ways, n]``.
        prior: pseudo-counts of the Dirichlet prior ``[ways]``, above 0.
    """
    weights = prior / prior.sum()
    for _ in range(_ROUNDS):
        shares = (scores + weights.log()[:, None]).softmax(0)
        weights = shares.sum(1) + prior
        weights = weights / weights.sum()
    return weights


def wilson(right: float, count: float) -> tuple[float, float]:
    """95% interval of a share, of which ``right`` of ``count`` were observed.

    >>> [round(limit, 2) for limit in wilson(9, 10)]
    [0.6, 0.98]
    """
    share, z = right / count, _Z**2 / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)
