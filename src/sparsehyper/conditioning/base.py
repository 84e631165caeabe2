"""The interface of conditioners, and the base class of those with named tasks."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from sparsehyper._util.checks import MOST_TASKS, WIDEST, check_integer, check_size, is_whole
from sparsehyper._util.random import seeded, uniform
from sparsehyper._util.tasks import task_index
from sparsehyper._util.text import listed

Condition = (
    str
    | SupportsIndex
    | Tensor
    | Sequence[str]
    | Sequence[SupportsIndex]
    | np.ndarray[Any, Any]
    | tuple[Tensor, Tensor]
    | None
)
"""Types of ``task``: a name, a number, an embedding, …; each conditioner says what it takes."""


class Conditioner(nn.Module, ABC):
    """A module from a task, an input or examples to an embedding z.

    Attributes:
        dim: Length of an embedding.
        names: Task names, in order; empty if the conditioner knows no tasks by name.
        per_sample: Whether every sample has an embedding, and so a model, of its own.
        by_task_alone: Whether an embedding follows from the number of its task and nothing else,
            such as examples that are drawn.
        described: Whether a task is added by something that describes it, such as features, so
            that examples only refine it.
        networks: Names of the submodules that are the caller's own networks. Loading is given them
            again, so a file need not hold them where they are frozen.
        later: Buffers that files of earlier versions lack, with the number that loading fills them
            with.
    """

    kind: ClassVar[str]
    by_task_alone: ClassVar[bool] = False
    described: ClassVar[bool] = False
    networks: ClassVar[tuple[str, ...]] = ()
    later: ClassVar[Mapping[str, float]] = {}
    per_sample = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_integer("dim", dim, minimum=2, maximum=WIDEST)
        self.dim = dim
        self.names: list[str] = []

    def embed(
        self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, int | None]:
        """The embedding of one model, or one embedding for each sample.

        Args:
            task: the caller's ``task``.
            args, kwargs: arguments of the target.

        Returns:
            z, ``[dim]`` or ``[batch, dim]``, and the number of the task whose batch-norm
            statistics are used; None for the mean of all tasks.
        """
        given = self.given(task)
        return self.compute(task, args, kwargs) if given is None else (given, None)

    def read(self, task: Any) -> Any:
        """``task`` without NumPy: an array becomes a tensor of numbers or a list of names."""
        if not isinstance(task, np.ndarray):
            return task
        return torch.tensor(task) if task.dtype.kind in "iuf" else task.tolist()

    @abstractmethod
    def compute(
        self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, int | None]:
        """Implement `embed` for a ``task`` that is not itself an embedding."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict."""

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> Self:
        """A conditioner as `to_config` described it, with initial values; without ``kind``."""
        return cls(**settings)

    def notes(self) -> dict[str, Any]:
        """What belongs to the state besides tensors and names, JSON-ready; here nothing does."""
        return {}

    def take_notes(self, notes: Mapping[str, Any]) -> None:
        """Load what `notes` returned, once the tasks have the same names.

        Raises:
            KeyError, TypeError, ValueError: it did not return them.
        """

    def renew(self) -> None:
        """Compute anew what is kept for evaluation; here nothing is."""

    def given(self, task: Any) -> Tensor | None:
        """``task`` if it is an embedding ``[dim]`` itself, otherwise None."""
        if not (isinstance(task, Tensor) and task.is_floating_point()):
            return None
        if task.shape != (self.dim,) or task.layout is not torch.strided:
            layout = "" if task.layout is torch.strided else f", {task.layout}"
            raise ValueError(
                f"a floating-point `task` is an embedding of shape [{self.dim}], "
                f"got shape {list(task.shape)}{layout}; task numbers must be integers"
            )
        tensors = itertools.chain(self.parameters(), self.buffers(), [task])
        return task.to(next(t for t in tensors if t.is_floating_point()).dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, value in self.later.items():
            state_dict.setdefault(prefix + name, torch.full_like(getattr(self, name), value))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Sizes, as ``print`` shows them."""
        return f"tasks={len(self.names)}, dim={self.dim}" if self.names else f"dim={self.dim}"


class TaskConditioner(Conditioner):
    """A conditioner that knows tasks by name and number."""

    def __init__(self, tasks: int | Sequence[str], dim: int) -> None:
        super().__init__(dim)
        if isinstance(tasks, int):
            check_integer("tasks", tasks, minimum=1, maximum=MOST_TASKS)
            tasks = [str(i) for i in range(tasks)]
        if isinstance(tasks, str) or not isinstance(tasks, Sequence):
            raise TypeError(f"`tasks` must be a number or a list of names, got {tasks!r}")
        if not tasks:
            raise ValueError("`tasks` must name at least one task, got none")
        check_integer("tasks", len(tasks), minimum=1, maximum=MOST_TASKS)
        check_size(f"`tasks` of `dim` {dim:,}", len(tasks) * dim)
        self._rows: dict[str, int] = {}  # name → number
        for name in tasks:
            self.check_new("tasks", name)
            self.append_name(name)

    @abstractmethod
    def forward(self, task: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of task ids ``[batch]``."""

    def compute(
        self,
        task: Any,
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: Mapping[str, Any],  # noqa: ARG002
    ) -> tuple[Tensor, int | None]:
        """The embedding ``[dim]`` of a task, which may be None if there is only one."""
        row = self.row(task)
        return self.at(row), row

    def read(self, task: Any) -> Any:
        """``task`` with a list or tuple of names and numbers as an integer tensor ``[tasks]``.

        Raises:
            KeyError, IndexError, TypeError: an entry is no task.
        """
        task = super().read(task)
        if not isinstance(task, list | tuple):
            return task
        return torch.tensor([self.index(entry) for entry in task], dtype=torch.int64)

    def at(self, row: int) -> Tensor:
        """The embedding ``[dim]`` of the task with this number."""
        return self(torch.tensor([row], device=next(self.parameters()).device))[0]

    def row(self, task: Any) -> int:
        """The number of one task, which may be None if there is only one."""
        if task is None:
            if len(self.names) > 1:
                raise TypeError(f"`task` is missing; the tasks are: {listed(self.names)}")
            return 0
        if isinstance(task, Tensor) and (task.ndim or not is_whole(task)):
            raise ValueError(
                "`task` must be one name, number or embedding here, "
                f"got a tensor of shape {list(task.shape)} and dtype {task.dtype}"
            )
        return self.index(task)

    def index(self, task: str | SupportsIndex) -> int:
        """The number of a task given by name or number.

        Raises:
            KeyError: an unknown name.
            TypeError: neither a name nor an integer.
            IndexError: a number outside [0, tasks); negative numbers do not count from the end.
        """
        return task_index(task, self._rows)

    @abstractmethod
    def add(self, name: str, init: Any) -> None:
        """Add a task."""

    def blank(self) -> Tensor:
        """What `add` takes for a task whose values are loaded afterwards."""
        return torch.zeros(self.dim)

    def remove(self, name: str) -> None:
        """Remove a task; what was learned for it alone is lost.

        Raises:
            KeyError: an unknown task.
            ValueError: the only task.
        """
        row = self.index(name)
        name = self.names[row]
        if len(self.names) == 1:
            raise ValueError(f"`name` {name!r} is the only task, and cannot be removed")
        self.drop(row)
        del self.names[row], self._rows[name]
        for later in self.names[row:]:
            self._rows[later] -= 1

    @abstractmethod
    def refine(self, row: int, z: Tensor) -> None:
        """Give the task with this number the embedding z ``[dim]``."""

    @abstractmethod
    def drop(self, row: int) -> None:
        """Drop what is kept for the task with this number."""

    def rename(self, name: str, new_name: str) -> None:
        """Give a task another name.

        Raises:
            KeyError: an unknown task.
            TypeError, ValueError: ``new_name`` is not a name, or is the name of a task.
        """
        row = self.index(name)
        self.check_new("new_name", new_name)
        del self._rows[self.names[row]]
        self.names[row], self._rows[new_name] = new_name, row

    def check_new(self, argument: str, name: Any) -> None:
        """Raise unless ``name`` could be the name of a new task."""
        if not isinstance(name, str) or not name:
            raise TypeError(f"a name in `{argument}` must be a non-empty string, got {name!r}")
        if name in self._rows:
            raise ValueError(f"`{argument}` must not repeat a task, got {name!r}")

    def set_names(self, names: Sequence[str]) -> None:
        """Give all tasks, in order, these names."""
        assert len(names) == len(self.names)
        self.names[:] = names  # in place: others hold this list
        self._rows = {name: row for row, name in enumerate(names)}

    def append_name(self, name: str) -> None:
        """Give the next number to a task whose name was checked."""
        self._rows[name] = len(self.names)
        self.names.append(name)


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Initialise linear and bilinear layers so that they preserve the signal's variance.

    Biases start at 0. A ReLU is assumed before every layer except the first.
    """
    rng, gain = seeded(seed), 1.0
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Bilinear)):
            fan_in = math.prod(layer.weight.shape[1:])
            layer.weight.copy_(uniform(layer.weight.shape, gain / fan_in, rng))
            layer.bias.zero_()
            gain = 2.0
