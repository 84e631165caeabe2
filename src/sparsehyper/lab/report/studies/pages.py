"""What the pages of all studies have in common: tables, claims, and the page itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sparsehyper._util.extras import require
from sparsehyper._util.files import replaced
from sparsehyper.lab.report.plots import STYLES

GREY = "#444444"


class Table(NamedTuple):
    """A title, headings, and rows of cells."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


class StudyReport(NamedTuple):
    """How a study is shown.

    Attributes:
        title: of its page.
        question: that it asks.
        method: how it answers it.
        tables: of its results; the claims' table is common to all.
        draw: makes the picture, of its results and a path.
        picture: the picture's file name.
    """

    title: str
    question: str
    method: str
    tables: Callable[[Mapping[str, Any]], list[Table]]
    draw: Callable[[Mapping[str, Any], str | PathLike[str]], None]
    picture: str


def all_tables(report: StudyReport, results: Mapping[str, Any]) -> list[Table]:
    """The tables of a study, that of its claims first."""
    return [*([claims_table(results)] if results.get("claims") else []), *report.tables(results)]


def markdown(report: StudyReport, results: Mapping[str, Any]) -> str:
    """A study's page."""
    machine, claims = results["machine"], results.get("claims", [])
    found = [claim["verdict"] for claim in claims]
    counts = ", ".join(
        f"{found.count(verdict)} {verdict}"
        for verdict in ("supported", "not supported", "undecided")
        if verdict in found
    )
    verdicts = f"**Verdicts.** Of {len(claims)} claims that a difference is above zero: {counts}.\n"
    parts = [
        f"# {report.title}\n",
        f"**Question.** {report.question}\n",
        f"**Method.** {report.method}\n",
        *([verdicts] if claims else []),
        f"**Command.** `{results['command']}`; all settings are in `study.json`.\n",
        f"**Machine and time.** {machine['cpu']}, {machine['cores']} cores, one thread for each "
        f"training, PyTorch {machine['torch']}; {results['seconds'] / 60:.0f} minutes of one "
        "core.\n",
        f"![{report.title}]({report.picture})\n",
    ]
    return "\n".join([*parts, *map(as_markdown, all_tables(report, results))])


def as_markdown(table: Table) -> str:
    """A table with its title."""
    lines = [f"**{table.title}**\n", f"| {' | '.join(table.columns)} |"]
    lines.append("| --- " + "| ---: " * (len(table.columns) - 1) + "|")
    lines += [f"| {' | '.join(map(str, row))} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def claims_table(results: Mapping[str, Any]) -> Table:
    """Every claim with its interval and verdict."""
    rows = [
        [
            claim["family"],
            claim["claim"],
            *([shots_text(claim["shots"])] if "shots" in claim else []),
            f"{100 * claim['mean']:+.2f}",
            interval_text(claim),
            claim["verdict"],
        ]
        for claim in results["claims"]
    ]
    shots = ["images a class"] if "shots" in results["claims"][0] else []
    columns = ["where", "difference", *shots, "points", "95% interval", "above zero?"]
    return Table("Differences of accuracy", columns, rows)


def by_method(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> dict[str, list[Any]]:
    """The rows of each method, those with other values of the ``wanted`` keys left out.

    >>> by_method([{"method": "a", "family": 1}, {"method": "a", "family": 2}], family=2)
    {'a': [{'method': 'a', 'family': 2}]}
    """
    found: dict[str, list[Any]] = {}
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            found.setdefault(row["method"], []).append(row)
    return found


def searches_table(results: Mapping[str, Any]) -> Table:
    """What the searches of hyperparameters found."""
    rows = [
        [
            name.removeprefix("search--"),
            ", ".join(_setting(path, value) for path, value in search["settings_found"].items()),
            f"{100 * search['validation']:.2f}",
            f"{100 * search['trials'][0]['validation']:.2f}",
        ]
        for name, search in results["searches"].items()
    ]
    title = f"Settings found, {results['study']['trials']} trials each, by validation accuracy"
    return Table(title, ["search", "found", "validation, %", "default's, %"], rows)


def _setting(path: str, value: Any) -> str:
    name = path.rpartition(".")[2]
    return f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"


def interval_text(interval: Mapping[str, Any], factor: float = 100) -> str:
    """A 95% interval, in percent points unless another ``factor`` is given."""
    if interval["low"] is None:
        return "–"
    return f"{factor * interval['low']:+.2f} to {factor * interval['high']:+.2f}"


def shots_text(shots: int | str | None) -> str:
    """A number of images a class; None stands for all."""
    return "all" if shots is None else str(shots)


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    return f"{100 * statistics.fmean(values):.2f} ± {100 * deviation(values):.2f}"


def deviation(values: Sequence[float]) -> float:
    """The standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


@contextmanager
def panels(
    titles: Sequence[str],
    path: str | PathLike[str],
    *,
    size: tuple[float, float] = (6, 3.6),
    legend: int = 4,
) -> Iterator[list[Any]]:
    """Within, there is a panel for each title; afterwards they are a PNG, with one legend below.

    Args:
        titles: of the panels, of which two are side by side.
        path: of the picture.
        size: of a panel, in inches.
        legend: columns of the legend, of which every label is shown once.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    figure = require("matplotlib.figure", "cli").Figure(
        figsize=(size[0] * columns, size[1] * rows + 0.8),
        dpi=150,
        layout="constrained",
        facecolor="white",
    )
    found = [figure.add_subplot(rows, columns, i + 1) for i in range(len(titles))]
    for axes, title in zip(found, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
    yield found
    handles: dict[str, Any] = {}
    for axes in found:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        place = {"loc": "outside lower center", "ncols": legend, "frameon": False}
        figure.legend(handles.values(), handles.keys(), **place)
    with replaced(Path(path)) as file:
        figure.savefig(file, format="png")


def points(
    axes: Any, x: Sequence[float], values: Sequence[Sequence[float]], label: str, **style: Any
) -> None:
    """A line of means in percent with their standard deviations, in the style of a method."""
    colour, marker = STYLES.get(label, (GREY, "o"))
    axes.errorbar(
        x,
        [100 * statistics.fmean(v) for v in values],
        yerr=[100 * deviation(v) for v in values],
        label=label,
        **{
            "color": colour,
            "marker": marker,
            "linewidth": 1.5,
            "markersize": 5,
            "capsize": 2,
            **style,
        },
    )
