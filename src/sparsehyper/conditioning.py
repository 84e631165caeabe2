"""From a task to its embedding z."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from sparsehyper._checks import check_integer
from sparsehyper._random import normal, seeded


class TaskEmbedding(nn.Module):
    """A learned vector for each task.

    Args:
        tasks: the tasks' names, or how many there are (their names are then "0", "1", …).
        dim: latent size, at least 2 (embeddings are normalised over it, which leaves nothing of a
            single number).
        seed: of the initial embeddings, standard normal.

    Attributes:
        weight: ``[tasks, dim]``.
        names: the tasks' names.

    Raises:
        ValueError: no task, a name that stands twice, or ``dim`` below 2.

    >>> TaskEmbedding(["shoes", "bags"], dim=8)(torch.tensor([1, 1, 0])).shape
    torch.Size([3, 8])
    """

    weight: nn.Parameter

    def __init__(self, tasks: int | Sequence[str], dim: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        check_integer("dim", dim, minimum=2)
        if isinstance(tasks, int):
            check_integer("tasks", tasks, minimum=1)
            tasks = [str(i) for i in range(tasks)]
        elif isinstance(tasks, str):
            raise TypeError(f"`tasks` must be a number or a list of names, got {tasks!r}")
        if not tasks:
            raise ValueError("`tasks` must name at least one task, got none")
        for i, name in enumerate(tasks):
            if not isinstance(name, str):
                raise TypeError(f"`tasks` must be names, got {name!r}")
            if name in tasks[:i]:
                raise ValueError(f"`tasks` must not repeat a name, got {name!r} twice")
        self.names = list(tasks)
        self.dim = dim
        self.weight = nn.Parameter(normal([len(tasks), dim], seeded(seed)).float())

    def forward(self, task: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of task ids ``[batch]``."""
        return self.weight[task]

    def index(self, task: str | SupportsIndex) -> int:
        """The number of a task given by number or name.

        Raises:
            KeyError: an unknown name.
            IndexError: a number outside [0, tasks); a negative one is never counted from the end.
        """
        if isinstance(task, str):
            if task not in self.names:
                known = ", ".join(map(repr, self.names))
                raise KeyError(f"unknown `task` {task!r}; the tasks are: {known}")
            return self.names.index(task)
        number = operator.index(task)
        if not 0 <= number < len(self.names):
            raise IndexError(f"`task` must be in [0, {len(self.names)}), got {number}")
        return number

    def add(self, name: str, init: str | Tensor = "mean") -> None:
        """Add a task; the embeddings become a new parameter, which optimisers must be given.

        Args:
            name: a new name.
            init: ``"mean"`` of the known embeddings, the name of a known task, or a vector
                ``[dim]``.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"`name` must be a non-empty string, got {name!r}")
        if name in self.names:
            raise ValueError(f"`name` {name!r} is already a task")
        with torch.no_grad():
            if isinstance(init, Tensor):
                if init.shape != (self.dim,):
                    raise ValueError(f"`init` must have shape [{self.dim}], got {list(init.shape)}")
                row = init.to(self.weight)
            elif init == "mean":
                row = self.weight.mean(0)
            else:
                row = self.weight[self.index(init)]
            self.weight = nn.Parameter(torch.cat([self.weight, row[None]]))
        self.names.append(name)

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"kind": "task_embedding", "tasks": self.names, "dim": self.dim}

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"tasks={len(self.names)}, dim={self.dim}"
