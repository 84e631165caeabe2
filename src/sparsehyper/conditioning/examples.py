"""Tasks described by examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsehyper._util.checks import check_type, check_vector
from sparsehyper._util.inputs import as_tensor
from sparsehyper._util.modes import evaluation_mode
from sparsehyper.conditioning.base import TaskConditioner
from sparsehyper.conditioning.support import SupportSet

Draw = Callable[[str], tuple[Tensor, Tensor]]
"""From the name of a task to examples of it, ``[n, …]``, and their class numbers ``[n]``."""

_DRAWS = 8  # that a kept embedding is of
_FEWEST_TOGETHER, _TOGETHER = 4, 10  # tasks that are standardised by one another
_EPSILON = 1e-8  # added to a variance


class TaskExamples(TaskConditioner):
    """Embeddings computed from examples of each task, by a `SupportSet` that all tasks share.

    In training, the embedding of a task follows from examples that are drawn anew at every call. In
    evaluation it is the one that was kept: `sparsehyper.training.train` calls `renew` before each
    evaluation, as batch norms keep statistics; a loop of your own must call it. So a saved
    hypernetwork holds embeddings and no examples, and a new task needs no training:
    ``hnet.add_task(name, (x, y))``, and with a head in closed form ``hnet.solve_head(name,
    (x, y))``; or ``hnet(x, task=(xs, ys))``.

    What examples say of a task is small beside what all tasks have in common, so that a
    hypernetwork would learn one model for all. Where at least 4 tasks are drawn, their embeddings
    are therefore standardised: in training over 10 tasks, those of the batch and others drawn at
    random, as by a batch norm; otherwise by the mean and variance of all that `renew` keeps.

    ``task`` is a name, a number, an integer tensor ``[batch]`` of one task per sample, a pair of
    examples ``[n, …]`` and class numbers ``[n]``, tensors or arrays, or an embedding ``[dim]``.

    Args:
        support: what makes an embedding of examples.
        tasks: task names, or the number of tasks (whose names are then "0", "1", …).
        draw: from the name of a task to some of its examples and their class numbers, drawn with
            PyTorch's global generator. None keeps the embeddings in training too.

    Attributes:
        embeddings: Kept embeddings, a buffer ``[tasks, dim]``, at first zeros.
        mean, variance: What embeddings are standardised by, buffers ``[dim]``.

    Raises:
        TypeError, ValueError: no `SupportSet`, no function, no task or a repeated name.

    >>> support = SupportSet(torch.nn.Linear(5, 16), features=16, n_classes=2, dim=8)
    >>> tasks = TaskExamples(support, ["shoes", "bags"])
    >>> tasks.add("hats", (torch.randn(10, 5), torch.arange(10) % 2))
    >>> tasks(torch.tensor([2, 0])).shape
    torch.Size([2, 8])
    """

    kind = "task_examples"
    networks = ("support.encoder",)
    later: ClassVar[Mapping[str, float]] = {"mean": 0.0, "variance": 1.0}  # not standardised

    embeddings: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self, support: SupportSet, tasks: int | Sequence[str], draw: Draw | None = None
    ) -> None:
        check_type("support", support, SupportSet, "a SupportSet")
        if draw is not None and not callable(draw):
            raise TypeError(f"`draw` must be a function or None, got {draw!r}")
        super().__init__(tasks, support.dim)
        self.support, self.draw = support, draw
        # The name to draw by of each task; None of those whose embeddings were given, and stay.
        self._drawn_by: list[str | None] = [*self.names]
        self._trained = False  # whether mean and variance are of earlier weights
        self.register_buffer("embeddings", torch.zeros(len(self.names), self.dim))
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("variance", torch.ones(self.dim))

    def forward(self, task: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of task ids ``[batch]``."""
        draw = self.draw
        if not self.training or draw is None:
            return self._kept(task.long())
        names = [self._drawn_by[row] for row in task.tolist()]
        own = [name for name in names if name is not None]
        if not own:
            return self.embeddings[task.long()]
        others = self._others(own) if self._standardises else []
        pooled = torch.stack([self._pooled(draw(name)) for name in (*own, *others)])
        mean, variance = self.mean, self.variance
        if self._standardises:
            mean, variance = pooled.mean(0), pooled.var(0, correction=0)
            self._trained = True
        found = iter(_standardised(pooled[: len(own)], mean, variance))
        rows = [
            self.embeddings[row] if name is None else next(found)
            for row, name in zip(task.tolist(), names, strict=True)
        ]
        return torch.stack(rows)

    @property
    def _standardises(self) -> bool:
        """Whether enough tasks are drawn to standardise their embeddings."""
        return len(self._drawn_by) - self._drawn_by.count(None) >= _FEWEST_TOGETHER

    def _others(self, own: list[str]) -> list[str]:
        """Names of tasks to standardise those of a batch with, drawn at random."""
        others = [name for name in self._drawn_by if name is not None and name not in own]
        count = max(_TOGETHER - len(own), 0)
        return [others[i] for i in torch.randperm(len(others))[:count].tolist()]

    def of(self, examples: Any) -> Tensor:
        """The embedding ``[dim]`` of a pair of examples and class numbers."""
        return _standardised(self._pooled(examples), self.mean, self.variance)

    def _pooled(self, examples: Any) -> Tensor:
        """What the support set makes of examples, not standardised."""
        if (pair := _pair(examples)) is not None:
            examples = tuple(part.to(self.embeddings.device) for part in pair)
        return self.support.compute(examples, (), {})[0]

    def read(self, task: Any) -> Any:
        """As `TaskConditioner.read`; a pair of examples stays one."""
        return super().read(task) if (pair := _pair(task)) is None else pair

    def compute(
        self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, int | None]:
        """The embedding ``[dim]`` of a task, or of examples of one without a name."""
        if _pair(task) is None:
            return super().compute(task, args, kwargs)
        return self.of(task), None

    @torch.no_grad()
    def renew(self) -> None:
        """Keep the embeddings of the tasks that were trained, each of several draws together.

        The draws are always the same ones. Without ``draw``, and of tasks that were added or
        refined, they stay.
        """
        draw = self.draw
        if draw is None:
            return
        found: dict[int, Tensor] = {}
        with evaluation_mode(self.support), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            for row, name in enumerate(self._drawn_by):
                if name is not None:
                    parts = zip(*(draw(name) for _ in range(_DRAWS)), strict=True)
                    found[row] = self._pooled(tuple(map(torch.cat, parts)))
        if not found:
            return
        pooled = torch.stack([*found.values()]).to(self.embeddings)
        if self._trained and self._standardises:
            self.mean.copy_(pooled.mean(0))
            self.variance.copy_(pooled.var(0, correction=0))
            self._trained = False
        self.embeddings[list(found)] = _standardised(pooled, self.mean, self.variance)

    @torch.no_grad()
    def add(self, name: str, init: Any = "mean") -> None:
        """Add a task.

        Args:
            name: a new name.
            init: examples, as `of` takes them; an embedding ``[dim]``; or ``"mean"`` of those that
                are kept.

        Raises:
            TypeError, ValueError: ``name`` is not a name, or is the name of a task; or ``init`` is
                none of these, or gives no finite embedding.
        """
        self.check_new("name", name)
        if (pair := _pair(init)) is not None:
            with evaluation_mode(self.support):
                z = self.of(pair)
            if not bool(z.isfinite().all()):
                raise ValueError(
                    f"examples of {name!r} give an embedding that is not finite; look for NaN or "
                    "infinity in them"
                )
        elif isinstance(init, str) and init == "mean":
            z = self.embeddings.mean(0)
        elif isinstance(init, Tensor):
            check_vector("init", init, self.dim)
            z = init
        else:
            raise TypeError(
                f"`init` must be examples of {name!r}, a pair of a tensor or array [n, …] and "
                f"class numbers [n], an embedding [{self.dim}], or 'mean', got a "
                f"{type(init).__name__}"
            )
        self.embeddings = torch.cat([self.embeddings, z[None].to(self.embeddings)])
        self.append_name(name)
        self._drawn_by.append(None)

    @torch.no_grad()
    def refine(self, row: int, z: Tensor) -> None:
        """Keep the embedding z ``[dim]`` for the task with this number, which is drawn no more."""
        check_vector("z", z, self.dim)
        self.embeddings[row] = z
        self._drawn_by[row] = None

    def drop(self, row: int) -> None:
        """Drop the embedding of a task."""
        self.embeddings = torch.cat([self.embeddings[:row], self.embeddings[row + 1 :]])
        del self._drawn_by[row]

    def set_names(self, names: Sequence[str]) -> None:
        """As `TaskConditioner.set_names`; a drawn task of another name is drawn by that."""
        rows = zip(names, self.names, self._drawn_by, strict=True)
        self._drawn_by = [by if by is None or new == old else new for new, old, by in rows]
        super().set_names(names)

    def notes(self) -> dict[str, Any]:
        """The names that tasks are drawn by, and whether mean and variance wait for `renew`."""
        return {"drawn_by": self._drawn_by, "trained": self._trained}

    def take_notes(self, notes: Mapping[str, Any]) -> None:
        """As `Conditioner.take_notes`."""
        drawn_by = [*notes["drawn_by"]]
        if len(drawn_by) != len(self.names) or {*map(type, drawn_by)} - {str, type(None)}:
            raise ValueError(
                f"`drawn_by` must be a name or None for each of {len(self.names)} tasks, "
                f"got {drawn_by}"
            )
        self._drawn_by, self._trained = drawn_by, bool(notes["trained"])

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, without the encoder."""
        return {"kind": self.kind, "tasks": self.names, "support": self.support.to_config()}

    def _kept(self, rows: Tensor) -> Tensor:
        found = self.embeddings[rows]
        kept = found.any(1).all() or not (self.variance == 1).all()
        if self.draw is not None and not bool(kept):
            raise RuntimeError(
                "the embeddings of tasks were never kept; call `hnet.conditioner.renew()` after "
                "training and before evaluation, as `sparsehyper.training.train` does; to train, "
                "call `hnet.train()` first"
            )
        return found


def _standardised(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (z - mean) / (variance + _EPSILON).sqrt()


def _pair(task: Any) -> tuple[Tensor, Tensor] | None:
    """Examples and class numbers, tensors with a dimension of samples; None if it is no pair."""
    if not isinstance(task, (tuple, list)) or len(task) != 2:
        return None
    x, y = map(as_tensor, task)
    tensors = all(isinstance(part, Tensor) and part.ndim > 0 for part in (x, y))
    return (x, y) if tensors else None
