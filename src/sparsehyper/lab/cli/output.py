"""The output of commands.

Names of tasks, classes and files come from folders and from other people's runs, so all text is
made `printable` here. JSON has its own escapes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sparsehyper._util.text import printable, says_number

if TYPE_CHECKING:
    from sparsehyper.lab.data import Columns

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]

# Characters that start a formula in a spreadsheet, also in full width, or that it skips before one.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_OPTIONS: ContextVar[Mapping[str, str]] = ContextVar("options")


def echo(text: object, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr."""
    typer.echo(printable(text), err=err)


@contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """Context of a command, for `as_options`: its options, by name of the Python argument."""
    token = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def as_options(text: object) -> str:
    """A message that names options of the command in place of Python arguments."""
    options = _OPTIONS.get({})
    return re.sub(r"`(\w+)`", lambda m: f"`{options.get(m[1], m[1])}`", str(text))


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Context in which a warning is one line on stderr, without its place in the code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        echo(f"warning: {as_options(message)}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; raises ``RuntimeError`` for a number that JSON lacks."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise RuntimeError(f"the result has a number that is not finite: {error}") from error
    typer.echo(text)


def print_csv(columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a CSV file on stdout, safe to open in a spreadsheet.

    As OWASP advises ("CSV injection"), a cell that starts like a formula gets an apostrophe in
    front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([_cell(value) for value in row] for row in rows)])
    typer.echo(text.getvalue(), nl=False)


def _cell(value: Any) -> str:
    text = "" if value is None else printable(value)
    if says_number(text):  # one below 0 is no formula
        return text
    return f"'{text}" if str(value).startswith(_FORMULAS) else text


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; the first column is text, the others are numbers.

    Where the terminal is too narrow for the longest words, each row is a paragraph instead.
    """
    table = Table(title=Text(printable(title), style="table.title"), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row))  # Text: no markup
    console = Console()
    unlimited = console.options.update(max_width=10**6)
    if Measurement.get(console, unlimited, table).minimum <= console.width:
        console.print(table)
        return
    echo(title)
    for first, *values in rows:
        echo(first)
        for column, value in zip(columns[1:], values, strict=True):
            echo(f"  {column}: {value}")


def share(value: float | None, digits: int = 2) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{value:.{digits}%}"


def scored(value: float | None, score: str) -> str:
    """An accuracy in per cent, or an R²."""
    return share(value) if value is None or score == "accuracy" else f"{value:.3f}"


def mean_scored(values: Iterable[float | None], score: str) -> str:
    """The mean of accuracies or R², leaving out what is None."""
    known = [value for value in values if value is not None]
    return scored(sum(known) / len(known) if known else None, score)


def in_unit(value: float | None) -> str:
    """An error in the target's own unit."""
    if value is None:
        return "–"
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def expectation(measured: dict[str, Any], score: str) -> str:
    """The accuracy or R² to expect of a task and its interval, as `Measured` has them."""
    if measured["expected"] is None:
        return "–"
    if score != "accuracy":
        low, high = measured["interval"] or (-math.inf, 1)
        return f"{measured['expected']:.2f} ({low:.2f} to {high:.2f})"
    low, high = (f"{100 * limit:.0f}" for limit in measured["interval"] or (0, 1))
    return f"{measured['expected']:.0%} ({low} to {high})"


def with_errors(evaluation: dict[str, Any], columns: Columns | None) -> dict[str, Any]:
    """An evaluation with root mean squared errors in the target's own unit, if it is of numbers."""
    if columns is None or columns.scaling is None:
        return evaluation
    scale = columns.scaling.scale
    errors = {task: scale * loss**0.5 for task, loss in evaluation["losses"].items()}
    return {**evaluation, "error": sum(errors.values()) / len(errors), "errors": errors}


def print_tasks(title: str, evaluation: dict[str, Any]) -> None:
    """Print the accuracy, loss and entropy of every task; of numbers the typical error."""
    score = evaluation.get("score", "accuracy")
    measures = {"error": "errors", "loss": "losses", "entropy": "entropies"}
    measures = {name: each for name, each in measures.items() if each in evaluation}

    def line(first: str, value: float, values: Iterable[float]) -> list[str]:
        pairs = zip(measures, values, strict=True)
        shown = (in_unit(v) if name == "error" else f"{v:.4f}" for name, v in pairs)
        return [first, scored(value, score), *shown]

    rows = [
        line(task, value, (evaluation[each][task] for each in measures.values()))
        for task, value in evaluation["accuracies"].items()
    ]
    rows.append(line("mean", evaluation["accuracy"], (evaluation[name] for name in measures)))
    names = ("typical error" if name == "error" else name for name in measures)
    print_table(title, ["task", score, *names], rows)
