"""The study of scaling, as tables and as a picture: error and time against N and tasks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from sparsehyper.lab.report.plots import STYLES
from sparsehyper.lab.report.studies.pages import (
    GREY,
    StudyReport,
    Table,
    by_method,
    interval_text,
    panels,
    percent,
    searches_table,
)

_AXES = {"target": ("numel", "N, parameters of one target"), "tasks": ("tasks", "tasks")}


def _tables(results: Mapping[str, Any]) -> list[Table]:
    tables = []
    columns = ["method", "N", "tasks", "trainable ÷ N", "accuracy, %", "step, ms", "peak MB"]
    for part in _AXES:
        rows = [
            [
                row["method"],
                f"{row['numel']:,}",
                row["tasks"],
                f"{row['parameters'][0]:.2f}",
                percent(row["accuracy"]),
                f"{statistics.median(row['step_ms']):.1f}",
                f"{statistics.median(row['peak_memory_mb']):.0f}",
            ]
            for row in results["rows"]
            if row["part"] == part
        ]
        title = "As the target grows" if part == "target" else "As tasks become more"
        tables.append(Table(title, columns, rows))
    exponents = [
        [
            row["method"],
            row["measure"],
            _AXES[row["part"]][0],
            f"{row['mean']:+.3f}",
            interval_text(row, 1),
        ]
        for row in results["exponents"]
    ]
    columns = ["method", "measure", "against", "exponent", "95% interval"]
    found = Table("Exponents b of measure ∝ size^b", columns, exponents)
    return [*tables, found, searches_table(results)]


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Error and time, on log axes, against N and against the number of tasks."""
    titles = [f"{what} as {how}" for what in ("error", "step") for how in ("N grows", "tasks grow")]
    with panels(titles, path) as drawn:
        for axes, (measure, part) in zip(
            drawn, [(m, p) for m in ("error", "step") for p in _AXES], strict=True
        ):
            key, label = _AXES[part]
            for method, rows in by_method(results["rows"], part=part).items():
                colour, marker = STYLES[method]
                y = [
                    100 * (1 - statistics.fmean(row["accuracy"]))
                    if measure == "error"
                    else statistics.median(row["step_ms"])
                    for row in rows
                ]
                x = [row[key] for row in rows]
                axes.plot(x, y, color=colour, marker=marker, markersize=5, label=method)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(x, [f"{size:,}" for size in x])
            axes.set_xticks([], minor=True)
            low, high = axes.get_ylim()
            digits = "123456789" if high < 3 * low else "12346"  # that have room
            axes.yaxis.set_major_formatter(_plain(digits))
            axes.yaxis.set_minor_formatter(_plain(digits))
            axes.set_xlabel(label, color=GREY)
            axes.set_ylabel("error, %" if measure == "error" else "step, ms", color=GREY)


def _plain(digits: str) -> Callable[[float, int], str]:
    """The numbers of a log axis that start with one of these digits, without powers of ten."""
    return lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else ""


REPORT = StudyReport(
    "Scaling",
    "How do accuracy and cost change as the target grows, and as tasks become more?",
    "Permutations of the pixels; the same number of updates and images a batch everywhere, so that "
    "a task sees the fewer images the more tasks there are. A learning rate for each method, by as "
    "many trials on validation images, at one size. Exponents are slopes of straight lines through "
    "logarithms, one a seed, with Student's t intervals over seeds.",
    _tables,
    _draw,
    "scaling.png",
)
