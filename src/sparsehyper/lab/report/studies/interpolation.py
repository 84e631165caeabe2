"""The study of interpolation, as tables and as a picture: accuracy between two tasks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper.lab.report.studies.pages import (
    GREY,
    StudyReport,
    Table,
    panels,
    percent,
    searches_table,
)

_LINES = {"start": "#D55E00", "end": "#0072B2", "half-way": "#009E73"}
_COLUMNS = {
    "trained tasks, %": "accuracy",
    "task half-way: embedding half-way, %": "half-way",
    "nearer neighbour, %": "neighbour",
    "fitted embedding, %": "fitted",
    "mean embedding on all trained tasks, %": "mean embedding",
}


def _tables(results: Mapping[str, Any]) -> list[Table]:
    rows = [
        [
            row["method"],
            f"{row['parameters'][0]:.2f}",
            *(percent(row[key]) for key in _COLUMNS.values()),
            _inside(row["plane"]),
        ]
        for row in results["rows"]
    ]
    weights = [
        [
            row["method"],
            f"{statistics.fmean(row['straightness']):.3f}",
            f"{100 * statistics.fmean(row['changing']):.1f}",
            f"{statistics.fmean(row['directions']):.1f}",
        ]
        for row in results["rows"]
    ]
    columns = ["method", "trainable ÷ N", *_COLUMNS, "centre of the plane, %"]
    return [
        Table("Between neighbours", columns, rows),
        Table(
            "What a direction between neighbours does to the generated weights",
            ["method", "straightness", "weights with 90% of the change, %", "independent ways"],
            weights,
        ),
        searches_table(results),
    ]


def _inside(planes: list[dict[str, Any]]) -> str:
    """Accuracy nearest to the middle of the three tasks, on their mean."""
    found = []
    for plane in planes:
        x, y = (statistics.fmean(corner[i] for corner in plane["corners"]) for i in (0, 1))
        column = min(range(len(plane["x"])), key=lambda i: abs(plane["x"][i] - x))
        row = min(range(len(plane["y"])), key=lambda i: abs(plane["y"][i] - y))
        found.append(plane["values"][row][column])
    return percent(found)


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """A panel a method: accuracy on the tasks at both ends and on the one half-way."""
    titles = [row["method"] for row in results["rows"]]
    with panels(titles, path, size=(5, 3.2), legend=3) as drawn:
        for axes, row in zip(drawn, results["rows"], strict=True):
            for name, colour in _LINES.items():
                lines = [100 * statistics.fmean(v) for v in zip(*_of(row, name), strict=True)]
                places = [i / (len(lines) - 1) for i in range(len(lines))]
                axes.plot(places, lines, color=colour, label=f"on the task: {name}")
            axes.set_ylim(0, 100)
        for axes in drawn[::2]:
            axes.set_ylabel("test accuracy, %", color=GREY)
        for axes in drawn[-2:]:
            axes.set_xlabel("from one task's embedding to its neighbour's", color=GREY)


def _of(row: Mapping[str, Any], name: str) -> list[list[float]]:
    return [lines[name] for lines in row["lines"]]


REPORT = StudyReport(
    "Interpolation",
    "What lies between the embeddings of two tasks: is the model half-way good at the task "
    "half-way?",
    "Tasks are images turned by equal steps; every other angle is trained. Along the line between "
    "neighbours' embeddings, models are tested on the tasks at both ends and on the untrained one "
    "in between, and compared there with the better of the two neighbours' models and with an "
    "embedding fitted to 20 images a class. Each method has the learning rate that is best on "
    "validation images of the trained tasks. Straightness is the distance of the generated weights "
    "÷ the length of the way between them; independent ways are (Σ s²)² ÷ Σ s⁴ of the singular "
    "values s of the derivative of weights by embedding, at trained tasks. Means over neighbours "
    "± standard deviation over seeds.",
    _tables,
    _draw,
    "lines.png",
)
