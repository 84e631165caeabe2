"""Sequences: rows of a table that make one sample together, in order.

The rows of one task that have the same value in the column of sequences are the steps of one
sequence, sorted by the column of order, or as they are in the file. Each column of inputs becomes a
channel. If lengths differ, zeros follow a shorter sequence, and one more channel is 1 at its steps
and 0 after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsehyper._util.checks import WIDEST, check_integer, check_size, check_type


class Samples(NamedTuple):
    """Which rows of a table make each sample: one row each, or the steps of a sequence."""

    rows: NDArray[np.intp]  # numbers of the rows, sample by sample
    counts: NDArray[np.intp]  # number of rows of each sample

    @classmethod
    def of_rows(cls, rows: NDArray[np.intp]) -> Self:
        """Samples of one row each."""
        return cls(rows, np.ones_like(rows))

    @property
    def first(self) -> NDArray[np.intp]:
        """The first row of each sample."""
        return self.rows[self.counts.cumsum() - self.counts]

    @property
    def step(self) -> NDArray[np.intp]:
        """The place of each of ``rows`` within its sample."""
        starts = self.counts.cumsum() - self.counts
        return np.arange(len(self.rows)) - np.repeat(starts, self.counts)

    def among(self, chosen: NDArray[np.bool_]) -> Samples:
        """The samples where ``chosen`` is true."""
        return Samples(self.rows[np.repeat(chosen, self.counts)], self.counts[chosen])


@dataclass(frozen=True)
class Sequences:
    """How the rows of a table make sequences.

    Attributes:
        column: the column that names each row's sequence, among those of its task.
        order: the column to sort steps by; None for the order of the file.
        length: number of steps of an input.
        padded: whether shorter sequences are padded, and a channel says which steps there are.
    """

    column: str
    order: str | None
    length: int
    padded: bool

    def __post_init__(self) -> None:
        check_type("column", self.column, str, "a string")
        check_type("order", self.order, (str, type(None)), "a string")
        check_integer("length", self.length, minimum=2, maximum=WIDEST)
        check_type("padded", self.padded, bool, "true or false")

    @classmethod
    def fit(cls, samples: Samples, column: str, order: str | None) -> Self:
        """Describe sequences by the longest and the shortest of them.

        Raises:
            ValueError: every row is a sequence of its own, or padding would take too much memory.
        """
        length = int(samples.counts.max())
        if length < 2:
            raise ValueError(
                f"column {column!r} names another sequence in every row; give it the same value at "
                "all steps of a sequence, or leave it out if every row is a sample"
            )
        return cls(column, order, length, bool(samples.counts.min() < length))

    def join(self, rows: Tensor, samples: Samples, names: NDArray[Any]) -> Tensor:
        """Rows as sequences.

        Args:
            rows: the rows of a table as inputs, ``[rows, width]``.
            samples: the rows of each sequence.
            names: names of the sequences, for errors.

        Returns:
            ``[sequences, channels, length]``.

        Raises:
            ValueError: a sequence has more steps, or fewer where lengths must be equal.
        """
        wrong = samples.counts > self.length if self.padded else samples.counts != self.length
        if wrong.any():
            steps, name = int(samples.counts[wrong][0]), names[wrong][0]
            most = "at most " if self.padded else ""
            raise ValueError(
                f"sequence {name!r} has {steps:,} steps, and the model takes {most}"
                f"{self.length:,}, as in training; cut or resample it"
            )
        channels, count = rows.shape[1] + self.padded, len(samples.counts)
        check_size(
            f"sequences of up to {self.length:,} steps, the others padded to that length,",
            count * channels * self.length,
        )
        joined = rows.new_zeros(count, channels, self.length)
        sample = torch.from_numpy(np.repeat(np.arange(count), samples.counts))
        step = torch.from_numpy(samples.step)
        joined[sample, : rows.shape[1], step] = rows[torch.from_numpy(samples.rows)]
        if self.padded:
            joined[sample, -1, step] = 1
        return joined

    def describe(self, channels: int) -> list[str]:
        """How rows become an input, step by step, in words."""
        sorted_by = f"sort the rows of a sequence by {self.order}" if self.order else "keep order"
        padding = (
            f"pad to {self.length} steps by zeros at the end; the last channel is 1 at the steps "
            "that there are, and 0 after them"
        )
        steps = [sorted_by, *([padding] if self.padded else [])]
        return [*steps, f"float32 [batch, {channels}, {self.length}]: batch, channel, step"]


def find_sequences(
    tasks: NDArray[Any], table: Mapping[str, NDArray[Any]], column: str, order: str | None
) -> Samples:
    """The rows of each sequence, in order; the sequences as they first appear.

    Args:
        tasks: the task of each row.
        table: the table.
        column: the column of sequences, complete.
        order: the column to sort steps by, complete; or None.

    Raises:
        ValueError: two steps of a sequence have the same value in the column of order; or, without
            one, a sequence has rows apart from one another in the file.
    """
    known: dict[tuple[Any, Any], int] = {}
    pairs = zip(tasks, table[column], strict=True)
    sequence = np.array([known.setdefault(pair, len(known)) for pair in pairs])
    by = (sequence,) if order is None else (table[order], sequence)
    rows = np.lexsort(by)  # which keeps the order of equal ones
    counts = np.bincount(sequence)
    apart = (np.diff(sequence[rows]) == 0) & (np.diff(rows) != 1)
    if order is None and apart.any():
        row = rows[1:][apart][0]
        raise ValueError(
            f"sequence {table[column][row]!r} of task {tasks[row]!r} has rows apart from one "
            f"another (row {row + 1} is one of them); put them together, give names that do not "
            "repeat, or train with an `order_column` to sort them by"
        )
    if order is not None:
        same = (np.diff(sequence[rows]) == 0) & (table[order][rows][1:] == table[order][rows][:-1])
        if same.any():
            row = rows[1:][same][0]
            raise ValueError(
                f"sequence {table[column][row]!r} of task {tasks[row]!r} has two rows with the "
                f"same value in column {order!r} (row {row + 1} is one of them); give one row for "
                "each step, with all channels in its columns"
            )
    return Samples(rows, counts)
