"""The study of the typology, as tables and as a picture: accuracy against budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper.report.new_tasks import Table, as_markdown, deviation, percent
from sparsehyper.report.plots import draw_budgets

TITLES = {
    "kinds": "Every generator",
    "budgets": "Linear sparse and chunked by budget",
    "inits": "Initialisations, at 4 N",
}


def table(results: Mapping[str, Any]) -> list[Table]:
    """Titles, columns and rows."""
    columns = ["method", "trainable ÷ N", "accuracy, %", "step, ms", "a model, ms"]
    return [
        (
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


def markdown(results: Mapping[str, Any]) -> str:
    """The tables, with what they were measured on."""
    study, machine = results["study"], results["machine"]
    head = (
        f"{study['seeds']} seeds; mean test accuracy over tasks ± standard deviation over seeds. "
        f"{study['data']['source']}, {study['data']['tasks']}, target {study['target']}, "
        f"{study['steps']} updates. {machine['cpu']}, {machine['cores']} cores, one thread each, "
        f"PyTorch {machine['torch']}; {results['seconds'] / 60:.0f} minutes of one core.\n"
    )
    return "\n".join([head, *map(as_markdown, table(results))])


def draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Accuracy against trainable parameters ÷ N, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
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
