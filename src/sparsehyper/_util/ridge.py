"""Ridge regression in closed form, and its leave-one-out predictions.

    W, b = argmin  Σ_i |y_i - W φ_i / √F - b|² + penalty · |W|²

The bias is not penalised. With the matrix H that maps targets to fitted values, the prediction for
sample i from all others is (ŷ_i - H_ii y_i) / (1 - H_ii), without a second fit. Everything is
differentiable in the features, the targets and the penalty.

Source: leave-one-out predictions as in G. Golub et al., "Generalized cross-validation as a method
for choosing a good ridge parameter" (1979); a head in closed form to train features for, as in
L. Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (ICLR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def leave_one_out(features: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """Predictions ``[n, C]`` of each sample by the layer that is fitted to all others.

    Args:
        features: ``[n, F]``, at least 2 samples.
        targets, penalty: as for `solve_ridge`.
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
    return (y_mean + (fitted - own * y) / (1 - own)).to(features.dtype)


def _centred(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred features, divided by √F, and their mean; centred targets, and their mean.

    In float64, as float32 loses the small eigenvalues of the Gram matrix.
    """
    double = features.dtype if features.device.type == "mps" else torch.float64
    phi, y = features.to(double), targets.to(double)
    mean, y_mean = phi.mean(0), y.mean(0)
    return (phi - mean) / phi.shape[1] ** 0.5, mean, y - y_mean, y_mean
