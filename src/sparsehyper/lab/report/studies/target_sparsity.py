"""The study of target sparsity, as tables and as a picture: accuracy against zeros."""

from __future__ import annotations

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
    sparsities = results["study"]["sparsities"]
    tables = []
    for family in results["study"]["sets"]:
        rows = []
        for method, own in by_method(results["rows"], family=family).items():
            found = {row["sparsity"]: row for row in own}
            rows.append(
                [
                    method,
                    *(percent(found[s]["accuracy"]) if s in found else "–" for s in sparsities),
                ]
            )
            rows.append(
                [
                    f"{method}: trainable ÷ those of one whole target",
                    *(f"{found[s]['parameters']:.2f}" if s in found else "–" for s in sparsities),
                ]
            )
        columns = ["method", *(f"{s:.0%} zeros" for s in sparsities)]
        tables.append(Table(f"{family}: test accuracy, %", columns, rows))
    return [*tables, searches_table(results)]


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    families = list(results["study"]["sets"])
    with panels(families, path) as drawn:
        for family, axes in zip(families, drawn, strict=True):
            for method, own in by_method(results["rows"], family=family).items():
                x = [100 * (1 - row["sparsity"]) for row in own]
                points(axes, x, [row["accuracy"] for row in own], method)
            axes.set_xscale("log")
            axes.invert_xaxis()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("weights that are not zero, %", color=GREY)
        drawn[0].set_ylabel("test accuracy, %", color=GREY)


REPORT = StudyReport(
    "Target sparsity",
    "How many zeros may generated targets have, compared with experts that are pruned as far?",
    "A random mask, the same for all tasks, leaves a part of every weight; hypernetworks generate "
    "what is left, at four trainable numbers for each. Experts are masked alike, or pruned by "
    "magnitude layer by layer in the middle of their training, which has as many updates in all. "
    "Each method has the learning rate that is best on validation images at 90% zeros; pruned "
    "experts are searched whole. Mean over tasks ± standard deviation over seeds.",
    _tables,
    _draw,
    "accuracy_vs_zeros.png",
)
