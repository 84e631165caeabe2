"""Ridge regression in closed form, and its leave-one-out predictions.

    W, b = argmin  Σ_i |y_i - W φ_i / √F - b|² + penalty · |W|²

The bias is not penalised. With the matrix H that maps targets to fitted values, the prediction for
sample i from all others is (ŷ_i - H_ii y_i) / (1 - H_ii), without a second fit. From all but i and
its equals, k samples whose residuals sum to r, it is ŷ_i - H_ii r / (1 - k H_ii). Everything is
differentiable in the features, the targets and the penalty.

Where many tasks share the meaning of their targets, a layer has a prior N(mean, covariance), which
`fit_prior` finds from the tasks themselves, and `solve_under_prior` is the posterior mean.

Source: leave-one-out predictions as in G. Golub et al., "Generalized cross-validation as a method
for choosing a good ridge parameter" (1979); a head in closed form to train features for, as in
L. Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (ICLR 2019). Priors as
in J. Harrison et al., "Meta-learning priors for efficient online Bayesian regression" (WAFR 2018),
found by expectation maximisation, as in N. Laird and J. Ware, "Random-effects models for
longitudinal data" (1982). Deviation: the covariance is shrunk towards its own diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDS = 40  # of expectation maximisation
_PSEUDO_TASKS = 5.0  # tasks that the covariance's own diagonal counts for
_SMALL = 1e-8


class LayerPrior(NamedTuple):
    """The normal prior of a linear layer, output by output, of features divided by √F and a one.

    Attributes:
        mean: ``[C, F + 1]``.
        covariance: ``[C, F + 1, F + 1]``.
        noise: variance of targets around their fitted values, ``[C]``.
    """

    mean: Tensor
    covariance: Tensor
    noise: Tensor


def solve_ridge(
    features: Tensor, targets: Tensor, penalty: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The linear layer that fits targets best.

    Args:
        features: ``[n, F]``.
        targets: ``[n, C]``.
        penalty: strength, above 0; features are divided by √F first, so that it does not depend on
            their number.

    Returns:
        Weight ``[C, F]``, for features as they are given, and bias ``[C]``.
    """
    centred, mean, y, y_mean = _centred(features, targets)
    n, width = centred.shape
    if n <= width:
        kernel = centred @ centred.T + penalty * torch.eye(n).to(centred)
        weight = torch.linalg.solve(kernel, y).T @ centred
    else:
        gram = centred.T @ centred + penalty * torch.eye(width).to(centred)
        weight = torch.linalg.solve(gram, centred.T @ y).T
    weight = weight / width**0.5
    bias = y_mean - weight @ mean
    return weight.to(features.dtype), bias.to(features.dtype)


def leave_one_out(
    features: Tensor,
    targets: Tensor,
    penalty: Tensor | float,
    first_equal: Tensor | None = None,
) -> Tensor:
    """Predictions ``[n, C]`` of each sample by the layer that is fitted to all others.

    Args:
        features: ``[n, F]``, at least 2 samples.
        targets, penalty: as for `solve_ridge`.
        first_equal: as `Inputs.first_equal`, to leave out the equals of a sample too, at least 2
            different samples; None if all differ.
    """
    centred, _, y, y_mean = _centred(features, targets)
    n, width = centred.shape
    if n <= width:
        kernel = centred @ centred.T
        hat = torch.linalg.solve(kernel + penalty * torch.eye(n).to(centred), kernel)
        fitted, own = hat.T @ y, hat.diagonal()
    else:
        gram = centred.T @ centred + penalty * torch.eye(width).to(centred)
        half = torch.linalg.solve(gram, centred.T)
        fitted, own = centred @ (half @ y), (centred * half.T).sum(1)
    own = (own + 1 / n)[:, None]
    if first_equal is not None:
        return (y_mean + fitted - _by_equals(y - fitted, own, first_equal)).to(features.dtype)
    return (y_mean + (fitted - own * y) / (1 - own)).to(features.dtype)


def fit_prior(tasks: Sequence[tuple[Tensor, Tensor]]) -> LayerPrior:
    """The prior under which the targets of all tasks are likeliest, whatever their units.

    Args:
        tasks: features ``[n, F]`` and targets ``[n, C]`` of each task, at least 2 tasks.
    """
    size = torch.cat([features for features, _ in tasks]).double().square().mean().sqrt()
    targets = torch.cat([y for _, y in tasks]).double()
    centre, spread = targets.mean(0), targets.std(0, correction=0)
    size, spread = (torch.where(unit > 0, unit, 1) for unit in (size, spread))
    found = _fit_standard([(phi / size, (y - centre) / spread) for phi, y in tasks])
    # From a layer of the standardised numbers to one of the numbers as they are.
    units = (spread[:, None] / size).repeat(1, found.mean.shape[1])
    units[:, -1] = spread
    mean = units * found.mean
    mean[:, -1] += centre
    return LayerPrior(
        mean, units[:, :, None] * found.covariance * units[:, None], spread.square() * found.noise
    )


def _fit_standard(tasks: Sequence[tuple[Tensor, Tensor]]) -> LayerPrior:
    """`fit_prior` for features and targets of about unit size, with targets of mean 0."""
    pairs = [(_with_one(features), y.double()) for features, y in tasks]
    grams = torch.stack([phi.T @ phi for phi, _ in pairs])
    moments = torch.stack([y.T @ phi for phi, y in pairs])
    squares = torch.stack([y.square().sum(0) for _, y in pairs])
    total, count, width = sum(len(y) for _, y in pairs), len(pairs), grams.shape[1]
    eye = torch.eye(width).to(grams)
    found = []
    for output in range(moments.shape[1]):
        moment, square = moments[:, output], squares[:, output]
        mean, covariance = grams.new_zeros(width), eye
        noise = (square.sum() / total).clamp(min=_SMALL)
        for _ in range(_ROUNDS):
            precision = torch.linalg.inv(covariance + _SMALL * eye)
            posterior = torch.linalg.inv(precision + grams / noise)
            weights = torch.einsum("tij,tj->ti", posterior, moment / noise + precision @ mean)
            mean = weights.mean(0)
            spread = posterior.sum(0) + (weights - mean).T @ (weights - mean)
            diagonal = (spread.diagonal() / count).diag()
            covariance = (spread + _PSEUDO_TASKS * diagonal) / (count + _PSEUDO_TASKS)
            fitted = torch.einsum("ti,tij,tj->t", weights, grams, weights)
            errors = square - 2 * (weights * moment).sum(1) + fitted
            noise = ((errors.sum() + (posterior * grams).sum()) / total).clamp(min=_SMALL)
        found.append((mean, covariance, noise))
    return LayerPrior(*(torch.stack(column) for column in zip(*found, strict=True)))


def solve_under_prior(
    features: Tensor, targets: Tensor, prior: LayerPrior
) -> tuple[Tensor, Tensor]:
    """The posterior mean of a layer, given its prior; arguments and result as `solve_ridge`."""
    phi, width, mean = _with_one(features), features.shape[1], prior.mean.double()
    moment = phi.T @ (targets.double() - phi @ mean.T)
    layer = mean + _posterior(phi, prior, moment.T[..., None])[..., 0]
    weight, bias = layer[:, :width] / width**0.5, layer[:, width]
    return weight.to(features.dtype), bias.to(features.dtype)


def leave_one_out_under_prior(
    features: Tensor, targets: Tensor, prior: LayerPrior, first_equal: Tensor | None = None
) -> Tensor:
    """Predictions ``[n, C]`` of each sample by the layer of all others under the prior.

    Args:
        features, targets, prior: as for `solve_under_prior`.
        first_equal: as for `leave_one_out`.
    """
    phi, y = _with_one(features), targets.double()
    expected = phi @ prior.mean.double().T
    half = _posterior(phi, prior, phi.T)  # [C, F + 1, n]
    fitted = expected + phi @ torch.einsum("cfm,mc->fc", half, y - expected)
    own = torch.einsum("nf,cfn->nc", phi, half)
    if first_equal is None:
        first_equal = torch.arange(len(y), device=y.device)
    return (fitted - _by_equals(y - fitted, own, first_equal)).to(features.dtype)


def _posterior(phi: Tensor, prior: LayerPrior, moment: Tensor) -> Tensor:
    """What moments ``[…, F + 1, m]`` add to the mean of the prior, ``[C, F + 1, m]``."""
    gain = prior.covariance.double() / prior.noise.double()[:, None, None]
    eye = torch.eye(phi.shape[1]).to(phi)
    return torch.linalg.solve(eye + gain @ (phi.T @ phi), gain @ moment)


def _by_equals(errors: Tensor, own: Tensor, first_equal: Tensor) -> Tensor:
    """What each fitted sample owes to itself and its equals.

    Args:
        errors: targets less what was fitted, ``[n, C]``.
        own: change of what is fitted to a sample by its own target, ``[n, C]`` or ``[n, 1]``.
        first_equal: as for `leave_one_out`.
    """
    rest = torch.zeros_like(errors).index_add(0, first_equal, errors)[first_equal]
    count = first_equal.bincount(minlength=len(errors))[first_equal][:, None]
    return own * rest / (1 - count * own)


def _with_one(features: Tensor) -> Tensor:
    """Features divided by √F, and a one, ``[n, F + 1]`` in float64."""
    scaled = features.double() / features.shape[1] ** 0.5
    return torch.cat([scaled, scaled.new_ones(len(scaled), 1)], 1)


def _centred(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred features, divided by √F, and their mean; centred targets, and their mean.

    In float64, as float32 loses the small eigenvalues of the Gram matrix.
    """
    double = features.dtype if features.device.type == "mps" else torch.float64
    phi, y = features.to(double), targets.to(double)
    mean, y_mean = phi.mean(0), y.mean(0)
    return (phi - mean) / phi.shape[1] ** 0.5, mean, y - y_mean, y_mean
