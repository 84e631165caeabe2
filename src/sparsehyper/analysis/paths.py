"""Values of the models between tasks: along a line, and over a plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper.analysis.vectors import task_embeddings
from sparsehyper.conditioning import Condition
from sparsehyper.hypernetwork import HyperNetwork

Evaluate = Callable[[nn.Module], float]
"""A function from an ordinary model in evaluation mode to a number, such as an accuracy."""


@dataclass(frozen=True)
class Line:
    """Values along a line.

    Attributes:
        positions: Positions, from 0 at the first task to 1 at the second.
        values: Value at each position.
    """

    positions: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Plane:
    """Values over a plane.

    Attributes:
        x, y: Coordinates of columns and of rows, in units of normalised embeddings.
        values: Values, one row for each of ``y`` and one column for each of ``x``.
        corners: Positions of the three tasks: the first at (0, 0), the second at (x, 0).
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    corners: tuple[tuple[float, float], ...]


def line(
    hnet: HyperNetwork,
    evaluate: Evaluate,
    a: Condition,
    b: Condition,
    *,
    points: int = 11,
    head: int | str | None = None,
) -> Line:
    """Evaluate the models along the line between the normalised embeddings of two tasks.

    A point between normalised embeddings is shorter than they are and is normalised again, as every
    input of the generator is, so the path is an arc. Batch norms have the mean statistics of all
    tasks everywhere.

    Args:
        hnet: the hypernetwork, in any mode.
        evaluate: called with the model at each point, an ordinary module in evaluation mode.
        a, b: tasks, or embeddings ``[latent_dim]``.
        points: number of points including both ends, at least 2.
        head: the task whose head ends all models; for a hypernetwork with a ``head``, whose
            generated models would return features.

    Raises:
        ValueError: ``points`` below 2; ``head`` is missing, or given in vain.
        TypeError: ``evaluate`` is not callable.
        KeyError, IndexError: an unknown task.

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> x, y = torch.randn(20, 5), torch.arange(20) % 2
    >>> found = line(hnet, lambda model: (model(x).argmax(1) == y).float().mean(), "shoes", "bags")
    >>> len(found.values)
    11
    """
    _check_arguments(hnet, evaluate, points, head)
    start, end = task_embeddings(hnet, [a, b]).double()
    steps = torch.linspace(0, 1, points, dtype=torch.double)
    values = _values(hnet, evaluate, [start + step * (end - start) for step in steps], head)
    return Line(tuple(steps.tolist()), values)


def plane(
    hnet: HyperNetwork,
    evaluate: Evaluate,
    a: Condition,
    b: Condition,
    c: Condition,
    *,
    points: int = 11,
    margin: float = 0.2,
    head: int | str | None = None,
) -> Plane:
    """Evaluate the models over the plane through the normalised embeddings of three tasks.

    The axes are b - a and the part of c - a orthogonal to it, both scaled to unit length. Every
    point is normalised again, as for `line`.

    Args:
        hnet, evaluate, head: as for `line`.
        a, b, c: tasks or embeddings, no two of them the same.
        points: number of points along each axis, at least 2.
        margin: extent of the grid beyond the tasks, relative to the size of their triangle.

    Raises:
        ValueError: ``points`` below 2, ``margin`` below 0, or embeddings that are the same;
            ``head`` is missing, or given in vain.
        TypeError: ``evaluate`` is not callable.
        KeyError, IndexError: an unknown task.

    Source: the planes of T. Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling
    of DNNs" (NeurIPS 2018), where planes are in the space of weights.

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(3, dim=8))
    >>> found = plane(hnet, lambda model: model.bias.norm(), 0, 1, 2, points=4)
    >>> len(found.values), len(found.values[0])
    (4, 4)
    """
    _check_arguments(hnet, evaluate, points, head)
    check_number("margin", margin, minimum=0)
    origin, *others = task_embeddings(hnet, [a, b, c]).double()
    u, v = (other - origin for other in others)
    width = float(u.norm())
    right = u / max(width, 1e-300)
    along = float(v @ right)
    upward = v - along * right
    height = float(upward.norm())
    # Three different points on a sphere never lie on one line.
    if min(width, height) < 1e-6 * float(origin.norm()):
        raise ValueError("`a`, `b` and `c` must have three different embeddings, got two the same")
    up = upward / height
    x, y = _grid(0.0, width, along, points, margin), _grid(0.0, 0.0, height, points, margin)
    rows = [
        _values(hnet, evaluate, [origin + column * right + row * up for column in x], head)
        for row in y
    ]
    return Plane(x, y, tuple(rows), ((0.0, 0.0), (width, 0.0), (along, height)))


@torch.no_grad()
def _values(
    hnet: HyperNetwork,
    evaluate: Evaluate,
    embeddings: Sequence[Tensor],
    head: int | str | None,
) -> tuple[float, ...]:
    models = (hnet.materialize(z.to(hnet.device, hnet.dtype), head=head) for z in embeddings)
    return tuple(float(evaluate(model.eval())) for model in models)


def _grid(a: float, b: float, c: float, points: int, margin: float) -> tuple[float, ...]:
    low, high = min(a, b, c), max(a, b, c)
    beyond = margin * (high - low)
    return tuple(torch.linspace(low - beyond, high + beyond, points, dtype=torch.double).tolist())


def _check_arguments(
    hnet: HyperNetwork, evaluate: Evaluate, points: int, head: int | str | None
) -> None:
    if not callable(evaluate):
        raise TypeError(f"`evaluate` must be a function of a model, got {evaluate!r}")
    check_integer("points", points, minimum=2)
    if hnet.head is not None and head is None:
        raise ValueError(
            "`head` is missing; it must be the task whose head ends all models, as those that this "
            "hypernetwork generates return features"
        )
