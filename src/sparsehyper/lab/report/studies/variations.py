"""The study of variations, as tables and as a picture: the effect of every setting."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper.lab.report.studies.pages import GREY, StudyReport, Table, interval_text, panels

_LEVEL = 0.05 / 24  # of the tests of twelve factors on two outcomes, after Bonferroni
_PANELS = {"trained tasks": "#D55E00", "new tasks": "#0072B2"}


def _tables(results: Mapping[str, Any]) -> list[Table]:
    """What each setting changes, and how large each factor's part is."""
    effects = results["effects"]
    levels = [(e["factor"], e["level"]) for e in effects["trained tasks"]]
    by_level = {
        outcome: {(e["factor"], e["level"]): e for e in found} for outcome, found in effects.items()
    }
    rows = []
    for factor, level in levels:
        size, step = (2 ** by_level[name][factor, level]["mean"] for name in ("size", "step"))
        cells = [factor, level]
        for outcome in _PANELS:
            effect = by_level[outcome][factor, level]
            cells += [f"{100 * effect['mean']:+.2f}", interval_text(effect)]
        own = [run["failed"] for run in results["runs"] if run["levels"][factor] == level]
        rows.append([*cells, f"{size:.2f} ×", f"{step:.2f} ×", f"{sum(own)} of {len(own)}"])
    columns = [
        "factor",
        "level",
        "trained tasks",
        "95%",
        "new tasks",
        "95%",
        "size",
        "step time",
        "failed",
    ]
    return [
        Table("Main effects over the default setting, points of accuracy", columns, rows),
        Table("What matters: the F test of each factor", *_importance(results)),
    ]


def _importance(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Per factor the share of the variance that only it explains, and the test's p."""
    found = {o: {test["factor"]: test for test in results["factors"][o]} for o in _PANELS}
    columns = ["factor"]
    for outcome in _PANELS:
        columns += [f"{outcome}: share of the variance, %", "p", "matters?"]
    rows = []
    for factor in found["trained tasks"]:
        cells: list[Any] = [factor]
        for outcome in _PANELS:
            test = found[outcome][factor]
            p = test["p"]
            cells += [f"{100 * test['share']:.1f}", "–" if p is None else f"{p:.1g}"]
            cells.append("–" if p is None else "yes" if p < _LEVEL else "not shown")
        rows.append(cells)
    return columns, rows


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """A row a setting, with the interval of its effect."""
    titles = [f"{outcome}: effect over the default, points" for outcome in _PANELS]
    count = len(results["effects"]["trained tasks"])
    with panels(titles, path, size=(6.5, 0.23 * count)) as drawn:
        for axes, (outcome, colour) in zip(drawn, _PANELS.items(), strict=True):
            effects = results["effects"][outcome]
            means = [100 * e["mean"] for e in effects]
            errors = [0.0 if e["low"] is None else 100 * (e["mean"] - e["low"]) for e in effects]
            places = range(len(effects))
            axes.errorbar(means, places, xerr=errors, fmt="o", color=colour, capsize=2)
            axes.axvline(0, color=GREY, linewidth=0.8)
            axes.set_yticks(list(places), [f"{e['factor']}: {e['level']}" for e in effects])
            axes.invert_yaxis()


REPORT = StudyReport(
    "Variations of the sparse hypernetwork",
    "Which settings of a sparse hypernetwork matter, and which do not?",
    "Every run draws a level of every factor at random, balanced over runs, and a seed of its own; "
    "it trains on permutations of the pixels, then learns others by their embeddings alone. "
    "Effects are those of a least-squares fit without interactions, over the default level of "
    "each factor, with intervals from the residuals; they are not corrected for their multitude. "
    "Runs with less than half the median accuracy on trained tasks failed; effects are those of "
    "the others. Runs differ in size, as settings do: the column tells by how much. A factor "
    "matters where the F test of its levels has p < 0.05 ÷ 24, the number of tests.",
    _tables,
    _draw,
    "main_effects.png",
)
