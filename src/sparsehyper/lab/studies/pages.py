"""What the pages of studies are made of: tables, texts of numbers, and panels of a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

from sparsehyper.lab.plots import GREY, STYLES, new_figure, save_figure
from sparsehyper.lab.studies.intervals import in_images


class Table(NamedTuple):
    """A table with notes below it."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    notes: Sequence[str] = ()


def as_markdown(table: Table) -> str:
    r"""A table as Markdown, with its title above it.

    >>> print(as_markdown(Table("Tasks", ["name", "images"], [["a|b", 7]])))
    **Tasks**
    <BLANKLINE>
    | name | images |
    | --- | ---: |
    | a\|b | 7 |
    <BLANKLINE>
    """
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [[str(cell).replace("|", r"\|") for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |\n" for row in (table.columns, rule, *rows)]
    notes = [f"\n{note}\n" for note in table.notes]
    return "".join([f"**{table.title}**\n\n", *lines, *notes])


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    """All claims, with their intervals and verdicts."""
    rows = [
        [
            claim["family"],
            claim["claim"],
            *([shots_text(claim["shots"])] if "shots" in claim else []),
            f"{100 * claim['mean']:+.2f}",
            interval_text(claim),
            *([_p(claim["p"]), in_images(claim)] if "p" in claim else []),
            claim["verdict"],
        ]
        for claim in claims
    ]
    shots = ["images per class"] if "shots" in claims[0] else []
    corrected = ["p, corrected", "in images"] if "p" in claims[0] else []
    columns = ["where", "difference", *shots, "points", "95% interval", *corrected, "above zero?"]
    return Table("Differences of accuracy", columns, rows)


def _p(p: float | None) -> str:
    """A p value; a claim that does not count has none."""
    return "–" if p is None else f"{p:.3f}"


def goal_row(figure: str, goal: str, found: str, reached: bool) -> dict[str, Any]:
    """A figure that was to be reached, for the ``figures`` of a study's results."""
    return {"figure": figure, "goal": goal, "found": found, "reached": reached}


def goals_table(results: Mapping[str, Any], notes: Sequence[str]) -> Table:
    """The ``figures`` of a study's results, each as by `goal_row`."""
    rows = [
        [row["figure"], row["goal"], row["found"], "yes" if row["reached"] else "no"]
        for row in results["figures"]
    ]
    return Table("Figures to reach", ["figure", "goal", "found", "reached"], rows, notes)


def by_method(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> dict[str, list[Any]]:
    """The rows of each method whose ``wanted`` keys have these values.

    >>> by_method([{"method": "a", "family": 1}, {"method": "a", "family": 2}], family=2)
    {'a': [{'method': 'a', 'family': 2}]}
    """
    found: dict[str, list[Any]] = {}
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            found.setdefault(row["method"], []).append(row)
    return found


def searches_table(results: Mapping[str, Any]) -> Table:
    """The hyperparameters that were found, and what they reached."""
    grown = any("at_an_end" in search for search in results["searches"].values())
    rows = [
        [
            name.removeprefix("search--"),
            ", ".join(_setting(path, value) for path, value in search["settings_found"].items()),
            f"{100 * search['validation']:.2f}",
            f"{100 * search['trials'][0]['validation']:.2f}",
            *([str(len(search["trials"])), ", ".join(search["at_an_end"])] if grown else []),
        ]
        for name, search in results["searches"].items()
    ]
    each = "for each setting" if grown else "each"
    title = f"Settings found, {results['study']['trials']} trials {each}, by validation accuracy"
    more = ["trials", "still at an end"] if grown else []
    return Table(title, ["search", "found", "validation, %", "default's, %", *more], rows)


def _setting(path: str, value: Any) -> str:
    name = path.rpartition(".")[2]
    return f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"


def interval_text(interval: Mapping[str, Any], factor: float = 100) -> str:
    """A 95% interval, times ``factor``: in percentage points by default."""
    if interval["low"] is None:
        return "–"
    return f"{factor * interval['low']:+.2f} to {factor * interval['high']:+.2f}"


def shots_text(shots: int | str | None) -> str:
    """A number of images per class; None stands for all."""
    return "all" if shots is None else str(shots)


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    return f"{100 * statistics.fmean(values):.2f} ± {100 * deviation(values):.2f}"


def deviation(values: Sequence[float]) -> float:
    """The standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


@contextmanager
def panels(
    titles: Sequence[str],
    path: str | PathLike[str],
    *,
    x: str = "",
    y: str = "",
    size: tuple[float, float] = (6, 3.6),
    legend: int = 4,
) -> Iterator[list[Any]]:
    """Panels to draw in, which are saved as an SVG with one legend below when the context ends.

    Args:
        titles: panel titles; panels stand two in a row, or three if that leaves none alone.
        path: picture to write.
        x, y: labels of the axes of all panels.
        size: width and height of a panel, in inches.
        legend: number of columns of the legend, which shows every label once.

    Yields:
        matplotlib's axes of each panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = 3 if len(titles) % 2 and len(titles) % 3 == 0 else min(2, len(titles))
    rows = -(-len(titles) // columns)
    figure = new_figure((size[0] * columns, size[1] * rows + 0.8))
    found = [figure.add_subplot(rows, columns, i + 1) for i in range(len(titles))]
    for axes, title in zip(found, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
    for axes in found[::columns]:
        axes.set_ylabel(y, color=GREY)
    for axes in found[-columns:]:
        axes.set_xlabel(x, color=GREY)
    yield found
    handles: dict[str, Any] = {}
    for axes in found:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        place = {"loc": "outside lower center", "ncols": legend, "frameon": False}
        figure.legend(handles.values(), handles.keys(), **place)
    save_figure(figure, path)


def points(
    axes: Any, x: Sequence[float], values: Sequence[Sequence[float]], label: str, **style: Any
) -> None:
    """Draw means in percent as a line, with their standard deviations.

    Args:
        axes: matplotlib's axes.
        x: x coordinate of each point.
        values: values of each point, as shares.
        label: name of the method, which determines the line's style.
        style: matplotlib settings that override the method's style.
    """
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


def shots_panels(
    results: Mapping[str, Any],
    lines: Mapping[str, tuple[str, str, str]],
    path: str | PathLike[str],
    x: str = "images per class",
) -> None:
    """Draw accuracy against numbers of examples, a panel for each family.

    Args:
        results: of a study with ``families`` and ``rows``.
        lines: colour, marker and style of each method, in the order of the legend.
        path: picture to write.
        x: what the examples are.
    """
    families, shots = list(results["study"]["families"]), _all_shots(results)
    with panels(families, path, x=x, y="accuracy on new tasks, %") as drawn:
        for family, axes in zip(families, drawn, strict=True):
            own = by_method(results["rows"], family=family)
            for method, (colour, marker, style) in lines.items():
                if method in own:
                    places = [shots.index(row["shots"]) for row in own[method]]
                    values = [row["accuracy"] for row in own[method]]
                    look = {"color": colour, "marker": marker, "linestyle": style}
                    points(axes, places, values, method, **look)
            axes.set_xticks(range(len(shots)), [shots_text(s) for s in shots])


def shots_lines(
    results: Mapping[str, Any], lines: Mapping[str, tuple[str, str, str]]
) -> dict[str, Any]:
    """As `shots_panels`, but as data for `Study.by_shots`.

    Methods that lack some number of images are left out, and families without any method.
    """
    families: list[dict[str, Any]] = []
    shots = _all_shots(results)
    for family in results["study"]["families"]:
        own = by_method(results["rows"], family=family)
        found = [
            {
                "method": method,
                "mean": [statistics.fmean(row["accuracy"]) for row in rows],
                "sd": [deviation(row["accuracy"]) for row in rows],
                "colour": lines[method][0],
                "marker": lines[method][1],
                "dashed": lines[method][2] != "-",
            }
            for method, rows in own.items()
            if method in lines and len(rows) == len(shots)
        ]
        if found:
            families.append({"name": family, "lines": found})
    return {"shots": [shots_text(s) for s in shots], "families": families}


def _all_shots(results: Mapping[str, Any]) -> list[int | None]:
    """All numbers of images per class, None for all of them at last."""
    found = {row["shots"] for row in results["rows"]}
    return sorted(found, key=lambda shots: float("inf") if shots is None else shots)
