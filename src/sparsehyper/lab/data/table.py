"""Tasks from a table: one column names the task of each row, and another is to be predicted.

Every row is a sample, or every sequence of rows (`sequences`). The samples of every task are
divided into training, validation and test samples; copies of one stay together. A target of numbers
makes a regression, whose one output has the column's name; a target of classes makes a
classification with the same classes in all tasks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Container, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsehyper._util.devices import to_device
from sparsehyper._util.text import by_value, listed
from sparsehyper.lab.data.columns import Columns
from sparsehyper.lab.data.folder import TEST_FRACTION, LabelledTask
from sparsehyper.lab.data.sequences import Samples, Sequences, find_sequences
from sparsehyper.lab.data.source import Images
from sparsehyper.lab.data.splits import hold_out
from sparsehyper.lab.data.table_files import (
    Table,
    check_complete,
    check_texts,
    column_of,
    is_numbers,
    read_table,
    respelled,
)
from sparsehyper.lab.data.tasks import Batch, TaskInfo, TaskSet, TaskSplit


class RowSplit(TaskSplit):
    """The samples of one split of a table, task by task.

    Args:
        x: inputs of all samples of the table, float32 ``[samples, features]`` or ``[samples,
            channels, steps]``.
        y: their class numbers ``[samples]``, or numbers ``[samples, 1]``.
        rows: numbers of each task's samples.
    """

    def __init__(self, x: Tensor, y: Tensor, rows: Sequence[Tensor]) -> None:
        self.image_shape = tuple(x.shape[1:])
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
    sequence_column: str | None = None,
    order_column: str | None = None,
    targets: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    known: TaskInfo | None = None,
) -> TaskSet:
    """Read a table, and make its tasks.

    A fifth of every task's samples is the test set; ``val_fraction`` of the others are validated
    on. Scaling and categories are fitted to the rest.

    Args:
        path: a CSV or parquet file.
        task_column: the column that names each row's task.
        target_column: the column to predict; all columns not named here are inputs.
        sequence_column: the column that names each row's sequence; None if every row is a sample.
        order_column: the column to sort the steps of a sequence by; None for the file's order.
        targets: ``"numbers"`` or ``"classes"``; None for classes where the column holds text, or
            true and false.
        val_fraction: share of the training samples of each task to validate on, in [0, 1).
        seed: seed of the split, at least 0.
        known: the tasks of a run that was made of the table, whose columns are then taken; None for
            a new one.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `read_table`, `Columns` and `Sequences`.
        KeyError: there is no such column.
    """
    texts = [task_column, *([target_column] if targets == "classes" else [])]
    texts += [] if sequence_column is None else [sequence_column]
    _check_distinct(
        task_column=task_column,
        target_column=target_column,
        sequence_column=sequence_column,
        order_column=order_column,
    )
    index = None if known is None or known.columns is None else known.columns.used
    table = read_table(path, texts, order_column, index=index)
    values, of_rows = column_of(table, target_column), column_of(table, task_column)
    if sequence_column is not None:
        check_complete(column_of(table, sequence_column), sequence_column)
    if order_column is not None:
        column_of(table, order_column)
        if sequence_column is None:
            raise ValueError(f"`order_column` {order_column!r} needs a `sequence_column`")
    if known is None and targets != "classes" and not is_numbers(values):
        check_texts(values, target_column, is_target=True)
    if targets is None:
        targets = "classes" if values.dtype in (object, bool) else "numbers"
        if values.dtype == bool:
            values = table[target_column] = np.where(values, "true", "false").astype(object)
    if targets == "numbers" and not is_numbers(values):
        raise ValueError(
            f"`targets` 'numbers' needs numbers in the column {target_column!r}, got text"
        )
    for column, name in ((of_rows, task_column), (values, target_column)):
        check_complete(column, name)
    what, sequences = "rows", None
    samples = Samples.of_rows(np.arange(len(of_rows)))
    if sequence_column is not None:
        what = "sequences"
        samples = find_sequences(of_rows, table, sequence_column, order_column)
        if known is None:
            sequences = Sequences.fit(samples, sequence_column, order_column)
        _check_constant(table, samples, target_column, sequence_column)
    names = tuple(sorted(set(of_rows)))
    if known is None or known.names != names:  # runs of early versions sorted numbers as text
        names = tuple(sorted(names, key=by_value))
    task = np.array([*map({name: i for i, name in enumerate(names)}.get, of_rows[samples.first])])
    classes = (target_column,) if targets == "numbers" else tuple(sorted(set(values)))
    if targets == "classes" and len(classes) < 2:
        raise ValueError(f"column {target_column!r} needs at least 2 classes, got {classes}")
    group = task
    if targets == "classes":
        group = task * len(classes) + [*map(classes.index, values[samples.first])]
    digest = _digests(table, samples, {sequence_column, order_column})
    test = hold_out(digest, group, TEST_FRACTION, seed)
    val = np.zeros_like(test)
    val[~test] = hold_out(digest[~test], group[~test], val_fraction, seed)
    parts = {"training": ~test & ~val, "validation": val, "test": test}
    for part, chosen in parts.items():
        if lacking := sorted(set(range(len(names))) - set(task[chosen])):
            of_one, one = (" of one class", "") if targets == "classes" else ("", ", or one")
            remedy = (
                "`val_fraction` must be above 0"
                if part == "validation" and not val_fraction
                else f"a task needs at least 3 different {what}{of_one}, to train on, to validate "
                "and to test; give more, or leave such tasks out, and learn them later: `adapt` "
                f"takes a few {what}{one}"
            )
            which = "task" if len(lacking) == 1 else f"{len(lacking)} tasks"
            these = listed(names[i] for i in lacking)
            raise ValueError(f"no {part} {what} are left for the {which} {these}; {remedy}")
    if known is None:
        kept = samples.among(parts["training"])
        columns = Columns.fit(table, kept, task_column, target_column, targets, sequences)
    else:
        assert known.columns is not None
        columns = known.columns
    x, y = _inputs(table, columns, samples), columns.targets_of(table, classes)[samples.first]
    splits = [
        RowSplit(
            x,
            y,
            [torch.from_numpy(np.flatnonzero(chosen & (task == i))) for i in range(len(names))],
        )
        for chosen in parts.values()
    ]
    described = json.dumps([names, classes, columns.to_dict()]).encode()
    own = blake2b(described, digest_size=8)
    for array in (digest, task, test, val):
        own.update(array.tobytes())
    return TaskSet(
        names=names,
        classes=(classes,) * len(names),
        image_shape=columns.shape,
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
    path: Path,
    columns: Columns,
    classes: Sequence[str],
    *,
    task: str | None = None,
    names: Collection[str] = (),
) -> list[LabelledTask]:
    """Read new tasks for a trained model from a table; no samples are held out.

    Args:
        path: a CSV or parquet file.
        columns: the columns of the model's own table.
        classes: the classes that its tasks have.
        task: name of the one task that all rows are of; None to read it from the column of tasks.
        names: the tasks that the model has.

    Raises:
        FileNotFoundError, KeyError: as `read_table` and `Columns`.
        ValueError: as these; or ``task`` is given for a table with the rows of several.
    """
    found = read_rows(path, columns, task=task, names=names)
    if task is not None and len(found.named) > 1:
        raise ValueError(
            f"`task` names the one task of a table, got {task!r} for {path} with rows of "
            f"{len(found.named)} tasks: {listed(found.named)}; leave it out, or give a table of one"
        )
    first = found.samples.first
    if columns.sequences is not None:
        _check_constant(found.table, found.samples, columns.target, columns.sequences.column)
    y = columns.targets_of(found.table, classes)[first]
    return [
        LabelledTask(name, tuple(classes), Images(found.x[own], y[own]))
        for name in sorted(set(found.tasks), key=by_value)
        for own in [torch.from_numpy(found.tasks == name)]
    ]


class Rows(NamedTuple):
    """The samples of a table, as a trained model takes them."""

    table: Table
    samples: Samples
    tasks: NDArray[Any]  # the task of each sample
    named: tuple[str, ...]  # what the column of tasks names, if there is one
    x: Tensor  # float32 [samples, features], or [samples, channels, steps]


def read_rows(
    path: Path, columns: Columns, *, task: str | None = None, names: Collection[str] = ()
) -> Rows:
    """Read a table for a trained model; the column of targets may be missing.

    Args:
        path: a CSV or parquet file.
        columns: the columns of the model's own table.
        task: the task that all rows are of; None to read it from the column of tasks.
        names: the tasks that the model has; a column of true and false is written as they are.

    Raises:
        FileNotFoundError, KeyError, ValueError: as `read_table`, `Columns` and `Sequences`.
    """
    sequences = columns.sequences
    order = None if sequences is None else sequences.order
    table = read_table(path, columns.texts, order, columns.used)
    if columns.task in table:
        table[columns.task] = respelled(table[columns.task], names)
    if task is not None:
        tasks = np.full(len(next(iter(table.values()))), task, dtype=object)
    else:
        tasks = column_of(table, columns.task)
        check_complete(tasks, columns.task)
    samples = Samples.of_rows(np.arange(len(tasks)))
    if sequences is not None:
        check_complete(column_of(table, sequences.column), sequences.column)
        if order is not None:
            column_of(table, order)
        # Names of sequences may repeat between the tasks of the file, whatever task they count as.
        keys = table.get(columns.task, tasks)
        samples = find_sequences(keys, table, sequences.column, order)
    named = tuple(sorted({*table.get(columns.task, ())} - {None}, key=by_value))
    return Rows(table, samples, tasks[samples.first], named, _inputs(table, columns, samples))


def _inputs(table: Table, columns: Columns, samples: Samples) -> Tensor:
    """The samples of a table as a model takes them."""
    rows, sequences = columns.encode(table), columns.sequences
    if sequences is None:
        return rows
    return sequences.join(rows, samples, table[sequences.column][samples.first])


def _check_distinct(**columns: str | None) -> None:
    named: dict[str, str] = {}
    for argument, column in columns.items():
        if column is not None and (other := named.setdefault(column, argument)) != argument:
            raise ValueError(f"`{argument}` must not be `{other}`, got {column!r}")


def _check_constant(table: Table, samples: Samples, target: str, sequence: str) -> None:
    """Raise ``ValueError`` unless all steps of a sequence have one target."""
    values = column_of(table, target)
    check_complete(values, target)
    first = np.repeat(samples.first, samples.counts)
    wrong = np.flatnonzero(values[samples.rows] != values[first])
    if len(wrong):
        row = samples.rows[wrong[0]]
        raise ValueError(
            f"column {target!r} must have one value in all steps of a sequence, got "
            f"{values[first[wrong[0]]]!r} and {values[row]!r} in sequence "
            f"{table[sequence][row]!r}; cut it where the value changes"
        )


def _digests(table: Table, samples: Samples, without: Container[str | None]) -> NDArray[np.uint64]:
    """Hash each sample; those with the same values have the same hash.

    Args:
        table: the table.
        samples: its samples.
        without: columns that do not count, such as the names of sequences.
    """
    rows = zip(*(c.tolist() for name, c in table.items() if name not in without), strict=True)
    hashes = [blake2b(repr(row).encode(), digest_size=8).digest() for row in rows]
    if len(samples.counts) < len(hashes):
        ends = samples.counts.cumsum()
        parts = (samples.rows[end - n : end] for end, n in zip(ends, samples.counts, strict=True))
        joined = (b"".join(hashes[row] for row in part) for part in parts)
        hashes = [blake2b(part, digest_size=8).digest() for part in joined]
    return np.fromiter((int.from_bytes(h, "little") for h in hashes), dtype=np.uint64)
