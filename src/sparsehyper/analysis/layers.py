"""How the generated weights of each layer differ between tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehyper.analysis.vectors import embeddings
from sparsehyper.conditioning import Condition
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.layout import TensorSpec


@torch.no_grad()
def layer_statistics(
    hnet: HyperNetwork, tasks: Sequence[Condition] | None = None
) -> list[dict[str, Any]]:
    """Statistics of every generated tensor over the tasks, which are generated one at a time.

    Args:
        hnet: the hypernetwork.
        tasks: as `task_embeddings` takes them; None for all.

    Returns:
        A JSON-ready dict for each tensor:

        - ``name`` and ``shape``;
        - ``mean`` and ``std`` over elements and tasks;
        - ``between_tasks``: the share of that std that lies between tasks, from 0 (the same for
          all tasks) to 1. It is the root mean square over elements of an element's std over
          tasks, divided by ``std``;
        - ``distance``: the root mean square, over pairs of tasks, of the norm of their difference.

    Raises:
        ValueError, KeyError, IndexError, TypeError: as `task_embeddings`.

    >>> from torch import nn
    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> [(row["name"], row["shape"]) for row in layer_statistics(hnet)]
    [('weight', [2, 5]), ('bias', [2])]
    """
    z, target = embeddings(hnet, tasks), hnet.target
    sums = [
        _Sums(torch.zeros(spec.shape, dtype=torch.double).to(z.device)) for spec in target.layout
    ]
    for row in z:
        tensors = target.unpack(hnet.raw_theta(row[None])[0])
        for own, tensor in zip(sums, tensors, strict=True):
            own.add(tensor.double())
    return [own.summary(spec, len(z)) for own, spec in zip(sums, target.layout, strict=True)]


@dataclass
class _Sums:
    """Sums over tasks of one tensor.

    Attributes:
        over_tasks: Sum of each element.
        values: Sum of all elements.
        squares: Sum of all squared elements.
    """

    over_tasks: Tensor
    values: float = 0.0
    squares: float = 0.0

    def add(self, tensor: Tensor) -> None:
        """Add the tensor of one more task."""
        self.over_tasks += tensor
        self.values += float(tensor.sum())
        self.squares += float(tensor.square().sum())

    def summary(self, spec: TensorSpec, tasks: int) -> dict[str, Any]:
        """The statistics over ``tasks`` tasks, JSON-ready."""
        mean = self.values / (spec.numel * tasks)
        variance = max(0.0, self.squares / (spec.numel * tasks) - mean**2)
        # the variance over tasks, summed over elements
        common = float(self.over_tasks.square().sum()) / tasks**2
        between = max(0.0, self.squares / tasks - common)
        share = between / spec.numel / variance if variance else 0.0
        return {
            "name": spec.name,
            "shape": list(spec.shape),
            "mean": mean,
            "std": math.sqrt(variance),
            "between_tasks": math.sqrt(min(1.0, share)),
            "distance": math.sqrt(2 * between * tasks / (tasks - 1)) if tasks > 1 else 0.0,
        }
