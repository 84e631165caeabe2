"""The reader's own data and measures, in the forms that the loop works with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsehyper._util.classifiers import mask_classes
from sparsehyper._util.inputs import Inputs, as_tensor
from sparsehyper._util.objectives import (
    check_class_numbers,
    mean_weight,
    sample_losses,
    value_as_given,
)
from sparsehyper._util.tasks import task_index
from sparsehyper._util.text import listed
from sparsehyper.hypernetwork import HyperNetwork

Measure = Callable[[Any, Tensor], Tensor]
"""From a model's output and y to one number for each sample ``[batch]``, or to their mean."""


@dataclass(frozen=True)
class Measures:
    """What is minimised, and what says which evaluation is the best.

    Args:
        loss: None for the cross entropy of class numbers, or the mean squared error of numbers.
        metric: higher is better; None for minus the loss.
        n_classes: number of classes of each task; None for as many as there are outputs.
    """

    loss: Measure | None = None
    metric: Measure | None = None
    n_classes: Sequence[int] | None = None

    def check_labels(self, y: Tensor, classes: int | Tensor | None = None) -> None:
        """Raise ``ValueError`` if labels have no cross entropy; before they go to a device."""
        if self.loss is None:
            check_class_numbers(y, classes)

    def losses(self, out: Any, y: Tensor, classes: int | Tensor | None = None) -> Tensor:
        """The loss of each sample, ``[batch]``; classes as for `mask_classes`."""
        if self.loss is None:
            return sample_losses(out, y, classes)
        classes = self._restricting(out, classes)
        if classes is not None and getattr(self.loss, "label_smoothing", False):
            raise ValueError(
                "`loss` spreads its `label_smoothing` over all outputs, those beyond `n_classes` "
                "too; leave out one of both"
            )
        return _each(value_as_given(_masked(out, y, classes), y, self.loss, "loss"), y)

    def _restricting(self, out: Any, classes: int | Tensor | None) -> int | Tensor | None:
        """The classes; None if no task has fewer than there are outputs."""
        outputs = out.shape[-1] if isinstance(out, Tensor) and out.ndim else sys.maxsize
        fewest = min(self.n_classes, default=0) if self.n_classes is not None else 0
        return None if fewest >= outputs else classes

    def total(self, losses: Tensor, y: Tensor) -> tuple[Tensor, Tensor | int]:
        """The sum of the losses of samples, and by what to divide sums for their mean."""
        weight = None if self.loss is None else mean_weight(self.loss, y)
        if weight is None:
            return losses.sum(), len(y)
        return torch.where(weight > 0, losses.mean() * weight, 0), weight

    def scores(self, out: Any, y: Tensor, classes: int | Tensor | None = None) -> Tensor:
        """The ``metric`` of each sample, ``[batch]``."""
        assert self.metric is not None
        classes = self._restricting(out, classes)
        return _each(value_as_given(_masked(out, y, classes), y, self.metric, "metric"), y)


@dataclass(frozen=True)
class Tasks:
    """The tasks of some data, and how a model knows them; made by `Tasks.of`.

    A number in the data is a position in ``named``. A plain model is called with this number; a
    hypernetwork knows its tasks by name, and has a number of its own for each.

    Attributes:
        named: names of the tasks of the data, in order.
        known: these, and then other tasks that the model knows.
        numbers: the model's number for each of ``known``, ``[known]``.
    """

    named: tuple[str, ...]
    known: tuple[str, ...]
    numbers: Tensor

    @classmethod
    def of(cls, names: Sequence[str] | None, model: nn.Module, count: int | None = None) -> Tasks:
        """The tasks that are named; by default all that the model knows.

        Args:
            names: names of the tasks, or None.
            model: the model.
            count: number of tasks of the data, which "task 0", … are if nothing names them; None if
                it has to follow from the names.

        Raises:
            ValueError: nothing names them, or not as many as there are.
            KeyError: a hypernetwork does not know one of the names.
        """
        own = model.task_names if isinstance(model, HyperNetwork) else ()
        if names is None and own and count not in (None, len(own)):
            raise ValueError(
                f"`names` must name the {count} tasks of the data, as the `model` knows "
                f"{len(own)}: {listed(own)}"
            )
        if names is None and not own and count is None:
            raise ValueError("`names` must name the tasks of the batches, as the `model` does not")
        if names is None:
            names = own or [f"task {i}" for i in range(count or 0)]
        named = tuple(names)
        if not own:
            return cls(named, named, torch.arange(len(named)))
        rows = {name: i for i, name in enumerate(own)}
        known = (*named, *(name for name in own if name not in named))
        return cls(named, known, torch.tensor([task_index(name, rows) for name in known]))

    @cached_property
    def _as_numbered(self) -> bool:
        return self.numbers.tolist() == list(range(len(self.numbers)))

    def numbered(self, task: Tensor, count: int) -> Tensor:
        """The model's numbers for positions in ``known``, ``[batch]``.

        Args:
            task: the positions.
            count: of how many tasks these may be.

        Raises:
            IndexError: a position is none of these tasks. Where a model's numbers are the positions
                in ``named``, it is left to the model to say so.
        """
        if self._as_numbered and len(self.named) == len(self.known):
            return task  # on a device it is not looked at, which would wait for it
        if len(task) and not 0 <= int(task.min()) <= int(task.max()) < count:
            raise IndexError(
                f"`task` must be in [0, {count}), a position in `names`, got "
                f"{task.unique().tolist()}"
            )
        return self.numbers.to(task.device)[task]


class Passes:
    """A stream that passes over an iterable of batches again and again.

    Args:
        batches: gives batches as `train` takes them.
        tasks: the tasks of the batches.
    """

    def __init__(self, batches: Iterable[Any], tasks: Tasks) -> None:
        self._batches, self._tasks = batches, tasks
        self._pass: Iterator[Any] = iter(())
        try:
            self.steps_per_epoch = max(1, len(batches))  # type: ignore[arg-type]
        except TypeError:  # without a length, as of a DataLoader of a stream, one pass is all
            self.steps_per_epoch = sys.maxsize

    def batch(self, epoch: int, step: int) -> tuple[Inputs, Tensor, Tensor]:  # noqa: ARG002
        """The next batch."""
        found = next(self._pass, None)
        if found is None:
            self._pass = iter(self._batches)
            found = next(self._pass, None)
        if found is None:
            raise ValueError(
                "`batches` gave no batch in a pass; it must be iterable over again, such as a "
                "list or a DataLoader, and not empty"
            )
        return _read(found, self._tasks.named, self._tasks.known)


class ByTask:
    """The samples of an iterable of batches, task by task, kept in memory.

    Args:
        batches: gives batches as `train` takes them.
        names: names of the tasks.
    """

    def __init__(self, batches: Iterable[Any], names: Sequence[str]) -> None:
        kept: list[_Kinds] = [{} for _ in names]
        for batch in batches:
            x, y, task = _read(batch, names, names)
            for number in task.unique().tolist():
                rows = (task == number).nonzero()[:, 0]
                kept[number].setdefault(_kind(x, y), []).append((x[rows], y[rows]))
        self._kept: list[list[tuple[Inputs, Tensor]]] = []
        while kept:  # not all twice in memory
            self._kept.append([_joined(some) for some in kept.pop(0).values()])
        self.counts = [sum(len(y) for _, y in own) for own in self._kept]

    def batches(self, task: int, batch_size: int) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        """All samples of a task; in each batch samples of one shape."""
        for x, y in self._kept[task]:
            for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
                yield part, labels, torch.full([len(labels)], task)


def condition(model: nn.Module, task: Any) -> dict[str, Any]:
    """The argument ``task`` of a model; none of a hypernetwork that knows no tasks."""
    takes_tasks = not isinstance(model, HyperNetwork) or model.task_names
    return {"task": task} if takes_tasks else {}


_Kinds = dict[Hashable, list[tuple[Inputs, Tensor]]]
"""Inputs and labels by their `_kind`."""


def _kind(x: Inputs, y: Tensor) -> Hashable:
    """What samples must have in common to be in one batch."""
    shapes = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in (*x.tensors, y))
    return shapes, repr(x.with_tensors([None] * len(x.tensors)))


def _joined(some: Sequence[tuple[Inputs, Tensor]]) -> tuple[Inputs, Tensor]:
    return Inputs.cat([x for x, _ in some]), torch.cat([y for _, y in some])


def _masked(out: Any, y: Tensor, classes: int | Tensor | None) -> Any:
    """Outputs for a loss or metric of one's own, -inf beyond the classes of a task."""
    if classes is None:
        return out
    if not isinstance(out, Tensor) or out.ndim != 2 or y.is_floating_point():
        found = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ValueError(
            "`n_classes` is for class numbers and logits [batch, outputs], got labels "
            f"{y.dtype} {list(y.shape)} and outputs {found}; leave it out"
        )
    return mask_classes(out, classes)


def _read(batch: Any, named: Sequence[str], known: Sequence[str]) -> tuple[Inputs, Tensor, Tensor]:
    """Inputs, labels and positions in ``known``; a number is one in ``named``, its beginning."""
    if isinstance(batch, Mapping) and {"labels", "task"} <= set(batch):
        given = {key: value for key, value in batch.items() if key not in ("labels", "task")}
        batch = given, batch["labels"], batch["task"]
    if not isinstance(batch, list | tuple) or len(batch) != 3:
        found = f"a dict of {listed(batch)}" if isinstance(batch, Mapping) else f"a {type(batch)}"
        raise TypeError(
            "a batch must be (x, y, task), or a dict with 'labels' and 'task' beside the "
            f"arguments of the model, got {found}"
        )
    x, y, task = Inputs.of(batch[0], "the inputs of a batch"), as_tensor(batch[1]), batch[2]
    if not isinstance(y, Tensor) or not y.ndim or len(y) != len(x):
        what = list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise TypeError(
            f"a batch's labels must be a tensor or an array with its {len(x)} samples along the "
            f"first dimension, got {what}"
        )
    if isinstance(task, str) or np.ndim(task) == 0:
        task = [task] * len(y)
    elif np.ndim(task) > 1 or len(task) != len(y):
        raise ValueError(
            f"a batch's `task` must name its {len(y)} samples, [{len(y)}], got shape "
            f"{list(np.shape(task))}"
        )
    rows, first = ({name: i for i, name in enumerate(names)} for names in (known, named))
    each = task.tolist() if hasattr(task, "tolist") else task
    return x, y, torch.tensor([task_index(t, rows if isinstance(t, str) else first) for t in each])


def _each(value: Tensor, y: Tensor) -> Tensor:
    return value.expand(len(y)) if value.ndim == 0 else value
