"""A learned embedding for each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import check_number, check_vector
from sparsehyper._util.random import normal, seeded
from sparsehyper.conditioning.base import TaskConditioner


class TaskEmbedding(TaskConditioner):
    """A learned vector for each task; with one task, the hypernetwork is unconditional.

    ``task`` is a name, a number, an integer tensor ``[batch]`` of one task per sample, or an
    embedding ``[dim]`` itself.

    Args:
        tasks: task names, or the number of tasks (whose names are then "0", "1", …).
        dim: latent size, at least 2: embeddings are normalised over it.
        similarity: mean cosine ρ of the initial embeddings of two tasks, in [0, 1). Embeddings
            start at √ρ c + √(1 - ρ) e, with c common and e the task's own, both standard normal.
            Choose a higher value the more the tasks are variations of one another.
        seed: seed of the initial embeddings.

    Attributes:
        weight: Embeddings ``[tasks, dim]``.
        names: Task names, in order.

    Raises:
        ValueError: no task, a repeated name, ``dim`` below 2, or ``similarity`` out of range.

    >>> TaskEmbedding(["shoes", "bags"], dim=8)(torch.tensor([1, 1, 0])).shape
    torch.Size([3, 8])
    """

    weight: nn.Parameter

    kind = "task_embedding"
    by_task_alone = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        dim: int = 256,
        *,
        similarity: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, dim)
        check_number("similarity", similarity, minimum=0)
        if similarity >= 1:
            raise ValueError(f"`similarity` must be less than 1, got {similarity}")
        rng = seeded(seed)
        own = normal([len(self.names), dim], rng)
        common = normal([dim], rng)
        weight = math.sqrt(similarity) * common + math.sqrt(1 - similarity) * own
        self.weight = nn.Parameter(weight.float())

    def forward(self, task: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of task ids ``[batch]``."""
        return F.embedding(task.long(), self.weight)

    def at(self, row: int) -> Tensor:
        """The embedding ``[dim]`` of the task with this number, a view if `forward` is as here."""
        if type(self).forward is not TaskEmbedding.forward or self._forward_hooks:
            return super().at(row)
        return self.weight[row]

    def add(self, name: str, init: str | Tensor = "mean") -> None:
        """Add a task; the embeddings become a new parameter: make optimisers afterwards.

        Args:
            name: a new name.
            init: ``"mean"`` of the known embeddings, the name of a known task, or a vector
                ``[dim]``.

        Raises:
            TypeError, ValueError: ``name`` is not a name, or is the name of a task; or ``init``
                has another shape.
            KeyError: ``init`` is an unknown name.
        """
        self.check_new("name", name)
        with torch.no_grad():
            if isinstance(init, Tensor):
                check_vector("init", init, self.dim)
                row = init.to(self.weight)
            elif init == "mean":
                row = self.weight.mean(0)
            else:
                row = self.weight[self.index(init)]
            weight = torch.cat([self.weight, row[None]])
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self.append_name(name)

    @torch.no_grad()
    def refine(self, row: int, z: Tensor) -> None:
        """Give the task with this number the embedding z ``[dim]``."""
        check_vector("z", z, self.dim)
        self.weight[row] = z

    def drop(self, row: int) -> None:
        """Drop an embedding; the others become a new parameter: make optimisers afterwards."""
        weight = self.weight.detach()
        kept = torch.cat([weight[:row], weight[row + 1 :]])
        self.weight = nn.Parameter(kept, requires_grad=self.weight.requires_grad)

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"kind": self.kind, "tasks": self.names, "dim": self.dim}
