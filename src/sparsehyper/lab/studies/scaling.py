"""The study of scaling: accuracy and cost as the target grows, and as tasks become more.

The target grows at a fixed number of tasks, or tasks become more at a fixed target; updates and
images a batch stay the same, so that a task sees the fewer images the more tasks there are. Growth
is told by exponents: the slope of a straight line through the logarithms.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from sparsehyper._util.checks import check_choice
from sparsehyper.generators import Generator
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import count_target_parameters
from sparsehyper.lab.studies.cells import SCALES, Settings, shared_tasks, slug
from sparsehyper.lab.studies.intervals import claim_of, paired
from sparsehyper.lab.studies.search import LR, LRS, SEARCH_SEED, run_searches, with_settings
from sparsehyper.lab.studies.trainings import chunked_within, run_trainings, training

METHODS = {
    "sparse": "sparse",
    "chunked": "chunked",
    "experts": "experts",
    "shared trunk": "shared_trunk",
}
PARTS = ("target", "tasks")
_BUDGET, _LATENT = 4.0, 64
_REFERENCE, _RIVAL = "sparse", "chunked"


@dataclass(frozen=True)
class Scaling(Settings):
    """The study's settings.

    Args:
        source: of the images; tasks are permutations.
        widths: of the target's two hidden layers, at ``tasks`` tasks.
        counts: of tasks, at a target of ``width``.
        width, tasks: those where learning rates are searched.
        steps: updates.
        tasks_per_batch: of 20 images each, or as many as there are.
        trials: of each search.
        seeds: number of seeds.
        device: where training takes place.
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


def scaling_study(scale: str = "cpu") -> Scaling:
    """The study's settings at a scale, as `new_tasks_study` has them."""
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        return Scaling("digits", (16, 32), (2, 3), 32, 3, 10, trials=2, seeds=2)
    if scale == "cpu":
        return Scaling("fashion_mnist")
    widths = (100, 200, 400, 800, 1600)
    return Scaling("fashion_mnist", widths, width=400, steps=30_000, trials=20, device="auto")


def run_scaling(
    study: Scaling,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``seconds`` of all cells;
        ``searches``; ``rows`` (part, ``"target"`` or ``"tasks"``, method, ``numel``, that is N,
        ``tasks``, and ``accuracy``, ``parameters`` ÷ N, ``step_ms`` and ``peak_memory_mb`` for each
        seed); ``exponents`` (part, method, measure, ``mean``, ``low``, ``high``); and ``claims``.
    """
    places = {
        "target": [(width, study.tasks) for width in study.widths],
        "tasks": [(study.width, count) for count in study.counts],
    }
    data = {count: DataConfig(study.source, f"permuted:{count}") for count in _counts(study)}
    how: dict[str, Any] = {"workers": workers, "quiet": quiet}
    with shared_tasks(directory, data.values(), data_dir) as files:
        known = files[data[study.tasks]].load()
        numels = {
            width: count_target_parameters(_experiment(study, "experts", width, 2), known)
            for width in {study.width, *study.widths}
        }

        def experiment(method: str, width: int, count: int, seed: int) -> Experiment:
            described = METHODS[method]
            if method == _RIVAL:
                described = chunked_within(_BUDGET, numels[width], _LATENT) or described
            return _experiment(study, described, width, count).with_seed(seed)

        middle = (study.width, study.tasks, SEARCH_SEED)
        searched = {
            f"search--{slug(method)}": (experiment(method, *middle), {LR: LRS})
            for method in METHODS
        }
        searches = run_searches(searched, study.trials, directory, files, **how)
        experiments = {
            _name(method, width, count, seed): with_settings(
                experiment(method, width, count, seed),
                searches[f"search--{slug(method)}"]["settings_found"],
            )
            for seed in range(study.seeds)
            for width, count in dict.fromkeys([*places["target"], *places["tasks"]])
            for method in METHODS
        }
        done = run_trainings(experiments, directory, files, **how)
    each = ("accuracy", "step_ms", "peak_memory_mb", "parameters")
    rows = []
    for part in PARTS:
        for width, count in places[part]:
            for method in METHODS:
                found = [done[_name(method, width, count, s)] for s in range(study.seeds)]
                values = {name: [run[name] for run in found] for name in each}
                place = {"part": part, "method": method, "numel": numels[width], "tasks": count}
                rows.append({**place, **values})
    return {
        "study": study.to_dict(),
        "machine": machine(),
        "searches": searches,
        "rows": rows,
        "exponents": _exponents(rows),
        "claims": _claims(rows),
        "seconds": sum(cell["seconds"] for cell in [*done.values(), *searches.values()]),
    }


def _counts(study: Scaling) -> list[int]:
    return sorted({study.tasks, *study.counts})


def _name(method: str, width: int, count: int, seed: int) -> str:
    return slug(f"{method}--{width}--{count}--{seed}")


def _experiment(study: Scaling, method: str, width: int, count: int) -> Experiment:
    described = parse_method(method)
    tasks_per_batch = min(study.tasks_per_batch, count)
    return Experiment(
        DataConfig(study.source, f"permuted:{count}"),
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
    """How error, time and trainable parameters grow with N, or with the number of tasks: for each
    seed an exponent, then their mean with its interval.
    """
    measures = {
        "error": lambda row: [max(1 - accuracy, 1e-4) for accuracy in row["accuracy"]],
        "step": lambda row: row["step_ms"],
        "parameters": lambda row: [ratio * row["numel"] for ratio in row["parameters"]],
    }
    found = []
    for part in PARTS:
        of = "numel" if part == "target" else "tasks"
        for method in METHODS:
            own = [row for row in rows if (row["part"], row["method"]) == (part, method)]
            x = [row[of] for row in own]
            for measure, values_of in measures.items():
                of_seeds = zip(*map(values_of, own), strict=True)
                slopes = paired([exponent(x, y) for y in of_seeds])
                found.append({"part": part, "method": method, "measure": measure, **slopes})
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """B of y ∝ x^b by least squares on logarithms.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 6)
    1.0
    """
    return statistics.linear_regression([log(v) for v in x], [log(v) for v in y]).slope


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sparse minus chunked, paired over seeds, at every place."""
    accuracy = {(row["method"], row["numel"], row["tasks"]): row["accuracy"] for row in rows}
    claims = []
    for method, numel, tasks in accuracy:
        if method == _REFERENCE:
            ours, theirs = (accuracy[name, numel, tasks] for name in (_REFERENCE, _RIVAL))
            place = f"N = {numel:,}, {tasks} tasks"
            claims.append(claim_of(place, f"{method} − {_RIVAL}", ours, theirs))
    return claims
