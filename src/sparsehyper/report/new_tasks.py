"""The study of new tasks, as tables and as one picture: accuracy against images a class."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper._extras import require

Table = tuple[str, list[str], list[list[Any]]]

LINES = {
    "sparse linear": ("#D55E00", "o", "-"),
    "sparse linear, growth 8": ("#E69F00", "P", "-"),
    "sparse PReLU": ("#CC79A7", "v", "-"),
    "chunked": ("#0072B2", "s", "-"),
    "dense linear": ("#009E73", "^", "-"),
    "sparse linear, then all": ("#D55E00", "o", ":"),
    "mean model, tuned": ("#CC79A7", "d", ":"),
    "linear probe": ("#56B4E9", "X", "--"),
    "scratch": ("#555555", "D", "--"),
    "reptile": ("#8B6F00", "<", "--"),
    "nearest mean": ("#000000", "*", "--"),
}
_GREY = "#444444"


def table(results: Mapping[str, Any]) -> list[Table]:
    """Accuracies of every family, then the claims: titles, columns and rows."""
    shots = results["study"]["shots"]
    names = [_shots(s) for s in shots]
    tables: list[Table] = []
    for family in results["study"]["families"]:
        rows = []
        for method, own in _by_method(results, family).items():
            trained, identified = (
                [t for t in own[0][key] if t is not None] for key in ("trained", "identified")
            )
            rows.append(
                [
                    method,
                    f"{own[0]['parameters']:.2f}",
                    percent(trained) if trained else "–",
                    percent(identified) if identified else "–",
                    *(percent(row["accuracy"]) for row in own),
                ]
            )
        columns = ["method", "trainable ÷ N", "trained tasks", "told apart", *names]
        tables.append((f"{family}: accuracy on new tasks, %, by images a class", columns, rows))
    claims = [
        [
            claim["family"],
            claim["claim"],
            _shots(claim["shots"]),
            f"{100 * claim['mean']:+.2f}",
            "–"
            if claim["low"] is None
            else f"{100 * claim['low']:+.2f} to {100 * claim['high']:+.2f}",
            claim["verdict"],
        ]
        for claim in results["claims"]
    ]
    columns = ["family", "difference", "images a class", "points", "95% interval", "above zero?"]
    tables.append(("Paired differences over seeds", columns, claims))
    return tables


def markdown(results: Mapping[str, Any]) -> str:
    """The tables, with what they were measured on."""
    study, machine = results["study"], results["machine"]
    parts = [
        f"{study['seeds']} seeds; mean ± standard deviation over seeds of the mean over held-out "
        f"tasks. {machine['cpu']}, {machine['cores']} cores, PyTorch {machine['torch']}; "
        f"{results['seconds'] / 60:.0f} minutes of one core.\n"
    ]
    return "\n".join([*parts, *map(as_markdown, table(results))])


def as_markdown(table: Table) -> str:
    """A table with its title."""
    title, columns, rows = table
    lines = [f"**{title}**\n", f"| {' | '.join(columns)} |"]
    lines.append("| --- " + "| ---: " * (len(columns) - 1) + "|")
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """A panel a family, a line a method with its standard deviation over seeds, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    families = list(results["study"]["families"])
    columns = min(2, len(families))
    rows = -(-len(families) // columns)
    figure = require("matplotlib.figure", "cli").Figure(
        figsize=(6 * columns, 3.6 * rows + 0.8), dpi=150, layout="constrained", facecolor="white"
    )
    shots = results["study"]["shots"]
    places = range(len(shots))
    drawn = {}
    for i, family in enumerate(families):
        axes = figure.add_subplot(rows, columns, i + 1)
        for method, own in _by_method(results, family).items():
            if method not in LINES:
                continue
            colour, marker, style = LINES[method]
            drawn[method] = axes.errorbar(
                places,
                [100 * statistics.fmean(row["accuracy"]) for row in own],
                yerr=[100 * deviation(row["accuracy"]) for row in own],
                color=colour,
                marker=marker,
                linestyle=style,
                linewidth=1.5,
                markersize=5,
                capsize=2,
            )
        axes.set_xticks(list(places), [_shots(s) for s in shots])
        axes.set_title(family, loc="left", fontsize=11, parse_math=False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_GREY)
        if i % columns == 0:
            axes.set_ylabel("accuracy on new tasks, %", color=_GREY)
        if i >= len(families) - columns:
            axes.set_xlabel("images of each class", color=_GREY)
    figure.legend(
        [drawn[m] for m in LINES if m in drawn],
        [m for m in LINES if m in drawn],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    figure.savefig(path, format="png")


def _by_method(results: Mapping[str, Any], family: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["family"] == family:
            found.setdefault(row["method"], []).append(row)
    return found


def _shots(shots: int | str | None) -> str:
    return "all" if shots is None else str(shots)


def percent(values: list[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    return f"{100 * statistics.fmean(values):.2f} ± {100 * deviation(values):.2f}"


def deviation(values: list[float]) -> float:
    """The standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
