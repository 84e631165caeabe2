"""The study of the typology, as tables and as a picture: accuracy against budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper.lab.report.plots import draw_budgets
from sparsehyper.lab.report.studies.pages import StudyReport, Table, deviation, percent

TITLES = {
    "kinds": "Every generator",
    "budgets": "Linear sparse and chunked by budget",
    "inits": "Initialisations, at 4 N (residual at 5 N)",
}


def _tables(results: Mapping[str, Any]) -> list[Table]:
    columns = ["method", "trainable ÷ N", "accuracy, %", "step, ms", "a model, ms"]
    return [
        Table(
            title,
            columns,
            [
                [
                    row["method"],
                    f"{row['parameters']:.2f}",
                    percent(row["accuracy"]),
                    f"{statistics.median(row['step_ms']):.1f}",
                    f"{statistics.median(row['model_ms']):.2f}",
                ]
                for row in results[part]
            ],
        )
        for part, title in TITLES.items()
    ]


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Accuracy against trainable parameters ÷ N."""
    rows = [
        {
            "method": row["method"].partition(",")[0],
            "accuracy": {
                "mean": statistics.fmean(row["accuracy"]),
                "sd": deviation(row["accuracy"]),
            },
            "parameters_per_target_parameter": row["parameters"],
        }
        for row in results["budgets"]
    ]
    study = results["study"]
    title = f"{study['data']['source']} {study['data']['tasks']}, target {study['target']}"
    draw_budgets(rows, f"{title}, {study['seeds']} seeds", path)


REPORT = StudyReport(
    "Every generator",
    "Which generator is how accurate at what size, how small can sparse and chunked ones be, and "
    "which initialisation is best?",
    "Every generator is trained on the same tasks for the same number of updates, at one learning "
    "rate for all; mean test accuracy over tasks ± standard deviation over seeds.",
    _tables,
    _draw,
    "accuracy_vs_budget.png",
)
