"""The reader's own data and measures, in the forms that the loop works with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsehyper._util.inputs import Inputs, as_tensor
from sparsehyper._util.objectives import check_class_numbers, sample_losses, value_as_given
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
    """

    loss: Measure | None = None
    metric: Measure | None = None

    def check_labels(self, y: Tensor) -> None:
        """Raise ``ValueError`` if labels have no cross entropy; before they go to a device."""
        if self.loss is None:
            check_class_numbers(y)

    def losses(self, out: Any, y: Tensor, classes: int | Tensor | None = None) -> Tensor:
        """The loss of each sample, ``[batch]``; classes as for `mask_classes`."""
        if self.loss is None:
            return sample_losses(out, y, classes)
        return _each(value_as_given(out, y, self.loss, "loss"), y)

    def scores(self, out: Any, y: Tensor, losses: Tensor) -> Tensor:
        """The ``metric`` of each sample, or minus its loss, ``[batch]``."""
        if self.metric is None:
            return -losses
        return _each(value_as_given(out, y, self.metric, "metric"), y)


class Passes:
    """A stream that passes over an iterable of batches again and again.

    Args:
        batches: gives batches as `train` takes them.
        names: names of the tasks, by which a batch may call them.
    """

    def __init__(self, batches: Iterable[Any], names: Sequence[str]) -> None:
        self._batches, self._names = batches, names
        self._pass: Iterator[Any] = iter(())
        # Without a length, all passes count as one.
        self.steps_per_epoch = max(1, len(batches)) if isinstance(batches, Sized) else sys.maxsize

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
        return _read(found, self._names)


class ByTask:
    """The batches of an iterable, taken apart by task and kept in memory.

    Args:
        batches: gives batches as `train` takes them.
        names: names of the tasks.
    """

    def __init__(self, batches: Iterable[Any], names: Sequence[str]) -> None:
        self._kept: list[list[tuple[Inputs, Tensor, Tensor]]] = [[] for _ in names]
        for batch in batches:
            x, y, task = _read(batch, names)
            for number in task.unique().tolist():
                rows = (task == number).nonzero()[:, 0]
                self._kept[number].append((x[rows], y[rows], task[rows]))
        self.counts = [sum(len(y) for _, y, _ in own) for own in self._kept]

    def batches(
        self,
        task: int,
        batch_size: int,  # noqa: ARG002
    ) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        """All samples of a task, in the batches they came in."""
        return iter(self._kept[task])


def condition(model: nn.Module, task: Any) -> dict[str, Any]:
    """The argument ``task`` of a model; none of a hypernetwork that knows no tasks."""
    takes_tasks = not isinstance(model, HyperNetwork) or model.task_names
    return {"task": task} if takes_tasks else {}


def known_names(names: Sequence[str] | None, model: nn.Module) -> Sequence[str]:
    """``names``, or those of the tasks that the model knows."""
    if names is None and isinstance(model, HyperNetwork) and model.task_names:
        return model.task_names
    if names is None:
        raise ValueError("`names` must name the tasks of the batches, as the `model` does not")
    return names


def _read(batch: Any, names: Sequence[str]) -> tuple[Inputs, Tensor, Tensor]:
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
    rows = {name: i for i, name in enumerate(names)}
    numbers = [task_index(t, rows) for t in (task.tolist() if hasattr(task, "tolist") else task)]
    return x, y, torch.tensor(numbers)


def _each(value: Tensor, y: Tensor) -> Tensor:
    return value.expand(len(y)) if value.ndim == 0 else value
