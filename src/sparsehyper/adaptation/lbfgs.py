"""L-BFGS on many small problems at once, each with its own step.

Every round evaluates all problems together, each at its own trial point. If the value fell enough
(Armijo's condition), the point is accepted, and the next direction follows from the two-loop
recursion over the problem's own history. Otherwise the step is shortened, to the minimum of the
interpolating parabola, and tried again in the next round.

Source: J. Nocedal and S. Wright, "Numerical optimization", 2nd ed. (2006), algorithms 7.4 and 7.5,
section 3.5. Deviations: there is no condition on the slope at the end of a step. A pair without
positive curvature is left out of the history, and the initial Hessian is made smaller, so that the
next step is longer. If a direction does not point downhill, or its step had to be shortened too
often, the search restarts from the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

_HISTORY = 20  # rounds in the history
_MIN_DECREASE = 1e-4  # share of the decrease that the slope predicts
_MIN_FACTOR, _MAX_FACTOR = 0.1, 0.5  # limits on the factor that shortens a step
_MAX_SHORTENED = 4  # times in a row before the search restarts from the gradient
_MIN_CURVATURE = 1e-8
_LENGTHENING = 4.0  # factor on the initial Hessian after a step without positive curvature


def minimize(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    evaluations: int,
    deadline: float = math.inf,
    fewest: int = 1,
) -> tuple[Tensor, Tensor]:
    """Minimise several functions at once.

    Args:
        evaluate: maps points ``[problems, dim]`` to values ``[problems]`` and gradients
            ``[problems, dim]``; the problems are independent.
        start: initial points ``[problems, dim]``.
        evaluations: number of calls of ``evaluate``, including the first; at least 1.
        deadline: value of ``time.perf_counter()`` after which there are no more calls.
        fewest: number of calls that are made however short the time is.

    Returns:
        The best points found, ``[problems, dim]``, and their values ``[problems]``, which are never
        above the initial ones; in the precision of ``start``, but at least in float32.

    >>> def bowls(x: Tensor) -> tuple[Tensor, Tensor]:
    ...     weights = torch.tensor([[1.0, 10.0], [5.0, 1.0]])
    ...     return (weights * x**2).sum(1), 2 * weights * x
    >>> bool((minimize(bowls, torch.ones(2, 2), 20)[0].abs() < 1e-3).all())
    True
    """
    x = start.to(torch.promote_types(start.dtype, torch.float32))

    def at(points: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = evaluate(points)  # a loss may be of another precision
        return value.to(x), gradient.to(x)

    value, gradient = at(x)
    # The first step has the length of the gradient, at most 1.
    scale = 1 / gradient.norm(dim=1).clamp(min=1)
    direction = -scale[:, None] * gradient
    step, shortened = torch.ones_like(value), torch.zeros_like(value)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for done in range(1, evaluations):
        if done >= fewest and time.perf_counter() > deadline:
            break
        tried = x + step[:, None] * direction
        found, gradient_there = at(tried)
        slope = _dot(gradient, direction)
        taken = (found <= value + _MIN_DECREASE * step * slope) & (slope < 0)

        moved, turned = tried - x, gradient_there - gradient
        curvature, square = _dot(moved, turned), _dot(turned, turned)
        known = taken & (curvature > _MIN_CURVATURE * square)
        # A pair of zeros has no effect on the recursion.
        moved, turned = (torch.where(known[:, None], part, 0) for part in (moved, turned))
        history.append((moved, turned, torch.where(known, 1 / curvature, 0)))
        del history[:-_HISTORY]
        scale = torch.where(
            known, curvature / square, torch.where(taken, _LENGTHENING * scale, scale)
        )

        parabola = -slope * step / (2 * (found - value - slope * step)).clamp(min=1e-30)
        shorter = step * parabola.nan_to_num(0).clamp(_MIN_FACTOR, _MAX_FACTOR)
        shortened = torch.where(taken, 0, shortened + 1)
        x = torch.where(taken[:, None], tried, x)
        value = torch.where(taken, found, value)
        gradient = torch.where(taken[:, None], gradient_there, gradient)

        ahead = _two_loops(gradient, history, scale)
        lost = (_dot(gradient, ahead) >= 0) | (shortened == _MAX_SHORTENED)
        if lost.any():  # restart these from the gradient
            history = [
                (moved, turned, torch.where(lost, 0, weight)) for moved, turned, weight in history
            ]
            shrunk = torch.where(taken, 1, step) * scale
            scale = torch.where(lost, shrunk, scale)
            ahead = torch.where(lost[:, None], -scale[:, None] * gradient, ahead)
        fresh = taken | lost
        direction = torch.where(fresh[:, None], ahead, direction)
        step = torch.where(fresh, 1, shorter)
    return x, value


def _two_loops(
    gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor
) -> Tensor:
    """The negative gradient times the inverse Hessian that the history implies."""
    q, weights = gradient, []
    for moved, turned, weight in reversed(history):
        alpha = weight * _dot(moved, q)
        q = q - alpha[:, None] * turned
        weights.append(alpha)
    q = scale[:, None] * q
    for (moved, turned, weight), alpha in zip(history, reversed(weights), strict=True):
        q = q + (alpha - weight * _dot(turned, q))[:, None] * moved
    return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
