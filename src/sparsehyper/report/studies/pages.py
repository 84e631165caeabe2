"""What the pages of all studies have in common: tables, claims, and the page itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

from sparsehyper._extras import require

GREY = "#444444"

# Okabe and Ito's colours, which people of any colour vision tell apart: method → colour, marker.
STYLES = {
    "sparse": ("#D55E00", "o"),
    "chunked": ("#0072B2", "s"),
    "dense": ("#009E73", "^"),
    "experts": ("#555555", "D"),
    "shared trunk": ("#CC79A7", "v"),
    "sparse, affine": ("#E69F00", "P"),
    "sparse, MLP": ("#8B6F00", "X"),
    "chunks of tensors": ("#56B4E9", "p"),
    "butterfly": ("#7A5195", "<"),
    "experts, masked": ("#555555", "D"),
    "experts, pruned": ("#000000", "*"),
}


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


def markdown(name: str, report: StudyReport, results: Mapping[str, Any]) -> str:
    """A study's page."""
    machine, claims = results["machine"], results.get("claims", [])
    found = [claim["verdict"] for claim in claims]
    counts = ", ".join(
        f"{found.count(verdict)} {verdict}"
        for verdict in ("supported", "not supported", "undecided")
        if verdict in found
    )
    verdicts = f"**Verdicts.** Of {len(claims)} differences above zero: {counts}.\n"
    parts = [
        f"# {report.title}\n",
        f"**Question.** {report.question}\n",
        f"**Method.** {report.method}\n",
        *([verdicts] if claims else []),
        f"**Command.** `sparsehyper study {name} --out FOLDER`; all settings are in "
        "`study.json` and `results.json`.\n",
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
    columns: int = 2,
    size: tuple[float, float] = (6, 3.6),
    legend: int = 4,
) -> Iterator[list[Any]]:
    """Within, there is a panel for each title; afterwards they are a PNG, with one legend below.

    Args:
        titles: of the panels.
        path: of the picture.
        columns: of panels, at most.
        size: of a panel, in inches.
        legend: columns of the legend, of which every label is shown once.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = min(columns, len(titles))
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
    figure.savefig(path, format="png")


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
