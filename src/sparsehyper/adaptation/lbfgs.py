"""L-BFGS on many small problems at once, each with its own step.

Every round evaluates all problems together, each at the point it wants to try. Where the value
fell enough (Armijo's condition) the point is taken, and the next direction is that of the two-loop
recursion over the problem's own history; elsewhere the step is shortened, by the minimum of the
parabola through what is known, and tried again in the next round.

Source: J. Nocedal and S. Wright, "Numerical optimization", 2nd ed. (2006), algorithm 7.4 and
section 3.5. Deviations: no condition on the slope where a step ends; pairs whose curvature is not
positive are left out of the history instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_DECREASE = 1e-4  # of what the slope promises, at least
_SHORTEST, _LONGEST = 0.1, 0.5  # what a step is multiplied by when it was too long
_CURVATURE = 1e-8


def minimize(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, evaluations: int
) -> tuple[Tensor, Tensor]:
    """The best points found, and their values.

    Args:
        evaluate: from points ``[problems, dim]`` to values ``[problems]`` and gradients
            ``[problems, dim]``, each problem for itself.
        start: ``[problems, dim]``.
        evaluations: how often ``evaluate`` is called, at least 1.

    Returns:
        Points ``[problems, dim]`` and values ``[problems]``, which are never above those at the
        start.

    >>> def bowls(x: Tensor) -> tuple[Tensor, Tensor]:
    ...     weights = torch.tensor([[1.0, 10.0], [5.0, 1.0]])
    ...     return (weights * x**2).sum(1), 2 * weights * x
    >>> bool((minimize(bowls, torch.ones(2, 2), 20)[0].abs() < 1e-3).all())
    True
    """
    x = start
    value, gradient = evaluate(x)
    # The first step is as long as the gradient, and at most 1.
    direction = -gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1)
    step = torch.ones_like(value)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    scale = torch.ones_like(value)
    for _ in range(evaluations - 1):
        tried = x + step[:, None] * direction
        found, slope_there = evaluate(tried)
        slope = _dot(gradient, direction)
        taken = found <= value + _DECREASE * step * slope

        moved, turned = tried - x, slope_there - gradient
        curvature, square = _dot(moved, turned), _dot(turned, turned)
        known = taken & (curvature > _CURVATURE * square)
        # A pair of zeros has no part in the recursion.
        moved, turned = (torch.where(known[:, None], part, 0) for part in (moved, turned))
        history.append((moved, turned, torch.where(known, 1 / curvature, 0)))
        scale = torch.where(known, curvature / square, scale)

        shorter = -slope * step / (2 * (found - value - slope * step)).clamp(min=1e-30)
        shorter = step * shorter.nan_to_num(0).clamp(_SHORTEST, _LONGEST)
        x = torch.where(taken[:, None], tried, x)
        value = torch.where(taken, found, value)
        gradient = torch.where(taken[:, None], slope_there, gradient)
        next_direction = _two_loops(gradient, history, scale)
        direction = torch.where(taken[:, None], next_direction, direction)
        step = torch.where(taken, 1, shorter)
    return x, value


def _two_loops(
    gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor
) -> Tensor:
    """Minus the inverse Hessian, as the history has it, times the gradient."""
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
