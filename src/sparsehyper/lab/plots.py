"""Pictures: the style of each method, and scores against the number of parameters."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

from sparsehyper._util.extras import require
from sparsehyper._util.files import replaced
from sparsehyper.training.evaluate import ACCURACY

# Okabe and Ito's colours, which are told apart with any colour vision, and some dark ones.
VERMILION, BLUE, GREEN = "#D55E00", "#0072B2", "#009E73"
ORANGE, SKY, PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
BROWN, VIOLET, WINE, INDIGO = "#8B6F00", "#7A5195", "#882255", "#332288"
DARK, BLACK = "#555555", "#000000"
GREY = "#444444"  # of texts
BUDGET = "trainable parameters ÷ parameters of one target (log scale)"  # label of an axis

# Method → colour and marker.
STYLES = {
    "sparse": (VERMILION, "o"),
    "chunked": (BLUE, "s"),
    "dense": (GREEN, "^"),
    "experts": (DARK, "D"),
    "shared trunk": (PURPLE, "v"),
    "sparse, affine": (ORANGE, "P"),
    "sparse, MLP": (BROWN, "X"),
    "chunks of tensors": (SKY, "p"),
    "butterfly": (VIOLET, "<"),
    "experts, masked": (DARK, "D"),
    "experts, pruned": (BLACK, "*"),
    "thesis's sparse, uniform": (ORANGE, "^"),
    "thesis's sparse, local": (ORANGE, "<"),
    "thesis's chunked": (SKY, "p"),
}
_OTHERS = ((ORANGE, "P"), (SKY, "X"), (BLACK, "*"), (BROWN, "<"), (VIOLET, ">"))
_LONGEST = 60  # characters of a title's part
_LEAST_RANGE = 4  # last budget ÷ first one, so that near ones do not fill the axis

# Places of a label beside its point: offset in points and alignment, the preferred one first.
_PLACES = [
    ((7, 5), "left", "bottom"),
    ((7, -5), "left", "top"),
    ((0, 10), "center", "bottom"),
    ((0, -10), "center", "top"),
    ((-7, 5), "right", "bottom"),
    ((-7, -5), "right", "top"),
    *(((0, sign * y), "center", "center") for y in (24, 36, 48, 60) for sign in (1, -1)),
]


def scored_as(results: Mapping[str, Any]) -> str:
    """What the accuracies of a comparison are: ``"accuracy"`` or ``"R²"``."""
    score: str = results.get("score", ACCURACY)  # results from before there was R² lack it
    return score


def accuracy_vs_budget(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Draw test accuracy, or R², against trainable parameters ÷ N, on a log axis, as an SVG.

    Each row is a point with its standard deviation over seeds; a line joins the budgets of a
    method.

    Args:
        results: what `sparsehyper.lab.runs.compare` returns, with at least one row.
        path: picture to write.

    Raises:
        ValueError: there are no rows.
        MissingExtraError: matplotlib is not installed.
    """
    if not results["rows"]:
        raise ValueError("`results` has no rows to draw")
    draw_budgets(results["rows"], _title(results), path, scored_as(results))


def draw_budgets(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    path: str | PathLike[str],
    score: str = ACCURACY,
) -> None:
    """Draw rows with ``method``, ``parameters_per_target_parameter`` and ``accuracy`` (``mean`` and
    ``sd``), as `accuracy_vs_budget` does; ``score`` says what the accuracies are.
    """
    unit, scale = (", %", 100) if score == ACCURACY else ("", 1)
    box_type = require("matplotlib.transforms", "cli").Bbox
    figure = new_figure((7, 4.2))
    axes = figure.add_subplot()
    bars: list[list[tuple[float, float]]] = []
    labels: list[tuple[str, tuple[float, float], str]] = []
    for method, (colour, marker) in styles(row["method"] for row in rows).items():
        own = sorted(
            (row for row in rows if row["method"] == method),
            key=lambda row: row["parameters_per_target_parameter"],
        )
        x = [row["parameters_per_target_parameter"] for row in own]
        y = [scale * row["accuracy"]["mean"] for row in own]
        sd = [scale * (row["accuracy"]["sd"] or 0) for row in own]
        axes.errorbar(
            x,
            y,
            yerr=sd,
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=1.5,
            elinewidth=1.2,
            capsize=3,
        )
        bars += [[(a, b - c), (a, b + c)] for a, b, c in zip(x, y, sd, strict=True)]
        labels.append((method.replace("_", " "), (x[-1], y[-1]), colour))
    axes.margins(y=0.16)
    ratios = [row["parameters_per_target_parameter"] for row in rows]
    room = max((max(ratios) / min(ratios)) ** 0.16, 1.3)  # for the names beside the points
    budget_axis(axes, ratios, room)
    axes.set_xlabel(BUDGET, color=GREY)
    spread = " ± standard deviation" * any(row["accuracy"]["sd"] is not None for row in rows)
    axes.set_ylabel(f"mean test {score}{spread}{unit}", color=GREY)
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=GREY)
    figure.draw_without_rendering()  # the layout in pixels is known from here on
    taken = [box_type(axes.transData.transform(bar)).padded(7) for bar in bars]
    for text, point, colour in sorted(labels, key=lambda label: -label[1][1]):
        taken.append(_label(axes, text, point, colour, taken))
    save_figure(figure, path)


def new_figure(size: tuple[float, float]) -> Any:
    """A white matplotlib figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return require("matplotlib.figure", "cli").Figure(
        figsize=size, layout="constrained", facecolor="white"
    )


def save_figure(figure: Any, path: str | PathLike[str]) -> None:
    """Write a figure as an SVG, which turns dark where the reader's pages are.

    The same figure gives the same bytes.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": "sparsehyper"}  # text stays text
    drawn = io.StringIO()
    with require("matplotlib", "cli").rc_context(settings):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    # The second filter turns the colours back, so that the first one changes brightness alone.
    dark = "svg { filter: invert(0.9) hue-rotate(180deg) brightness(1.25) }"
    style = f"<style>@media (prefers-color-scheme: dark) {{ {dark} }}</style>"
    text = drawn.getvalue().replace("<defs>", f"{style}\n <defs>", 1)
    with replaced(Path(path)) as file:
        file.write(text.encode())


def _label(axes: Any, text: str, point: tuple[float, float], colour: str, taken: list[Any]) -> Any:
    """Write a label beside its point, in the first place that overlaps nothing.

    Returns:
        The label's bounding box.
    """
    label = axes.annotate(
        text,
        point,
        xytext=(0, 0),
        textcoords="offset points",
        color=colour,
        fontsize=10,
        fontweight="bold",
    )
    for offset, horizontal, vertical in _PLACES:
        label.set(position=offset, horizontalalignment=horizontal, verticalalignment=vertical)
        box = label.get_window_extent()
        inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
        if inside and not any(box.overlaps(other) for other in taken):
            break
    return box


def styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The colour of each method, and matplotlib's name of its marker."""
    others = iter(_OTHERS)
    return {
        method: STYLES.get(method.replace("_", " ")) or next(others, (BLACK, "."))
        for method in dict.fromkeys(methods)
    }


def budget_axis(axes: Any, ratios: Sequence[float], room: float) -> None:
    """Make the x axis a log axis, labelled at 1, 2 and 5 times powers of ten.

    It spans a factor of four at least.

    Args:
        axes: matplotlib's axes.
        ratios: the values on it.
        room: factor of what is free below the lowest and above the highest value.
    """
    low, high = min(ratios), max(ratios)
    margin = max(room, math.sqrt(_LEAST_RANGE * low / high))
    first, last = low / margin, high * margin
    axes.set_xscale("log")
    axes.set_xlim(first, last)
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)))
    ticks = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _short(text: str) -> str:
    """A title's part, cut where it would run out of the picture."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _title(results: Mapping[str, Any]) -> str:
    config, tasks = results["config"], len(results["tasks"]["names"])
    seeds = max(len(row["seeds"]) for row in results["rows"])  # failed ones are not among them
    made = config["data"]["tasks"]
    source = PurePath(config["data"]["source"]).name + (f" {made}" if made else "")
    return (
        f"{_short(source)}: {tasks} tasks\ntarget {_short(config['target'])} "
        f"(N = {results['numel']:,}), "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )
