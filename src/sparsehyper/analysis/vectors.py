"""Tasks as vectors, by their embeddings or weights: distances between them, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.checks import check_choice
from sparsehyper.analysis.gram import centred, gram, rows_at_once
from sparsehyper.conditioning import Condition
from sparsehyper.hypernetwork import HyperNetwork

METRICS = ("cosine", "euclidean")
_ROWS = 1000  # vectors compared with all others at a time


@torch.no_grad()
def task_embeddings(hnet: HyperNetwork, tasks: Sequence[Condition] | None = None) -> Tensor:
    """Normalised embeddings ``[tasks, latent_dim]``: the inputs of the generator.

    Args:
        hnet: the hypernetwork.
        tasks: tasks in any form that stands for one model; None for all named tasks.

    Raises:
        ValueError: no tasks.
        KeyError, IndexError, TypeError: not a task of the hypernetwork.

    >>> from torch import nn
    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> task_embeddings(hnet).norm(dim=1)
    tensor([2.8284, 2.8284])
    """
    return hnet.normalise(embeddings(hnet, tasks))


@torch.no_grad()
def embeddings(hnet: HyperNetwork, tasks: Sequence[Condition] | None = None) -> Tensor:
    """Embeddings ``[tasks, latent_dim]`` as they are; arguments and errors as `task_embeddings`."""
    if isinstance(tasks, str) or (tasks is not None and not isinstance(tasks, Sequence)):
        raise TypeError(f"`tasks` must be a list of tasks, got {tasks!r}")
    tasks = hnet.task_names if tasks is None else tasks
    if not tasks:
        raise ValueError("`tasks` must hold at least one task, got none")
    return torch.stack([hnet.embedding(task) for task in tasks])


@torch.no_grad()
def generated_weights(hnet: HyperNetwork, tasks: Sequence[Condition] | None = None) -> Tensor:
    """Parameter vectors θ ``[tasks, N]``; in float32 they take 4 N bytes per task.

    Args:
        hnet: the hypernetwork.
        tasks: as `task_embeddings` takes them.

    Raises:
        ValueError, KeyError, IndexError, TypeError: as `task_embeddings`.

    >>> from torch import nn
    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> generated_weights(hnet).shape
    torch.Size([2, 12])
    """
    z = embeddings(hnet, tasks)
    theta = torch.empty(len(z), hnet.target.numel, device=hnet.device, dtype=hnet.dtype)
    size = rows_at_once(hnet.target.numel)
    for rows, some in zip(theta.split(size), z.split(size), strict=True):
        rows.copy_(hnet.theta(some))
    return theta


def distances(vectors: Tensor, metric: str = "cosine") -> Tensor:
    """Distances between all pairs of vectors, computed in float64.

    Args:
        vectors: ``[n, length]``, of any length: they are read a few columns at a time.
        metric: ``"cosine"``, 1 minus the cosine of the angle, in [0, 2]; or ``"euclidean"``.

    Returns:
        Float64 ``[n, n]``, symmetric, with zeros on the diagonal.

    Raises:
        TypeError: ``vectors`` is not a tensor.
        ValueError: another shape, numbers that are not finite, an unknown metric, or for
            ``"cosine"`` a vector of zeros.

    >>> distances(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "euclidean")
    tensor([[0.0000, 2.2361],
            [2.2361, 0.0000]], dtype=torch.float64)
    """
    check_choice("metric", metric, METRICS)
    _check_vectors(vectors)
    if metric == "euclidean":
        # What the vectors have in common would swamp their differences.
        products = gram(vectors, shift=vectors[0].double())
        squares = products.diagonal()
        result = (squares[:, None] + squares - 2 * products).clamp(min=0).sqrt()
    else:
        products = gram(vectors)
        norms = products.diagonal().sqrt()
        for i, norm in enumerate(norms.tolist()):
            if norm == 0:
                raise ValueError(f"`vectors` must not be zero for a cosine, got zeros in row {i}")
        result = (1 - products / norms[:, None] / norms).clamp(0, 2)
    return result.fill_diagonal_(0)


def nearest_vectors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """For each vector the most similar other one, by the cosine of their angle.

    The table of all cosines is never held at once.

    Args:
        vectors: ``[n, length]``, such as `task_embeddings` returns; n at least 2.

    Returns:
        Int64 indices ``[n]`` and float64 cosines ``[n]``.

    Raises:
        TypeError, ValueError: as `distances`.

    >>> nearest_vectors(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]))[0]
    tensor([2, 2, 0])
    """
    _check_vectors(vectors)
    if len(vectors) < 2:
        raise ValueError(f"`vectors` must be at least 2, got {len(vectors)}")
    unit = F.normalize(vectors.double(), dim=1)
    found = []
    for rows in torch.arange(len(unit)).split(_ROWS):
        between = unit[rows] @ unit.T
        between[torch.arange(len(rows)), rows] = -torch.inf
        found.append(between.max(1))
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


@dataclass(frozen=True)
class Projection:
    """A two-dimensional map of vectors.

    Attributes:
        points: Coordinates, float64 ``[n, 2]`` with mean zero.
        explained: Share of the variance along each of the two axes.
    """

    points: Tensor
    explained: tuple[float, float]


def project(vectors: Tensor) -> Projection:
    """The first two principal components: the plane in which the vectors differ most.

    The sign of each axis makes the point farthest from the centre positive.

    Args:
        vectors: ``[n, length]``, of any length: they are read a few columns at a time.

    Raises:
        TypeError: ``vectors`` is not a tensor.
        ValueError: another shape, or numbers that are not finite.

    >>> found = project(torch.tensor([[3.0, 1.0], [0.0, 1.0], [-3.0, 1.0]]))
    >>> found.points[:, 0].abs().round(), round(found.explained[0], 3)
    (tensor([3., 0., 3.], dtype=torch.float64), 1.0)
    """
    _check_vectors(vectors)
    values, axes = torch.linalg.eigh(centred(gram(vectors, shift=vectors[0].double())))
    points = (axes * values.clamp(min=0).sqrt()).flip(1)
    points = F.pad(points, (0, 1))[:, :2]  # a single vector has one axis only
    farthest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points *= torch.where(farthest < 0, -1.0, 1.0)
    first, second = (points.square().sum(0) / values.sum().clamp(min=1e-300)).tolist()
    return Projection(points, (first, second))


def _check_vectors(vectors: Tensor) -> None:
    if not isinstance(vectors, Tensor):
        raise TypeError(
            f"`vectors` must be a tensor [n, length], got a {type(vectors).__name__}; of a "
            "hypernetwork give `task_embeddings(hnet)` or `generated_weights(hnet)`"
        )
    if vectors.ndim != 2 or not vectors.numel():
        raise ValueError(f"`vectors` must have shape [n, length], got {list(vectors.shape)}")
    for i, row in enumerate(vectors):
        if not row.isfinite().all():
            raise ValueError(f"`vectors` must be finite, got other numbers in row {i}")
