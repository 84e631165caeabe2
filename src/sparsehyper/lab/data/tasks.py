"""Tasks over the images of one source: `TaskSet`, its splits and their batches.

Images are held once, as uint8. A task is a list of rows, a label for each row, and a variant. The
images may be on a GPU, where batches are then made; which images a batch has is decided on the CPU.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.checks import (
    LARGEST_SIDE,
    check_integer,
    check_number,
    check_type,
    is_whole,
)
from sparsehyper._util.devices import to_device
from sparsehyper._util.objectives import squares_within, variance_within
from sparsehyper._util.random import seeded
from sparsehyper._util.text import listed
from sparsehyper.lab.data.columns import Columns
from sparsehyper.lab.data.source import Images, Task
from sparsehyper.lab.data.transforms import Transform
from sparsehyper.training.evaluate import ACCURACY, METRIC, R_SQUARED


class Batch(NamedTuple):
    """Images of one or several tasks; images and labels on the device of the split's images."""

    x: Tensor  # float32 [batch, C, H, W], normalised, [batch, features], or [batch, C, steps]
    y: Tensor  # int64 [batch], class number within the task; or numbers, float32 [batch, 1]
    task: Tensor  # int64 [batch], on the CPU


@dataclass(frozen=True)
class TaskInfo:
    """The names, classes and image statistics of tasks, without the images.

    Attributes:
        names: task names, unique.
        classes: class names of each task, in the order of its labels.
        image_shape: channels, height, width; of rows of a table the number of features alone, and
            of sequences channels and steps.
        mean: mean of the training images in [0, 1], per channel; a model takes
            ``(image / 255 - mean) / std``.
        std: standard deviation per channel; 1 for a constant channel. A table has neither.
        fingerprint: hash of everything that a batch can depend on, 16 hex digits.
        columns: how the rows of a table become inputs; None for images.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    columns: Columns | None = None

    @property
    def n_classes(self) -> list[int]:
        """Number of classes of each task."""
        return [len(names) for names in self.classes]

    @property
    def are_numbers(self) -> bool:
        """Whether what is predicted are numbers, and no classes."""
        return self.columns is not None and self.columns.scaling is not None

    @property
    def score(self) -> str:
        """Name of the measure in `Evaluation.accuracies`: ``"accuracy"`` or ``"R²"``."""
        return R_SQUARED if self.are_numbers else ACCURACY

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        values = {field.name: getattr(self, field.name) for field in fields(TaskInfo)}
        if self.columns is None:
            del values["columns"]  # records from before there were tables lack it
        else:
            values["columns"] = self.columns.to_dict()
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TaskInfo:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or invalid.
        """
        check_type("tasks", values, Mapping, "an object")
        for key in ("names", "classes", "image_shape", "mean", "std"):
            check_type(key, values[key], (list, tuple), "a list")
        names, classes, shape = values["names"], values["classes"], values["image_shape"]
        given = values.get("columns")
        columns = None if given is None else Columns.from_dict(given)
        sizes = 3 if columns is None else len(columns.shape)
        if not names or len(names) != len(classes) or not all(classes) or len(shape) != sizes:
            raise ValueError(
                "`classes` must have one entry, not empty, for each of one or more tasks, and "
                f"`image_shape` {sizes} numbers; got {len(classes)} for {len(names)} and {shape}"
            )
        if columns is not None and columns.shape != tuple(shape):
            raise ValueError(f"`image_shape` must be {list(columns.shape)}, got {shape}")
        for of_task in classes:
            check_type("classes", of_task, (list, tuple), "lists of names")
        for name in (*names, *chain(*classes), values["fingerprint"]):
            check_type("names", name, str, "strings")
        for size in shape:
            most = LARGEST_SIDE if columns is None else max(columns.shape)
            check_integer("image_shape", size, minimum=1, maximum=most)
        for key in ("mean", "std"):
            if len(values[key]) != (shape[0] if columns is None else 0):
                raise ValueError(f"`{key}` must have {shape[0]} numbers, got {values[key]!r}")
            for number in values[key]:
                check_number(key, number, minimum=0)
        return TaskInfo(
            tuple(names),
            tuple(map(tuple, classes)),
            tuple(shape),
            tuple(values["mean"]),
            tuple(values["std"]),
            values["fingerprint"],
            columns,
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert uint8 images ``[n, C, H, W]`` to the float32 input that a model takes.

        Rows and sequences of a table are that input already.
        """
        if self.columns is not None:
            return pixels
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskSet(TaskInfo):
    """Tasks over the same images or the same table, ready to train on.

    `make_tasks` makes those of images, `load_table` those of a table.

    Attributes:
        copies_dropped: number of training images dropped because the test images, or validation
            images that the source itself has, contain them too.
        train: training images.
        val: validation images.
        test: test images.
    """

    copies_dropped: int
    train: TaskSplit
    val: TaskSplit
    test: TaskSplit

    @property
    def score(self) -> str:
        """As in `TaskInfo`; ``"metric"``, minus the loss, where R² has no `variance`."""
        return METRIC if self.are_numbers and self.variance is None else super().score

    @cached_property
    def variance(self) -> float | None:
        """Variance of the training rows' targets within tasks, which R² compares errors with.

        None of classes, and where no task has two that differ.
        """
        if not self.are_numbers:
            return None
        counts = self.train.counts
        squares = sum(float(squares_within(self.train.labels(i))) for i in range(len(counts)))
        return variance_within(squares, counts)

    __eq__ = object.__eq__  # not that of what is known of them, as images may differ
    __hash__ = object.__hash__

    def select(self, names: Sequence[str]) -> TaskSet:
        """Select some of the tasks, in the order given; the images are not copied.

        Raises:
            KeyError: an unknown task.
            ValueError: no task.
        """
        rows = {name: row for row, name in enumerate(self.names)}
        for name in names:
            if name not in rows:
                raise KeyError(f"unknown task {name!r}; the tasks are: {listed(self.names)}")
        if not names:
            raise ValueError("`names` must name at least one task, got none")
        chosen = [rows[name] for name in names]
        digest = blake2b(json.dumps([self.fingerprint, list(names)]).encode(), digest_size=8)
        return replace(
            self,
            names=tuple(names),
            classes=tuple(self.classes[i] for i in chosen),
            fingerprint=digest.hexdigest(),
            train=self.train.select(chosen),
            val=self.val.select(chosen),
            test=self.test.select(chosen),
        )

    def to(self, device: torch.device) -> TaskSet:
        """The same tasks with their images on a device, where batches are then made.

        Images that would take up more than half of a GPU's free memory stay where they are;
        training moves their batches one by one.
        """
        parts = {part: getattr(self, part) for part in ("train", "val", "test")}
        held = {id(split.pixels): split.pixels for split in parts.values()}
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(pixels.nbytes for pixels in held.values()) > free / 2:
                return self
        moved = {key: pixels.to(device) for key, pixels in held.items()}
        splits = {part: split.with_pixels(moved[id(split.pixels)]) for part, split in parts.items()}
        return replace(self, **splits)

    def describe(self) -> list[dict[str, Any]]:
        """One row per task: its name, its classes, and its number of images in each split."""
        columns = zip(
            self.names,
            self.classes,
            self.train.counts,
            self.val.counts,
            self.test.counts,
            strict=True,
        )
        keys = ("task", "classes", "train", "val", "test")
        return [dict(zip(keys, column, strict=True)) for column in columns]


class TaskSplit:
    """The images of one split, task by task; from a `TaskSet`.

    Attributes:
        pixels: all images that the source has for this split, uint8 ``[n, C, H, W]``.
        counts: number of images of each task.
        image_shape: channels, height, width.
    """

    counts: tuple[int, ...]
    image_shape: tuple[int, ...]
    pixels: Tensor

    def __init__(
        self,
        images: Images,
        rows: Tensor,
        tasks: Sequence[Task],
        transform: Transform | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.image_shape = (images.pixels.shape[1], images.pixels.shape[2], images.pixels.shape[3])
        self.pixels = images.pixels
        self._transform = transform
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)
        self._variant = torch.tensor([task.variant for task in tasks])

        by_class = _rows_by_class(images.labels, rows)
        pools: dict[tuple[int, ...], tuple[int, int]] = {}  # tasks with the same classes share one
        pool_rows, pool_labels, size = [], [], 0
        for task in tasks:
            if task.classes not in pools:
                members = [by_class.get(c, rows[:0]) for c in task.classes]
                sizes = torch.tensor([len(m) for m in members])
                labels = torch.arange(len(members)).repeat_interleave(sizes)
                joined, order = torch.cat(members).sort()
                pools[task.classes] = (size, len(joined))
                pool_rows.append(joined)
                pool_labels.append(labels[order])
                size += len(joined)
        self._rows = torch.cat(pool_rows)
        self._labels = torch.cat(pool_labels)
        self._starts = torch.tensor([pools[task.classes][0] for task in tasks])
        self.counts = tuple(pools[task.classes][1] for task in tasks)
        self._counts = torch.tensor(self.counts)

    def select(self, tasks: Sequence[int]) -> TaskSplit:
        """Select some of the tasks by number, in the order given."""
        chosen = torch.tensor(tasks)
        split = copy.copy(self)
        split.counts = tuple(self.counts[i] for i in tasks)
        split._starts, split._counts = self._starts[chosen], self._counts[chosen]
        split._variant = self._variant[chosen]
        return split

    def among(self, chosen: Tensor) -> TaskSplit:
        """Select some of the images, for all tasks.

        Args:
            chosen: bool ``[n]``, whether to keep each of ``pixels``.

        Raises:
            ValueError: a task is left without images.
        """
        kept = chosen[self._rows]
        before = F.pad(kept.cumsum(0), (1, 0))
        split = copy.copy(self)
        split._rows, split._labels = self._rows[kept], self._labels[kept]
        split._starts = before[self._starts]
        split._counts = before[self._starts + self._counts] - split._starts
        split.counts = tuple(split._counts.tolist())
        if 0 in split.counts:
            raise ValueError(
                f"`chosen` must keep an image of every task, got none for {split.counts.index(0)}"
            )
        return split

    def with_pixels(self, pixels: Tensor) -> TaskSplit:
        """The same split with the same images, ``pixels``, in another place."""
        split = copy.copy(self)
        split.pixels = pixels
        split._mean, split._std = self._mean.to(pixels.device), self._std.to(pixels.device)
        if self._transform is not None:
            split._transform = type(self._transform)(self._transform.settings.to(pixels.device))
        return split

    def places(self, task: Tensor, index: Tensor) -> Tensor:
        """Where the images of some tasks stand in the list of all tasks' images.

        Raises:
            ValueError: a task or an index is out of range.
        """
        task = _numbers("task", task, len(self.counts))
        return self._starts[task] + _numbers("index", index, self._counts[task])

    def labels(self, task: int) -> Tensor:
        """Class numbers of all images of a task, int64 ``[count]``; or the numbers of all rows."""
        start = int(self._starts[task])
        return self._labels[start : start + self.counts[task]]

    def batch(
        self, task: Tensor, index: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> Batch:
        """Images by task and index.

        Args:
            task: task numbers ``[batch]``.
            index: image numbers ``[batch]``, each in ``0..counts[task] - 1``.
            augment: augmentation of the uint8 images ``[batch, C, H, W]``, applied first, on the
                device of the images; it may return new float32 ones, in 0..255.

        Raises:
            ValueError: a task or an index is out of range.
        """
        place, task = self.places(task, index), task.long()
        numbers = torch.stack([self._rows[place], self._labels[place], self._variant[task]])
        rows, labels, variant = to_device(numbers, self.pixels.device)
        x = self.pixels[rows]
        if augment is not None:
            x = augment(x)
        x = x.float().div_(255)
        if self._transform is not None:
            x = self._transform(x, variant)
        x = x.sub_(self._mean).div_(self._std)
        return Batch(x, labels, task)

    def batches(self, task: int, batch_size: int) -> Iterator[Batch]:
        """All images of a task once, in order; the last batch may be smaller."""
        check_integer("batch_size", batch_size, minimum=1)
        _numbers("task", torch.tensor([task]), len(self.counts))
        for start in range(0, self.counts[task], batch_size):
            index = torch.arange(start, min(start + batch_size, self.counts[task]))
            yield self.batch(torch.full_like(index, task), index)


def images_of(split: TaskSplit, task: int, most: int) -> tuple[Tensor, Tensor]:
    """At most ``most`` images of a task, spread evenly over it, and their classes."""
    count = split.counts[task]
    index = torch.linspace(0, count - 1, min(most, count)).long()
    x, y, _ = split.batch(torch.full_like(index, task), index)
    return x, y


def shots_of(split: TaskSplit, task: int, shots: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """The first ``shots`` images of each class of a task, in an order drawn from the seed.

    ``shots`` is None for all images.
    """
    labels = split.labels(task)
    order = torch.randperm(len(labels), generator=seeded(seed))
    sorted_labels = labels[order]
    chosen = torch.cat([order[sorted_labels == c][:shots] for c in labels.unique()])
    x, y, _ = split.batch(torch.full_like(chosen, task), chosen)
    return x, y


def _rows_by_class(labels: Tensor, rows: Tensor) -> dict[int, Tensor]:
    own = labels[rows]
    order = own.argsort(stable=True)
    classes, sizes = own[order].unique_consecutive(return_counts=True)
    parts = rows[order].split(sizes.tolist())
    return dict(zip(classes.tolist(), parts, strict=True))


def _numbers(argument: str, value: Tensor, stop: int | Tensor) -> Tensor:
    """Convert integers to int64; raise ``ValueError`` unless each is in ``[0, stop)``."""
    if not is_whole(value) or value.ndim != 1:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"`{argument}` must be integers [batch], got {found}")
    value = value.long()
    wrong = ((value < 0) | (value >= stop)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        limit = stop if isinstance(stop, int) else int(stop[at])
        raise ValueError(f"`{argument}` must be in 0..{limit - 1}, got {int(value[at])}")
    return value
