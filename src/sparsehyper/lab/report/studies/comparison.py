"""The study of methods, as tables and as a picture: accuracy against budget on every set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper.lab.report.studies.pages import (
    GREY,
    StudyReport,
    Table,
    by_method,
    panels,
    percent,
    points,
    searches_table,
)


def _tables(results: Mapping[str, Any]) -> list[Table]:
    """Every method on every set, then what was searched."""
    columns = [
        *("method", "budget ÷ N", "trainable ÷ N", "accuracy, %", "worst task, %", "step, ms"),
        *("seconds", "peak MB"),
    ]
    tables = []
    for family in results["study"]["sets"]:
        rows = [
            [
                row["method"],
                "–" if row["budget"] is None else f"{row['budget']:g}",
                f"{row['parameters']:.2f}",
                percent(row["accuracy"]),
                percent(row["worst"]),
                f"{statistics.median(row['step_ms']):.1f}",
                f"{statistics.median(row['seconds']):.1f}",
                f"{statistics.median(row['peak_memory_mb']):.0f}",
            ]
            for row in results["rows"]
            if row["family"] == family
        ]
        tables.append(Table(family, columns, rows))
    if results["left_out"]:
        rows = [[one["family"], one["method"], f"{one['budget']:g}"] for one in results["left_out"]]
        columns = ["set", "method", "budget ÷ N"]
        tables.append(Table("Left out, as their layers alone are larger", columns, rows))
    return [*tables, searches_table(results)]


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """A panel a set."""
    families = list(results["study"]["sets"])
    with panels(families, path) as drawn:
        for family, axes in zip(families, drawn, strict=True):
            for method, rows in by_method(results["rows"], family=family).items():
                x = [row["parameters"] for row in rows]
                points(axes, x, [row["accuracy"] for row in rows], method)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in drawn[::2]:
            axes.set_ylabel("test accuracy, %", color=GREY)
        for axes in drawn[-2:]:
            axes.set_xlabel("trainable parameters ÷ those of one target", color=GREY)


REPORT = StudyReport(
    "Methods compared",
    "On multitask computer vision, are sparse hypernetworks as accurate as chunked ones of the "
    "same budget, and how do both compare with others, with experts and with a shared trunk?",
    "For every method and budget as many trials of the learning rate, the base, how alike tasks "
    "start and, of chunked ones, the hidden width are judged on validation images of one set of "
    "its kind, under a seed of their own; then each is trained on every set over all seeds, and "
    "looks at the test images once. Mean over tasks ± standard deviation over seeds; paired "
    "differences with Student's t intervals, not corrected for their multitude.",
    _tables,
    _draw,
    "accuracy_vs_budget.png",
)
