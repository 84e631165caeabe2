"""Tasks from a table: one column names the task of each row, and another is to be predicted.

The rows of every task are divided into training, validation and test rows; copies of a row stay
together. A target of numbers makes a regression, whose one output has the column's name; a target
of classes makes a classification with the same classes in all tasks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsehyper._util.devices import to_device
from sparsehyper.lab.data.columns import (
    Columns,
    Table,
    check_complete,
    column_of,
    is_numbers,
    read_table,
)
from sparsehyper.lab.data.folder import TEST_FRACTION, LabelledTask
from sparsehyper.lab.data.source import Images
from sparsehyper.lab.data.splits import hold_out
from sparsehyper.lab.data.tasks import Batch, TaskSet, TaskSplit


class RowSplit(TaskSplit):
    """The rows of one split of a table, task by task.

    Args:
        x: inputs of all rows of the table, float32 ``[rows, features]``.
        y: their class numbers ``[rows]``, or numbers ``[rows, 1]``.
        rows: numbers of each task's rows.
    """

    def __init__(self, x: Tensor, y: Tensor, rows: Sequence[Tensor]) -> None:
        self.image_shape = (x.shape[1],)
        self.pixels = x
        self.counts = tuple(map(len, rows))
        self._counts = torch.tensor(self.counts)
        self._starts = self._counts.cumsum(0) - self._counts
        self._rows = torch.cat(list(rows))
        self._labels = y[self._rows]

    def select(self, tasks: Sequence[int]) -> RowSplit:
        chosen, split = torch.tensor(tasks), copy.copy(self)
        split.counts = tuple(self.counts[i] for i in tasks)
        split._starts, split._counts = self._starts[chosen], self._counts[chosen]
        return split

    def with_pixels(self, pixels: Tensor) -> RowSplit:
        split = copy.copy(self)
        split.pixels = pixels
        return split

    def batch(
        self, task: Tensor, index: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> Batch:
        assert augment is None
        place = self.places(task, index)
        rows, y = (
            to_device(part[place], self.pixels.device) for part in (self._rows, self._labels)
        )
        return Batch(self.pixels[rows], y, task.long())


def load_table(
    path: Path,
    task_column: str,
    target_column: str,
    *,
    targets: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> TaskSet:
    """Read a table, and make its tasks.

    A fifth of every task's rows is the test set; ``val_fraction`` of the others are validated on.
    Scaling and categories are fitted to the rest.

    Args:
        path: a CSV or parquet file.
        task_column: the column that names each row's task.
        target_column: the column to predict; all others are inputs.
        targets: ``"numbers"`` or ``"classes"``; None for classes where the column holds text.
        val_fraction: share of the training rows of each task to validate on, in [0, 1).
        seed: seed of the split, at least 0.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `read_table` and `Columns`.
        KeyError: there is no such column.
    """
    texts = [task_column, *([target_column] if targets == "classes" else [])]
    table = read_table(path, texts)
    values, of_rows = column_of(table, target_column), column_of(table, task_column)
    if task_column == target_column:
        raise ValueError(f"`target_column` must not be `task_column`, got {target_column!r}")
    if targets is None:
        targets = "numbers" if is_numbers(values) else "classes"
    if targets == "numbers" and not is_numbers(values):
        raise ValueError(
            f"`targets` 'numbers' needs numbers in the column {target_column!r}, got text"
        )
    for column, name in ((of_rows, task_column), (values, target_column)):
        check_complete(column, name)
    names = tuple(sorted(set(of_rows)))
    task = np.array([names.index(name) for name in of_rows])
    classes = (target_column,) if targets == "numbers" else tuple(sorted(set(values)))
    if targets == "classes" and len(classes) < 2:
        raise ValueError(f"column {target_column!r} needs at least 2 classes, got {classes}")
    group = task if targets == "numbers" else task * len(classes) + [*map(classes.index, values)]
    digest = _digests(table)
    test = hold_out(digest, group, TEST_FRACTION, seed)
    val = np.zeros_like(test)
    val[~test] = hold_out(digest[~test], group[~test], val_fraction, seed)
    kept = np.flatnonzero(~test & ~val)
    parts = {"training": ~test & ~val, "validation": val, "test": test}
    for part, chosen in parts.items():
        if lacking := set(range(len(names))) - set(task[chosen]):
            remedy = (
                "`val_fraction` must be above 0"
                if part == "validation" and not val_fraction
                else "give it more rows, or leave it out"
            )
            raise ValueError(f"task {names[min(lacking)]!r} has no {part} rows; {remedy}")
    columns = Columns.fit(table, kept, task_column, target_column, targets)
    x, y = columns.encode(table), columns.targets_of(table, classes)
    splits = [
        RowSplit(
            x,
            y,
            [torch.from_numpy(np.flatnonzero(chosen & (task == i))) for i in range(len(names))],
        )
        for chosen in parts.values()
    ]
    described = json.dumps([names, classes, asdict(columns)]).encode()
    own = blake2b(described, digest_size=8)
    for array in (digest, task, test, val):
        own.update(array.tobytes())
    return TaskSet(
        names=names,
        classes=(classes,) * len(names),
        image_shape=(columns.width,),
        mean=(),
        std=(),
        fingerprint=own.hexdigest(),
        copies_dropped=0,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        columns=columns,
    )


def load_new_rows(
    path: Path, columns: Columns, classes: Sequence[str], *, task: str | None = None
) -> list[LabelledTask]:
    """Read new tasks for a trained model from a table; no rows are held out.

    Args:
        path: a CSV or parquet file.
        columns: the columns of the model's own table.
        classes: the classes that its tasks have.
        task: name of the one task that all rows are of; None to read it from the column of tasks.

    Raises:
        FileNotFoundError, KeyError, ValueError: as `read_table` and `Columns`.
    """
    table = read_table(path, columns.texts)
    x, y = columns.encode(table), columns.targets_of(table, classes)
    names = tasks_of_rows(table, columns, task)
    return [
        LabelledTask(name, tuple(classes), Images(x[own], y[own]))
        for name in sorted(set(names))
        for own in [torch.from_numpy(names == name)]
    ]


def tasks_of_rows(table: Table, columns: Columns, task: str | None) -> NDArray[Any]:
    """The task of each row: ``task``, or what the column of tasks says."""
    if task is not None:
        return np.full(len(next(iter(table.values()))), task, dtype=object)
    check_complete(column_of(table, columns.task), columns.task)
    return table[columns.task]


def _digests(table: Table) -> NDArray[np.uint64]:
    """Hash each row; rows with the same values have the same hash."""
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    hashes = (blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(h, "little") for h in hashes), dtype=np.uint64)
