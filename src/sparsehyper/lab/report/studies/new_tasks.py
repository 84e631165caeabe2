"""The study of new tasks, as tables and as one picture: accuracy against images a class."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from sparsehyper.lab.report.studies.pages import (
    GREY,
    StudyReport,
    Table,
    by_method,
    panels,
    percent,
    points,
    shots_text,
)

LINES = {
    "sparse linear": ("#D55E00", "o", "-"),
    "sparse linear, growth 8": ("#E69F00", "P", "-"),
    "sparse linear, base and 256": ("#882255", "h", "-"),
    "sparse PReLU": ("#CC79A7", "v", "-"),
    "chunked": ("#0072B2", "s", "-"),
    "chunked, base": ("#332288", "p", "-"),
    "dense linear": ("#009E73", "^", "-"),
    "sparse linear, then all": ("#D55E00", "o", ":"),
    "mean model, tuned": ("#CC79A7", "d", ":"),
    "linear probe": ("#56B4E9", "X", "--"),
    "scratch": ("#555555", "D", "--"),
    "reptile": ("#8B6F00", "<", "--"),
    "nearest mean": ("#000000", "*", "--"),
}


def _tables(results: Mapping[str, Any]) -> list[Table]:
    """Accuracies of every family."""
    names = [shots_text(shots) for shots in results["study"]["shots"]]
    tables = []
    for family in results["study"]["families"]:
        rows = []
        for method, own in by_method(results["rows"], family=family).items():
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
        title = f"{family}: accuracy on new tasks, %, by images a class"
        tables.append(Table(title, columns, rows))
    return tables


def _draw(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """A panel a family, a line a method."""
    families, shots = list(results["study"]["families"]), results["study"]["shots"]
    places = range(len(shots))
    with panels(families, path) as drawn:
        for family, axes in zip(families, drawn, strict=True):
            own = by_method(results["rows"], family=family)
            for method in LINES:  # in this order in the legend
                if method in own:
                    colour, marker, style = LINES[method]
                    values = [row["accuracy"] for row in own[method]]
                    look = {"color": colour, "marker": marker, "linestyle": style}
                    points(axes, places, values, method, **look)
            axes.set_xticks(list(places), [shots_text(s) for s in shots])
        for axes in drawn[::2]:
            axes.set_ylabel("accuracy on new tasks, %", color=GREY)
        for axes in drawn[-2:]:
            axes.set_xlabel("images of each class", color=GREY)


REPORT = StudyReport(
    "New tasks",
    "Can models for new tasks be inferred by an embedding alone, and are linear sparse generators "
    "better at that than sparse ones with an activation, and than chunked ones of the same budget?",
    "Every method is trained on the same tasks and learns the same held-out ones from 1, 5, 20, "
    "100 and all images a class. Accuracies are means over held-out tasks ± standard deviation "
    "over seeds; claims are paired differences over seeds with Student's t intervals, and the "
    "verdict on a family is that of its mean over numbers of images.",
    _tables,
    _draw,
    "accuracy_vs_shots.png",
)
