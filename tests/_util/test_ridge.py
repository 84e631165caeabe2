"""Ridge regression in closed form against gradients and against refitting."""

from __future__ import annotations

import pytest
import torch

from sparsehyper._util.ridge import (
    LayerPrior,
    fit_prior,
    leave_one_out,
    leave_one_out_under_prior,
    solve_ridge,
    solve_under_prior,
)

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


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_equal_samples_are_left_out_together(n: int, width: int) -> None:
    features, targets = _samples(n, width)
    features = torch.cat([features, features[:2]])
    targets = torch.cat([targets, targets.flip(0)[:2]])
    first_equal = torch.tensor([*range(n), 0, 1])
    found = leave_one_out(features, targets, 0.3, first_equal)
    for i in range(n + 2):
        others = first_equal != first_equal[i]
        weight, bias = solve_ridge(features[others], targets[others], 0.3)
        torch.testing.assert_close(found[i], features[i] @ weight.T + bias)


@pytest.mark.parametrize(("n", "width"), [(6, 9), (9, 4)])
def test_left_out_predictions_have_exact_gradients(n: int, width: int) -> None:
    features, targets = _samples(n, width)
    penalty = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    features.requires_grad_()
    assert torch.autograd.gradcheck(leave_one_out, (features, targets, penalty))


def _drawn(count: int, rows: int) -> tuple[LayerPrior, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A prior of layers of 3 features, and tasks whose layers are drawn from it."""
    rng = torch.Generator().manual_seed(0)
    mean = torch.tensor([[1.0, -2.0, 0.5, 3.0]]).double()
    root = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.3, 0, 0], [0, 0, 0.2, 0], [0, 0, 0.1, 0.6]])
    root = root.double()
    tasks = []
    for _ in range(count):
        layer = mean[0] + root @ torch.randn(4, dtype=torch.float64, generator=rng)
        features = torch.randn(rows, 3, dtype=torch.float64, generator=rng)
        noise = 0.1 * torch.randn(rows, 1, dtype=torch.float64, generator=rng)
        y = features / 3**0.5 @ layer[:3, None] + layer[3] + noise
        tasks.append((features, y))
    return LayerPrior(mean, (root @ root.T)[None], torch.tensor([0.01]).double()), tasks


def test_a_prior_is_found_from_tasks() -> None:
    prior, tasks = _drawn(300, 8)
    found = fit_prior(tasks)
    torch.testing.assert_close(found.mean, prior.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(found.covariance, prior.covariance, atol=0.2, rtol=0)
    torch.testing.assert_close(found.noise, prior.noise, atol=0.002, rtol=0)


def test_the_layer_under_a_prior_is_the_posterior_mean() -> None:
    prior, tasks = _drawn(1, 5)
    ((features, y),) = tasks
    weight, bias = solve_under_prior(features, y, prior)
    layer = torch.cat([weight[0] * 3**0.5, bias]).requires_grad_()
    phi = torch.cat([features / 3**0.5, torch.ones(5, 1).double()], 1)
    from_mean = layer - prior.mean[0]
    energy = (phi @ layer - y[:, 0]).square().sum() / prior.noise[0]
    energy = energy + from_mean @ torch.linalg.solve(prior.covariance[0], from_mean)
    (gradient,) = torch.autograd.grad(energy, layer)
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("copies", [0, 2])
def test_a_sample_left_out_under_a_prior_is_as_if_it_had_never_been_there(copies: int) -> None:
    prior, tasks = _drawn(1, 6)
    features, y = (torch.cat([part, part[:1].expand(copies, -1)]) for part in tasks[0])
    first_equal = torch.tensor([0, 1, 2, 3, 4, 5, *[0] * copies])
    left_out = leave_one_out_under_prior(features, y, prior, first_equal)
    for i in range(len(y)):
        others = first_equal != first_equal[i]
        weight, bias = solve_under_prior(features[others], y[others], prior)
        torch.testing.assert_close(left_out[i], weight @ features[i] + bias)


def test_a_prior_helps_where_rows_are_few() -> None:
    _, tasks = _drawn(60, 30)
    prior = fit_prior(tasks[:50])
    errors = {"prior": 0.0, "ridge": 0.0}
    for features, y in tasks[50:]:
        few, rest = slice(0, 3), slice(3, None)
        for name, (weight, bias) in {
            "prior": solve_under_prior(features[few], y[few], prior),
            "ridge": solve_ridge(features[few], y[few], 0.1),
        }.items():
            errors[name] += float((features[rest] @ weight.T + bias - y[rest]).square().mean())
    assert errors["prior"] < 0.5 * errors["ridge"]


@pytest.mark.parametrize(
    ("offset", "scale", "of_features"), [(1000.0, 1.0, 1.0), (0.0, 1e-4, 1.0), (-3.0, 100.0, 0.01)]
)
def test_a_prior_does_not_depend_on_units(offset, scale, of_features) -> None:
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(5, generator=rng)
    tasks = []
    for _ in range(20):
        phi = torch.randn(12, 5, generator=rng, dtype=torch.double)
        layer = common + 0.3 * torch.randn(5, generator=rng)
        noise = 0.1 * torch.randn(12, generator=rng)
        tasks.append((phi, (phi @ layer.double() + noise)[:, None]))
    plain = fit_prior(tasks)
    other = fit_prior([(of_features * phi, offset + scale * y) for phi, y in tasks])
    new_phi, new_y = tasks[0]
    weight, bias = solve_under_prior(new_phi[:3], new_y[:3], plain)
    moved = solve_under_prior(of_features * new_phi[:3], offset + scale * new_y[:3], other)
    expected = offset + scale * (new_phi @ weight.T + bias)
    found = of_features * new_phi @ moved[0].T + moved[1]
    torch.testing.assert_close((found - offset) / scale, (expected - offset) / scale)
