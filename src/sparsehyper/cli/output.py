"""What commands print."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))  # names of tasks are no markup
    Console().print(table)


def print_tasks(title: str, evaluation: dict[str, Any]) -> None:
    """Accuracy and loss of every task."""
    losses = evaluation["losses"]
    rows = [
        [task, f"{accuracy:.2%}", f"{losses[task]:.4f}"]
        for task, accuracy in evaluation["accuracies"].items()
    ]
    rows.append(["mean", f"{evaluation['accuracy']:.2%}", f"{evaluation['loss']:.4f}"])
    print_table(title, ["task", "accuracy", "loss"], rows)
