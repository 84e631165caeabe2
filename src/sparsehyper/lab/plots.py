"""Pictures: the style of each method, and accuracy against the number of parameters."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

from sparsehyper._util.extras import require
from sparsehyper._util.files import replaced

# Okabe and Ito's colours, which are told apart with any colour vision, and some dark ones.
VERMILION, BLUE, GREEN = "#D55E00", "#0072B2", "#009E73"
ORANGE, SKY, PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
BROWN, VIOLET, WINE, INDIGO = "#8B6F00", "#7A5195", "#882255", "#332288"
DARK, BLACK = "#555555", "#000000"
GREY = "#444444"  # of texts

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
}
_OTHERS = ((ORANGE, "P"), (SKY, "X"), (BLACK, "*"), (BROWN, "<"), (VIOLET, ">"))
_PALETTE = 128  # colours of a picture
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


def accuracy_vs_budget(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Draw test accuracy against trainable parameters ÷ N, on a log axis, as a PNG.

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
    draw_budgets(results["rows"], _title(results), path)


def draw_budgets(rows: Sequence[Mapping[str, Any]], title: str, path: str | PathLike[str]) -> None:
    """Draw rows with ``method``, ``parameters_per_target_parameter`` and ``accuracy`` (``mean`` and
    ``sd``), as `accuracy_vs_budget` does.
    """
    box_type = require("matplotlib.transforms", "cli").Bbox
    figure = new_figure((7, 4.2), dpi=200)
    axes = figure.add_subplot()
    bars: list[list[tuple[float, float]]] = []
    labels: list[tuple[str, tuple[float, float], str]] = []
    for method, (colour, marker) in styles(row["method"] for row in rows).items():
        own = sorted(
            (row for row in rows if row["method"] == method),
            key=lambda row: row["parameters_per_target_parameter"],
        )
        x = [row["parameters_per_target_parameter"] for row in own]
        y = [100 * row["accuracy"]["mean"] for row in own]
        sd = [100 * (row["accuracy"]["sd"] or 0) for row in own]
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
    axes.set_xscale("log")
    axes.margins(y=0.16)
    _budget_axis(axes, [row["parameters_per_target_parameter"] for row in rows])
    axes.set_xlabel("trainable parameters ÷ parameters of one target (log scale)", color=GREY)
    spread = " ± standard deviation" * any(row["accuracy"]["sd"] is not None for row in rows)
    axes.set_ylabel(f"mean test accuracy{spread}, %", color=GREY)
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=GREY)
    figure.draw_without_rendering()  # the layout in pixels is known from here on
    taken = [box_type(axes.transData.transform(bar)).padded(7) for bar in bars]
    for text, point, colour in sorted(labels, key=lambda label: -label[1][1]):
        taken.append(_label(axes, text, point, colour, taken))
    save_figure(figure, path)


def new_figure(size: tuple[float, float], dpi: int) -> Any:
    """A white matplotlib figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return require("matplotlib.figure", "cli").Figure(
        figsize=size, dpi=dpi, layout="constrained", facecolor="white"
    )


def save_figure(figure: Any, path: str | PathLike[str]) -> None:
    """Write a figure as a PNG with a palette, about a third of the size of one in full colour."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    pillow = require("PIL.Image", "cli")
    image = pillow.open(drawn).convert("RGB")
    image = image.quantize(_PALETTE, dither=pillow.Dither.NONE)
    with replaced(Path(path)) as file:
        image.save(file, format="png", optimize=True)


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


def _budget_axis(axes: Any, ratios: Sequence[float]) -> None:
    """Label a log axis at 1, 2 and 5 times powers of ten, over a factor of four at least."""
    low, high = min(ratios), max(ratios)
    margin = max((high / low) ** 0.16, math.sqrt(_LEAST_RANGE * low / high), 1.3)
    first, last = low / margin, high * margin  # the names beside the points need room
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
