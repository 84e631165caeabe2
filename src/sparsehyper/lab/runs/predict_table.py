"""Predictions of a run's models for the rows, or the sequences, of a table."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sparsehyper._util.checks import check_integer
from sparsehyper._util.text import listed
from sparsehyper.lab.data import read_rows
from sparsehyper.lab.data.table_files import read_cells
from sparsehyper.lab.runs.loading import load_run
from sparsehyper.training import processes


@dataclass(frozen=True)
class TablePrediction:
    """Result of `predict_table`.

    Attributes:
        tasks: the task of each sample, which is a row or a sequence.
        predicted: the predicted number or class of each sample.
        probabilities: the probability of each sample's class; None for numbers.
        cells: the table itself, by column; of sequences only the columns that name them.
        target: name of the column that was predicted.
        sequences: names of the sequences; None for rows.
    """

    tasks: tuple[str, ...]
    predicted: tuple[float | str, ...]
    probabilities: tuple[float, ...] | None
    cells: dict[str, list[Any]]
    target: str
    sequences: tuple[str, ...] | None = None

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """The cells with what was predicted at their end: names of columns, and rows."""
        columns = dict(self.cells)
        columns[_free(f"predicted {self.target}", columns)] = list(self.predicted)
        if self.probabilities is not None:
            columns[_free("probability", columns)] = list(self.probabilities)
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with one entry per sample."""
        values: dict[str, Sequence[Any] | None] = {
            "task": self.tasks,
            "sequence": self.sequences,
            "predicted": self.predicted,
            "probability": self.probabilities,
        }
        known = {name: own for name, own in values.items() if own is not None}
        rows = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
        return {"target": self.target, "rows": rows}


def _free(name: str, columns: Collection[str]) -> str:
    """The name of a new column, with a number if there is one of that name."""
    names = (name if i == 1 else f"{name} {i}" for i in count(1))
    return next(each for each in names if each not in columns)


@torch.no_grad()
def predict_table(
    directory: str | PathLike[str],
    file: str | PathLike[str],
    *,
    task: str | None = None,
    device: str = "auto",
    batch_size: int = 500,
    trust: Collection[str] = (),
) -> TablePrediction:
    """Predict the target of every sample of a table with the best model of a run.

    Args:
        directory: directory of a run of a table, adapted or not.
        file: a table with the same columns; that of the target may be missing.
        task: the task of all rows, with a warning where the column of tasks names others; None to
            read it from that column.
        device: ``"auto"`` or a device such as ``"cpu"``.
        batch_size: number of samples at a time.
        trust: as `load_run` takes it.

    Raises:
        FileNotFoundError: no such file, or as `load_run`.
        KeyError: an unknown task, or a column is missing.
        ValueError: the run is of images, or a column does not hold what it should.
    """
    check_integer("batch_size", batch_size, minimum=1)
    loaded = load_run(directory, trust=trust)
    info, columns = loaded.tasks, loaded.tasks.columns
    if columns is None:
        raise ValueError(f"`directory` {directory} holds a run of images, not of a table")
    found = read_rows(Path(file), columns, task=task, names=info.names)
    if task is not None and (others := [name for name in found.named if name != task]):
        warnings.warn(
            f"`task` is {task!r}, but the column {columns.task!r} says {listed(others)}; all rows "
            f"are predicted by the model of {task!r}",
            stacklevel=2,
        )
    names, x, here = found.tasks, found.x, processes(device).device
    predicted: list[float | str] = [""] * len(x)
    probabilities = [0.0] * len(x)
    for name in sorted(set(names)):
        classes = loaded.task_list.entry(name).classes
        module, own = loaded.materialize(name).to(here), (names == name).nonzero()[0]
        parts = torch.from_numpy(own).split(batch_size)
        outputs = torch.cat([module(x[rows].to(here)).cpu() for rows in parts])
        if info.are_numbers:
            values: list[float | str] = [*columns.unscaled(outputs).tolist()]
        else:
            likeliest, best = outputs[:, : len(classes)].float().softmax(1).max(1)
            values = [classes[i] for i in best.tolist()]
            for row, probability in zip(own, likeliest.tolist(), strict=True):
                probabilities[row] = probability
        for row, value in zip(own, values, strict=True):
            predicted[row] = value
    sequences = None
    if columns.sequences is None:
        cells = read_cells(Path(file), columns.texts)
    else:
        sequences = tuple(found.table[columns.sequences.column][found.samples.first])
        cells = {columns.task: [*names], columns.sequences.column: [*sequences]}
    return TablePrediction(
        tuple(names),
        tuple(predicted),
        None if info.are_numbers else tuple(probabilities),
        cells,
        columns.target,
        sequences,
    )
