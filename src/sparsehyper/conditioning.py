"""From a task to its embedding z."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        if isinstance(tasks, str) or not isinstance(tasks, Sequence):
            raise TypeError(f"`tasks` must be a number or a list of names, got {tasks!r}")
        if not tasks:
            raise ValueError("`tasks` must name at least one task, got none")
        self.names: list[str] = []
        for name in tasks:
            self.check_new("tasks", name)
            self.names.append(name)
        self.dim = dim
        self.weight = nn.Parameter(normal([len(tasks), dim], seeded(seed)).float())

    def forward(self, task: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of task ids ``[batch]``."""
        return F.embedding(task.long(), self.weight)

    def index(self, task: str | SupportsIndex) -> int:
        """The number of a task given by number or name.

        Raises:
            KeyError: an unknown name.
            TypeError: neither a name nor an integer.
            IndexError: a number outside [0, tasks); a negative one is never counted from the end.
        """
        if isinstance(task, str):
            if task not in self.names:
                known = ", ".join(map(repr, self.names))
                raise KeyError(f"unknown `task` {task!r}; the tasks are: {known}")
            return self.names.index(task)
        try:
            if isinstance(task, bool):
                raise TypeError
            # An `int` as it is: `operator.index` would make it a constant to torch.compile.
            number = task if isinstance(task, int) else operator.index(task)
        except TypeError:
            raise TypeError(
                f"`task` must be a name or an integer, got {task!r}; "
                "for one task per sample give an integer tensor [batch]"
            ) from None
        if not 0 <= number < len(self.names):
            raise IndexError(f"`task` must be in [0, {len(self.names)}), got {number}")
        return number

    def add(self, name: str, init: str | Tensor = "mean") -> None:
        """Add a task; the embeddings become a new parameter, which optimisers must be given.

        Args:
            name: a new name.
            init: ``"mean"`` of the known embeddings, the name of a known task, or a vector
                ``[dim]``.

        Raises:
            TypeError, ValueError: ``name`` is no name, or a task already; or ``init`` has another
                shape.
            KeyError: ``init`` is the name of no task.
        """
        self.check_new("name", name)
        with torch.no_grad():
            if isinstance(init, Tensor):
                if init.shape != (self.dim,):
                    raise ValueError(f"`init` must have shape [{self.dim}], got {list(init.shape)}")
                row = init.to(self.weight)
            elif init == "mean":
                row = self.weight.mean(0)
            else:
                row = self.weight[self.index(init)]
            weight = torch.cat([self.weight, row[None]])
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self.names.append(name)

    def remove(self, name: str) -> None:
        """Remove a task; the embeddings become a new parameter, which optimisers must be given.

        Raises:
            KeyError: no such task.
            ValueError: it is the only one.
        """
        row = self.index(name)
        if len(self.names) == 1:
            raise ValueError(f"`name` {name!r} is the only task, and cannot be removed")
        weight = self.weight.detach()
        kept = torch.cat([weight[:row], weight[row + 1 :]])
        self.weight = nn.Parameter(kept, requires_grad=self.weight.requires_grad)
        del self.names[row]

    def rename(self, name: str, new_name: str) -> None:
        """Give a task another name.

        Raises:
            KeyError: no such task.
            TypeError, ValueError: ``new_name`` is no name, or a task already.
        """
        row = self.index(name)
        self.check_new("new_name", new_name)
        self.names[row] = new_name

    def check_new(self, argument: str, name: Any) -> None:
        """Raise unless ``name`` could be that of one more task."""
        if not isinstance(name, str) or not name:
            raise TypeError(f"a name in `{argument}` must be a non-empty string, got {name!r}")
        if name in self.names:
            raise ValueError(f"`{argument}` must not repeat a task, got {name!r}")

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"kind": "task_embedding", "tasks": self.names, "dim": self.dim}

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"tasks={len(self.names)}, dim={self.dim}"
