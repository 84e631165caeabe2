"""The samples of new tasks: gathered, checked and divided into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.checks import check_integer, class_numbers
from sparsehyper._util.classifiers import mask_classes
from sparsehyper._util.random import seeded
from sparsehyper.hypernetwork import HyperNetwork

Samples = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
"""Inputs ``[n, …]`` and labels ``[n, …]``, or batches of both; all are kept in memory."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Function of outputs and labels of n samples; returns the loss of each sample, ``[n]``."""


@dataclass(frozen=True)
class TaskSamples:
    """All samples of one task.

    Attributes:
        name: task name.
        x, y: inputs and labels.
        n_classes: number of classes; 0 if labels are not class numbers.
    """

    name: str
    x: Tensor
    y: Tensor
    n_classes: int

    @classmethod
    def of(
        cls,
        name: str,
        samples: Samples,
        n_classes: int | None,
        are_classes: bool,
        device: torch.device,
        seed: int = 0,
    ) -> TaskSamples:
        """Gather samples, check, move and shuffle them, and interleave their classes.

        Args:
            name: task name.
            samples: the samples.
            n_classes: number of classes; None for the largest label plus one.
            are_classes: whether labels must be class numbers.
            device: device to move the samples to.
            seed: seed of the shuffle.
        """
        batches: list[Any] = [samples] if _is_pair(samples) else list(samples)
        if not batches or not all(map(_is_pair, batches)):
            wrong = next((batch for batch in batches if not _is_pair(batch)), None)
            found = repr(type(wrong).__name__) if batches else "nothing"
            if _is_single(wrong):
                found = "single samples; wrap a data set in a DataLoader"
            raise ValueError(
                f"the samples of task {name!r} must be a pair of tensors (x, y), or batches of "
                f"them, got {found}"
            )
        x, y = batches[0] if len(batches) == 1 else map(torch.cat, zip(*batches, strict=True))
        x, y = x.to(device), y.to(device)
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"task {name!r} needs at least one sample, and as many inputs as labels, got "
                f"{len(x)} and {len(y)}"
            )
        order = torch.randperm(len(x), generator=seeded(seed)).to(device)
        x, y = x[order], y[order]
        if not are_classes:
            return cls(name, x, y, 0)
        y = class_numbers(f"labels of task {name!r}", y, len(x), "; give a `loss` for others")
        classes = int(y.max()) + 1 if n_classes is None else n_classes
        if int(y.min()) == int(y.max()):
            raise ValueError(
                f"task {name!r} needs samples of at least 2 classes, got {int(y.min())} alone"
            )
        check_integer("n_classes", classes, minimum=2, context=f" for task {name!r}")
        if int(y.max()) >= classes:
            raise ValueError(
                f"labels of task {name!r} must be below its {classes} classes, got {int(y.max())}"
            )
        order = _interleaved(y)
        return cls(name, x[order], y[order], classes)


class SampleBatches:
    """Batches of a task's samples, reshuffled when fewer are left than a batch needs."""

    def __init__(self, task: TaskSamples, batch_size: int, seed: int) -> None:
        self._task = task
        self._count = min(len(task.x), batch_size)
        self._rng = seeded(seed)
        self._left = torch.empty(0, dtype=torch.long)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next inputs and labels."""
        x, y = self._task.x, self._task.y
        if self._count == len(x):
            return x, y
        if len(self._left) < self._count:
            self._left = torch.randperm(len(x), generator=self._rng)
        place, self._left = self._left.split([self._count, len(self._left) - self._count])
        place = place.to(x.device)
        return x[place], y[place]


def gather(
    hnet: HyperNetwork,
    tasks: Mapping[str, Samples],
    n_classes: int | Mapping[str, int] | None,
    are_classes: bool,
    seed: int,
) -> list[TaskSamples]:
    """The samples of new tasks, checked.

    Args:
        hnet: the hypernetwork that gets the tasks.
        tasks: samples of each.
        n_classes: number of classes of all, or of each by name; None for the largest label plus
            one.
        are_classes: whether labels must be class numbers.
        seed: seed of the shuffle.
    """
    check_named("tasks", tasks)
    if not tasks:
        raise ValueError("`tasks` must name at least one new task, got none")
    for name in tasks:
        hnet.check_fit(name)
    if not (n_classes is None or isinstance(n_classes, (int, Mapping))):
        raise TypeError(f"`n_classes` must be a number, or map names to them, got {n_classes!r}")
    counts = n_classes if isinstance(n_classes, Mapping) else dict.fromkeys(tasks, n_classes)
    for name in counts:
        if name not in tasks:
            raise ValueError(f"`n_classes` names {name!r}, which is not a new task")
    device = hnet.target.moments.device
    return [
        TaskSamples.of(name, samples, counts.get(name), are_classes, device, seed)
        for name, samples in tasks.items()
    ]


def check_named(argument: str, tasks: Any) -> None:
    """Raise ``TypeError`` unless samples are given by the names of tasks."""
    if not isinstance(tasks, Mapping):
        raise TypeError(
            f"`{argument}` must map each new task's name to its samples, as in "
            f'{{"hats": (x, y)}}, got a {type(tasks).__name__}'
        )


def pieces(task: TaskSamples, size: int) -> list[tuple[Tensor, Tensor]]:
    """Divide the samples into pieces of about equal size, at most ``size``."""
    count = -(-len(task.x) // size)
    return list(zip(task.x.tensor_split(count), task.y.tensor_split(count), strict=True))


def check_outputs(outputs: Any, tasks: Iterable[TaskSamples], module: str, remedy: str) -> None:
    """Raise ``ValueError`` unless outputs are logits with enough classes for the tasks.

    Args:
        outputs: outputs of a module.
        tasks: tasks to classify.
        module: name of the module, for the error.
        remedy: advice for too few outputs, for the error.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        found = list(outputs.shape) if isinstance(outputs, Tensor) else repr(type(outputs).__name__)
        raise ValueError(
            f"the {module} must return logits [n, outputs], got {found}; give a `loss`"
        )
    for task in tasks:
        if task.n_classes > outputs.shape[1]:
            raise ValueError(
                f"task {task.name!r} has {task.n_classes} classes, the {module} has "
                f"{outputs.shape[1]} outputs; {remedy}"
            )


def losses_of(outputs: Any, y: Tensor, n_classes: int | Tensor, loss: Loss | None) -> Tensor:
    """The loss of each sample, ``[n]``.

    Args:
        outputs: outputs of a model.
        y: labels.
        n_classes: as `mask_classes` takes it, for the default loss.
        loss: a loss of the caller's own; None for cross entropy.
    """
    if loss is None:
        return F.cross_entropy(mask_classes(outputs, n_classes), y, reduction="none")
    each = loss(outputs, y)
    if each.shape != y.shape[:1]:
        # Write n, as the caller does not know how many samples run together.
        found = ", ".join("n" if size == len(y) else str(size) for size in each.shape)
        raise ValueError(
            f"`loss` must return the losses [n] of n samples, got shape [{found}]; "
            "PyTorch's own do with reduction='none'"
        )
    return each


@contextmanager
def with_gradients() -> Iterator[None]:
    """Context in which gradients are enabled, even if the caller has disabled them."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "fitting takes gradients, which `torch.inference_mode()` rules out; call it outside, "
            "or within `torch.no_grad()`"
        )
    with torch.enable_grad():
        yield


def _interleaved(y: Tensor) -> Tensor:
    """The order that interleaves the classes, as long as each has samples left."""
    by_class = y.argsort(stable=True)
    _, counts = y[by_class].unique_consecutive(return_counts=True)
    turn = torch.empty_like(by_class)
    turn[by_class] = torch.cat([torch.arange(n, device=y.device) for n in counts.tolist()])
    return turn.argsort(stable=True)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(part, Tensor) and part.ndim for part in value)
    )


def _is_single(value: Any) -> bool:
    """Whether it is a single sample of a data set, an input and one label."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and (isinstance(value[1], int) or (isinstance(value[1], Tensor) and not value[1].ndim))
    )
