"""Many functions are minimised at once."""

from __future__ import annotations

import pytest
import torch

from sparsehyper.adaptation.lbfgs import minimize

STARTS = torch.tensor([[-1.2, 1.0], [2.0, -2.0], [0.5, 0.5], [0.0, 3.0]], dtype=torch.float64)


def rosenbrock(points):
    x = points.detach().requires_grad_()
    values = (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def test_bent_valleys_are_followed_to_their_end():
    points, values = minimize(rosenbrock, STARTS, 100)
    torch.testing.assert_close(points, torch.ones_like(points), atol=1e-5, rtol=0)
    torch.testing.assert_close(values, rosenbrock(points)[0])


def test_no_problem_knows_of_the_others():
    together, _ = minimize(rosenbrock, STARTS, 25)
    for start, found in zip(STARTS, together, strict=True):
        torch.testing.assert_close(minimize(rosenbrock, start[None], 25)[0][0], found)


def test_a_quadratic_of_many_numbers_takes_few_evaluations():
    weights = torch.logspace(-1, 1, 64, dtype=torch.float64)

    def bowl(x):
        return (weights * x**2).sum(1) / 2, weights * x

    start = torch.ones(1, 64, dtype=torch.float64)
    assert minimize(bowl, start, 40)[1] < 1e-6 * bowl(start)[0]


def test_values_never_rise_and_evaluations_are_counted():
    calls = []

    def counted(x):
        calls.append(len(x))
        return rosenbrock(x)

    before = rosenbrock(STARTS)[0]
    for evaluations in (1, 2, 3, 10):
        calls.clear()
        _, values = minimize(counted, STARTS, evaluations)
        assert calls == [4] * evaluations
        assert (values <= before).all()
        before = values


def test_so_many_evaluations_are_made_however_short_the_time_is():
    calls = []

    def counted(x):
        calls.append(len(x))
        return rosenbrock(x)

    for fewest, made in ((1, 1), (7, 7), (30, 20)):
        calls.clear()
        minimize(counted, STARTS, 20, 0.0, fewest)
        assert len(calls) == made


def test_what_is_not_finite_is_not_entered():
    def log(x):
        return (x - x.log()).sum(1), 1 - 1 / x

    points, _ = minimize(log, torch.tensor([[0.05], [30.0]]), 30)
    torch.testing.assert_close(points, torch.ones(2, 1), atol=1e-3, rtol=0)
    stuck, values = minimize(log, torch.tensor([[-1.0]]), 5)
    assert stuck == -1
    assert values.isnan()


def test_flat_and_concave_places_are_left():
    def sigmoid(x):
        s = torch.sigmoid(x)
        return s[:, 0], s * (1 - s)

    points, values = minimize(sigmoid, torch.tensor([[6.0], [8.0], [2.0]]), 60)
    assert (values < 1e-3).all()
    assert (points < -6).all()


def test_a_saddle_is_left_and_a_minimum_kept():
    def saddle(x):
        value = x[:, 0] ** 2 - x[:, 1] ** 2 + x[:, 1] ** 4
        return value, torch.stack([2 * x[:, 0], -2 * x[:, 1] + 4 * x[:, 1] ** 3], 1)

    points, values = minimize(saddle, torch.tensor([[1.0, 1e-3], [0.0, 0.5**0.5]]), 40)
    torch.testing.assert_close(values, torch.full((2,), -0.25), atol=1e-4, rtol=0)
    torch.testing.assert_close(points[1], torch.tensor([0.0, 0.5**0.5]), atol=1e-4, rtol=0)


def test_many_rounds_in_single_precision_stay_at_the_minimum():
    points, values = minimize(rosenbrock, STARTS.float(), 400)
    assert values.isfinite().all()
    torch.testing.assert_close(points, torch.ones_like(points), atol=1e-2, rtol=0)


@pytest.mark.parametrize("start", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [torch.float64, torch.float32, torch.bfloat16])
def test_points_keep_their_precision_whatever_that_of_the_loss(start, loss):
    seen = set()

    def bowl(points):
        seen.add(points.dtype)
        return (points**2).sum(1).to(loss), (2 * points).to(loss)

    points, values = minimize(bowl, torch.ones(2, 3, dtype=start), 6)
    own = torch.promote_types(start, torch.float32)
    assert seen == {own}
    assert points.dtype == values.dtype == own
    assert points.abs().max() < 0.1
