"""The study of scaling: accuracy and cost as the target grows, and as the number of tasks grows.

Either the target grows at a fixed number of tasks, or the number of tasks grows at a fixed target.
The number of updates and of images per batch stays the same, so with more tasks each of them sees
fewer images. Growth is measured by exponents: the slope of a straight line through logarithms.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from os import PathLike
from typing import Any

from sparsehyper.generators import Generator
from sparsehyper.lab.plots import GREY, STYLES
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import target_layout
from sparsehyper.lab.studies.cells import Workspace, slug
from sparsehyper.lab.studies.intervals import claim_of, paired
from sparsehyper.lab.studies.pages import (
    Table,
    by_method,
    deviation,
    interval_text,
    panels,
    percent,
    searches_table,
)
from sparsehyper.lab.studies.search import LR, LRS, SEARCH_SEED, run_searches, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import chunked_within, run_trainings, training
from sparsehyper.layout import count_numbers

# Method → its description.
SCALED_METHODS = {
    "sparse": "sparse",
    "chunked": "chunked",
    "experts": "experts",
    "shared trunk": "shared_trunk",
}
_BUDGET, _LATENT = 4.0, 64
_REFERENCE, _RIVAL = "sparse", "chunked"

# What grows → its key in a row, and the label of its axis.
_AXES = {"target": ("numel", "N, parameters of one target"), "tasks": ("tasks", "tasks")}


@dataclass(frozen=True)
class Scaling(Study):
    """The study of scaling.

    Results: ``searches``; ``rows``, with the ``part`` (``"target"`` or ``"tasks"``, whichever
    grows), ``method``, ``numel`` (N), ``tasks``, and for each seed ``accuracy``, ``parameters`` ÷
    N, ``step_ms`` and ``peak_memory_mb``; ``exponents``, with part, method, measure, ``mean``,
    ``low`` and ``high``; and ``claims``.

    Args:
        source: source of the images; tasks are permutations.
        widths: widths of the target's two hidden layers, at ``tasks`` tasks.
        counts: numbers of tasks, at a target of ``width``.
        width, tasks: width and number of tasks at which learning rates are searched.
        steps: number of updates.
        tasks_per_batch: tasks in a batch, of 20 images each, if there are as many.
        trials: number of trials of each search.
        seeds: number of seeds.
        device: training device.
    """

    source: str
    widths: tuple[int, ...] = (25, 50, 100, 200, 400)
    counts: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 200)
    width: int = 100
    tasks: int = 10
    steps: int = 600
    tasks_per_batch: int = 5
    trials: int = 5
    seeds: int = 5
    device: str = "cpu"

    name = "scaling"
    title = "Scaling"
    question = (
        "How do accuracy and cost change as the target grows, and as the number of tasks grows?"
    )
    method = (
        "Tasks are permutations of the pixels. The number of updates and of images per batch is "
        "the same everywhere, so with more tasks each of them sees fewer images. Each method has "
        "the learning rate that is best on validation images at one size, of equally many trials. "
        "Exponents are slopes of straight lines through logarithms, one for each seed, with "
        "Student's t intervals over seeds."
    )
    picture = "scaling.svg"

    @classmethod
    def smoke(cls) -> Scaling:
        return cls("digits", (16, 32), (2, 3), 32, 3, 10, trials=2, seeds=2)

    @classmethod
    def cpu(cls) -> Scaling:
        return cls("fashion_mnist")

    @classmethod
    def full(cls) -> Scaling:
        widths = (100, 200, 400, 800, 1600)
        return cls("fashion_mnist", widths, width=400, steps=30_000, trials=20, device="auto")

    def task_sets(self) -> list[DataConfig]:
        return [_data(self, count) for count in sorted({self.tasks, *self.counts})]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        places = {
            "target": [(width, self.tasks) for width in self.widths],
            "tasks": [(self.width, count) for count in self.counts],
        }
        known = workspace.files[_data(self, self.tasks)].load()
        numels = {
            width: count_numbers(target_layout(_experiment(self, "experts", width, 2), known))
            for width in {self.width, *self.widths}
        }

        def experiment(method: str, width: int, count: int, seed: int) -> Experiment:
            described = SCALED_METHODS[method]
            if method == _RIVAL:
                described = chunked_within(_BUDGET, numels[width], _LATENT) or described
            return _experiment(self, described, width, count).with_seed(seed)

        middle = (self.width, self.tasks, SEARCH_SEED)
        searched = {
            f"search--{slug(method)}": (experiment(method, *middle), {LR: LRS})
            for method in SCALED_METHODS
        }
        searches = run_searches(searched, self.trials, workspace)
        experiments = {
            _name(method, width, count, seed): with_settings(
                experiment(method, width, count, seed),
                searches[f"search--{slug(method)}"]["settings_found"],
            )
            for seed in range(self.seeds)
            for width, count in dict.fromkeys([*places["target"], *places["tasks"]])
            for method in SCALED_METHODS
        }
        done = run_trainings(experiments, workspace)
        each = ("accuracy", "step_ms", "peak_memory_mb", "parameters")
        rows = []
        for part, sizes in places.items():
            for width, count in sizes:
                for method in SCALED_METHODS:
                    found = [done[_name(method, width, count, s)] for s in range(self.seeds)]
                    values = {name: [run[name] for run in found] for name in each}
                    place = {"part": part, "method": method, "numel": numels[width], "tasks": count}
                    rows.append({**place, **values})
        return {
            "searches": searches,
            "rows": rows,
            "exponents": _exponents(rows),
            "claims": _claims(rows),
        }

    @staticmethod
    def tables(results: Results) -> list[Table]:
        tables = []
        columns = ["method", "N", "tasks", "trainable ÷ N", "accuracy, %", "step, ms", "peak MB"]
        for part in _AXES:
            rows = [
                [
                    row["method"],
                    f"{row['numel']:,}",
                    row["tasks"],
                    f"{row['parameters'][0]:.2f}",
                    percent(row["accuracy"]),
                    f"{statistics.median(row['step_ms']):.1f}",
                    f"{statistics.median(row['peak_memory_mb']):.0f}",
                ]
                for row in results["rows"]
                if row["part"] == part
            ]
            title = "As the target grows" if part == "target" else "As the number of tasks grows"
            tables.append(Table(title, columns, rows))
        exponents = [
            [
                row["method"],
                row["measure"],
                _AXES[row["part"]][0],
                f"{row['mean']:+.3f}",
                interval_text(row, 1),
            ]
            for row in results["exponents"]
        ]
        columns = ["method", "measure", "against", "exponent", "95% interval"]
        found = Table("Exponents b of measure ∝ size^b", columns, exponents)
        return [*tables, found, searches_table(results)]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        titles = [
            f"{what} as {how}" for what in ("error", "step") for how in ("N grows", "tasks grow")
        ]
        with panels(titles, path) as drawn:
            for axes, (measure, part) in zip(
                drawn, [(m, p) for m in ("error", "step") for p in _AXES], strict=True
            ):
                key, label = _AXES[part]
                for method, rows in by_method(results["rows"], part=part).items():
                    colour, marker = STYLES[method]
                    x = [row[key] for row in rows]
                    look = {"color": colour, "marker": marker, "markersize": 5, "label": method}
                    if measure == "error":
                        errors = [[1 - share for share in row["accuracy"]] for row in rows]
                        y = [100 * statistics.fmean(values) for values in errors]
                        bars = [100 * deviation(values) for values in errors]
                        axes.errorbar(x, y, yerr=bars, capsize=2, **look)
                    else:
                        axes.plot(x, [statistics.median(row["step_ms"]) for row in rows], **look)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.set_xticks(x, [f"{size:,}" for size in x])
                axes.set_xticks([], minor=True)
                low, high = axes.get_ylim()
                digits = "123456789" if high < 3 * low else "12346"  # as many as there is room for
                axes.yaxis.set_major_formatter(_label_leading(digits))
                axes.yaxis.set_minor_formatter(_label_leading(digits))
                axes.set_xlabel(label, color=GREY)
                axes.set_ylabel("error, %" if measure == "error" else "step, ms", color=GREY)


def _data(study: Scaling, count: int) -> DataConfig:
    return DataConfig(study.source, f"permuted:{count}")


def _name(method: str, width: int, count: int, seed: int) -> str:
    return slug(f"{method}--{width}--{count}--{seed}")


def _experiment(study: Scaling, method: str, width: int, count: int) -> Experiment:
    described = parse_method(method)
    tasks_per_batch = min(study.tasks_per_batch, count)
    return Experiment(
        _data(study, count),
        training(study.steps, 0, device=study.device),
        method=described,
        budget=_BUDGET if isinstance(described, Generator) else None,
        latent_dim=_LATENT,
        base="zeros",
        target=f"mlp:{width}-{width}",
        batch_size=20 * study.tasks_per_batch // tasks_per_batch * tasks_per_batch,
        tasks_per_batch=tasks_per_batch,
    )


def _exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How error, time and trainable parameters grow with N, or with the number of tasks.

    An exponent is fitted for each seed; the result is their mean with its interval.
    """
    measures = {
        "error": lambda row: [max(1 - accuracy, 1e-4) for accuracy in row["accuracy"]],
        "step": lambda row: row["step_ms"],
        "parameters": lambda row: [ratio * row["numel"] for ratio in row["parameters"]],
    }
    found = []
    for part, (size, _) in _AXES.items():
        for method in SCALED_METHODS:
            own = [row for row in rows if (row["part"], row["method"]) == (part, method)]
            x = [row[size] for row in own]
            for measure, values_of in measures.items():
                of_seeds = zip(*map(values_of, own), strict=True)
                slopes = paired([exponent(x, y) for y in of_seeds])
                found.append({"part": part, "method": method, "measure": measure, **slopes})
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent b of y ∝ x^b, by least squares on logarithms.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 6)
    1.0
    """
    return statistics.linear_regression([log(v) for v in x], [log(v) for v in y]).slope


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Differences of sparse and chunked generators, paired over seeds, at every size."""
    accuracy = {(row["method"], row["numel"], row["tasks"]): row["accuracy"] for row in rows}
    claims = []
    for method, numel, tasks in accuracy:
        if method == _REFERENCE:
            ours, theirs = (accuracy[name, numel, tasks] for name in (_REFERENCE, _RIVAL))
            place = f"N = {numel:,}, {tasks} tasks"
            claims.append(claim_of(place, f"{method} − {_RIVAL}", ours, theirs))
    return claims


def _label_leading(digits: str) -> Callable[[float, int], str]:
    """A formatter for log axes: labels numbers that start with one of these digits, in full."""
    return lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else ""
