"""L-BFGS on many small problems at once, each with its own step.

Every round evaluates all problems together, each at the point it wants to try. Where the value
fell enough (Armijo's condition) the point is taken, and the next direction is that of the two-loop
recursion over the problem's own history; elsewhere the step is shortened, by the minimum of the
parabola through what is known, and tried again in the next round.

Source: J. Nocedal and S. Wright, "Numerical optimization", 2nd ed. (2006), algorithms 7.4 and 7.5,
section 3.5. Deviations: no condition on the slope where a step ends. A pair whose curvature is not
positive is left out of the history, and the initial Hessian made smaller, as the value fell without
the gradient: the next step will be longer. Where the direction does not point down, or its step had
to be shortened too often, the gradient takes its place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_HISTORY = 20  # rounds that are remembered
_DECREASE = 1e-4  # of what the slope promises, at least
_SHORTEST, _LONGEST = 0.1, 0.5  # what a step is multiplied by when it was too long
_OFTEN = 4  # a step was shortened
_CURVATURE = 1e-8
_LONGER = 4.0


def minimize(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, evaluations: int
) -> tuple[Tensor, Tensor]:
    """The best points found, and their values.

    Args:
        evaluate: from points ``[problems, dim]`` to values ``[problems]`` and gradients
            ``[problems, dim]``, each problem for itself.
        start: ``[problems, dim]``.
        evaluations: how often ``evaluate`` is called, at least 1; that at the start is one.

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
    scale = 1 / gradient.norm(dim=1).clamp(min=1)
    direction = -scale[:, None] * gradient
    step, shortened = torch.ones_like(value), torch.zeros_like(value)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(evaluations - 1):
        tried = x + step[:, None] * direction
        found, gradient_there = evaluate(tried)
        slope = _dot(gradient, direction)
        taken = (found <= value + _DECREASE * step * slope) & (slope < 0)

        moved, turned = tried - x, gradient_there - gradient
        curvature, square = _dot(moved, turned), _dot(turned, turned)
        known = taken & (curvature > _CURVATURE * square)
        # A pair of zeros has no part in the recursion.
        moved, turned = (torch.where(known[:, None], part, 0) for part in (moved, turned))
        history.append((moved, turned, torch.where(known, 1 / curvature, 0)))
        del history[:-_HISTORY]
        scale = torch.where(known, curvature / square, torch.where(taken, _LONGER * scale, scale))

        parabola = -slope * step / (2 * (found - value - slope * step)).clamp(min=1e-30)
        shorter = step * parabola.nan_to_num(0).clamp(_SHORTEST, _LONGEST)
        shortened = torch.where(taken, 0, shortened + 1)
        x = torch.where(taken[:, None], tried, x)
        value = torch.where(taken, found, value)
        gradient = torch.where(taken[:, None], gradient_there, gradient)

        ahead = _two_loops(gradient, history, scale)
        lost = (_dot(gradient, ahead) >= 0) | (shortened == _OFTEN)
        if lost.any():  # start again there, from the gradient
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
