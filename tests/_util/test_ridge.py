"""Ridge regression in closed form against gradients and against refitting."""

from __future__ import annotations

import pytest
import torch

from sparsehyper._util.ridge import leave_one_out, solve_ridge

SIZES = [(12, 30), (40, 7), (2, 5), (3, 1)]


def _samples(n: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(n)
    features = torch.randn(n, width, dtype=torch.float64, generator=rng) + 3
    return features, torch.randn(n, 3, dtype=torch.float64, generator=rng) - 1


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_the_solution_is_the_minimum(n: int, width: int) -> None:
    features, targets = _samples(n, width)
    weight, bias = solve_ridge(features, targets, 0.3)
    scaled = (weight * width**0.5).requires_grad_()
    bias.requires_grad_()
    fitted = features / width**0.5 @ scaled.T + bias
    loss = (targets - fitted).square().sum() + 0.3 * scaled.square().sum()
    for gradient in torch.autograd.grad(loss, [scaled, bias]):
        assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_left_out_predictions_equal_those_of_a_second_fit(n: int, width: int) -> None:
    features, targets = _samples(n, width)
    found = leave_one_out(features, targets, 0.3)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        weight, bias = solve_ridge(features[others], targets[others], 0.3)
        torch.testing.assert_close(found[i], features[i] @ weight.T + bias)


@pytest.mark.parametrize(("n", "width"), [(6, 9), (9, 4)])
def test_left_out_predictions_have_exact_gradients(n: int, width: int) -> None:
    features, targets = _samples(n, width)
    penalty = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    features.requires_grad_()
    assert torch.autograd.gradcheck(leave_one_out, (features, targets, penalty))
