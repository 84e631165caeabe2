"""The table of a comparison, as cells and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehyper._util.extras import require
from sparsehyper._util.text import printable
from sparsehyper.lab.plots import scored_as
from sparsehyper.training.evaluate import ACCURACY


def table_columns(results: Mapping[str, Any]) -> list[str]:
    """The headings of `table_rows`."""
    score = scored_as(results)
    scores = ["accuracy %", "worst task %"] if score == ACCURACY else [score, f"worst task {score}"]
    return [
        *("method", "budget ÷ N"),
        *scores,
        *("trainable", "trainable ÷ N", "step ms", "peak MB"),
    ]


def table_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The cells of every row, in the order of `table_columns`.

    Args:
        results: what `sparsehyper.lab.runs.compare` returns. The standard deviation over seeds is
            left out where there is a single seed.
    """
    score = scored_as(results)
    return [_cells(row, score) for row in results["rows"]]


def rich_table(results: Mapping[str, Any]) -> Any:
    """The rows as a `rich.table.Table`.

    Raises:
        MissingExtraError: rich is not installed.
    """
    table = require("rich.table", "train").Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table_columns(results):  # two-line headings, to fit 80 columns
        justify = "left" if column == "method" else "right"
        table.add_column(column.replace(" ", "\n", 1), justify=justify)
    text = require("rich.text", "train").Text  # names of tasks are not markup
    for row in table_rows(results):
        table.add_row(*(text(printable(cell)) for cell in row))
    return table


def _cells(row: Mapping[str, Any], score: str) -> list[str]:
    def shown(value: float) -> str:
        return f"{100 * value:.2f}" if score == ACCURACY else f"{value:.3f}".replace("-", "−")

    accuracy, worst, step_ms = row["accuracy"], row["worst_task"], row["step_ms"]
    mean = shown(accuracy["mean"])
    return [
        row["method"],
        "–" if row["budget"] is None else f"{row['budget']:g}",
        mean if accuracy["sd"] is None else f"{mean} ± {shown(accuracy['sd'])}",
        f"{shown(worst['accuracy'])} ({worst['name']})",
        f"{row['trainable_parameters']:,}",
        f"{row['parameters_per_target_parameter']:.2f}",
        "–" if step_ms is None else f"{step_ms:.1f}",
        f"{row['peak_memory_mb']:.0f}",
    ]
