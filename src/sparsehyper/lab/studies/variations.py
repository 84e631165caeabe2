"""The study of variations: which settings of a sparse hypernetwork matter, and which do not.

Every run draws a level of every factor at random, balanced over runs, so each run says something
about every factor. A run trains on some permutations of Fashion-MNIST, then learns others by their
embeddings alone. Main effects are fitted to both accuracies, to the number of parameters and to the
time of a step.

Source: the variations of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log2
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import MOST_REPEATS, check_integer
from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.random import seeded
from sparsehyper.adaptation import fit_embeddings
from sparsehyper.generators import Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import SharedTasks, TaskSet, images_of, shots_of
from sparsehyper.lab.plots import BLUE, GREY, VERMILION
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.runs.setup import build_model
from sparsehyper.lab.studies.cells import Cell, Workspace
from sparsehyper.lab.studies.intervals import factor_tests, main_effects, verdict
from sparsehyper.lab.studies.learners import LEARNING
from sparsehyper.lab.studies.pages import Table, interval_text, panels
from sparsehyper.lab.studies.search import with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import measured, training

# Factor → level → settings by path; the default level comes first. "normalise" and "sigma" are
# settings of this study, not of an experiment.
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "topology": {
        "circulant": {"method.topology": "circulant"},
        "uniform": {"method.topology": "uniform"},
        "regular": {"method.topology": "regular"},
        "local, σ = latent / 16": {"method.topology": "local", "sigma": 1 / 16},
        "local, σ = latent / 4": {"method.topology": "local", "sigma": 1 / 4},
        "local, σ = latent": {"method.topology": "local", "sigma": 1},
        "mixed, σ = latent / 4": {"method.topology": "mixed", "sigma": 1 / 4},
    },
    "fan-in": {
        "linear": {"method.fan_in": "linear"},
        "geometric": {"method.fan_in": "geometric"},
        "constant 1": {"method.fan_in": 1},
        "constant 2": {"method.fan_in": 2},
        "constant 4": {"method.fan_in": 4},
    },
    "activation": {
        "none": {"method.activation": "none"},
        "prelu": {"method.activation": "prelu"},
        "leaky_relu": {"method.activation": "leaky_relu"},
        "relu": {"method.activation": "relu"},
        "abs": {"method.activation": "abs"},
    },
    "bias": {"no": {"method.bias": False}, "yes": {"method.bias": True}},
    "growth": {f"{growth:g}": {"method.growth": growth} for growth in (2.0, 1.5, 4.0, 8.0)},
    "shared by": {"1": {"method.share": 1}, "4": {"method.share": 4}},
    "latent size": {str(dim): {"latent_dim": dim} for dim in (64, 16, 256)},
    "initialisation": {
        "torch": {"init": "torch"},
        "hyperfan_in": {"init": "hyperfan_in"},
        "hyperfan_out": {"init": "hyperfan_out"},
    },
    "base": {
        "zeros": {"base": "zeros"},
        "learned": {"base": "learned"},
        "residual": {"base": "residual"},
    },
    "normalisation of z": {"LayerNorm": {"normalise": True}, "none": {"normalise": False}},
    "similarity of tasks at the start": {f"{rho:g}": {"similarity": rho} for rho in (0.0, 0.9)},
    "learning rate": {f"{lr:g}": {"training.lr": lr} for lr in (2e-3, 1e-3, 4e-3, 8e-3)},
}
DEFAULTS = {factor: next(iter(levels)) for factor, levels in FACTORS.items()}
# Outcome → colour in the picture.
OUTCOMES = {"trained tasks": VERMILION, "new tasks": BLUE}
_TESTS = len(FACTORS) * len(OUTCOMES)


class _NotNormalised(HyperNetwork):
    """A hypernetwork whose generator takes embeddings as they are."""

    @staticmethod
    def normalise(z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class Variations(Study):
    """The study of variations.

    Results: ``runs``, each with its ``levels``, what was measured, and whether it ``failed``, with
    less than half the median accuracy; ``effects``, those of the other runs on each outcome
    (``trained tasks`` and ``new tasks``, accuracies; ``size``, log2 of trainable ÷ N; ``step``,
    log2 of its milliseconds), as `main_effects` returns them; ``factors``, the tests of those on
    accuracies, as `factor_tests` returns them; and the effects on accuracies as ``claims``.

    Args:
        data: images and tasks.
        held_out: number of tasks, the last ones, that are learned by their embeddings.
        shots: images per class to learn those from.
        target: as `build_target` takes it.
        steps: number of updates.
        tasks_per_batch: tasks in a batch, of 25 images each.
        runs: number of runs. Each has a seed of its own, and the levels of a factor differ by at
            most one in how many runs have them.
        device: training device.
    """

    data: DataConfig
    held_out: int = 3
    shots: int = 20
    target: str = "mlp:100-100"
    steps: int = 800
    tasks_per_batch: int = 4
    runs: int = 160
    device: str = "cpu"

    name = "variations"
    title = "Variations of the sparse hypernetwork"
    question = "Which settings of a sparse hypernetwork matter, and which do not?"
    method = (
        "Every run draws a level of every factor at random, balanced over runs, and has a seed of "
        "its own. It trains on permutations of the pixels, then learns others by their embeddings "
        "alone. Effects are those of a least-squares fit without interactions, compared with the "
        "default level of each factor, with intervals from the residuals; they are not corrected "
        "for multiple comparisons. A run fails with less than half the median accuracy on trained "
        "tasks; effects are those of the other runs. Settings change the size of a run: the column "
        "says by how much. A factor matters where the F test of its levels has "
        f"p < 0.05 ÷ {_TESTS}, the number of tests."
    )
    picture = "main_effects.svg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("runs", self.runs, minimum=1, maximum=MOST_REPEATS)

    @classmethod
    def smoke(cls) -> Variations:
        return cls(DataConfig("digits", "permuted:4"), 1, 5, "mlp:16", 10, 3, 14)

    @classmethod
    def cpu(cls) -> Variations:
        return cls(DataConfig("fashion_mnist", "permuted:13"))

    @classmethod
    def full(cls) -> Variations:
        return replace(cls.cpu(), target="mlp:400-400-400", steps=30_000, device="auto")

    def task_sets(self) -> list[DataConfig]:
        return [self.data]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        designed = design(self.runs)
        cells = [
            Cell(
                f"run-{seed:03}",
                {
                    "fingerprint": workspace.files[self.data].fingerprint,
                    "experiment": _experiment(self, levels, seed).to_dict(),
                    "normalise": levels["normalisation of z"] == "LayerNorm",
                    "held_out": self.held_out,
                    "shots": self.shots,
                    "learning": LEARNING["embedding"],
                },
            )
            for seed, levels in enumerate(designed)
        ]
        done = workspace.run(cells, _cell)
        found = [done[cell.name] for cell in cells]
        # runs that learned nothing are left out, as effects do not add up there
        least = statistics.median(run["accuracy"] for run in found) / 2
        kept = [i for i, run in enumerate(found) if run["accuracy"] >= least]
        levels = [designed[i] for i in kept]
        outcomes = {
            "trained tasks": [found[i]["accuracy"] for i in kept],
            "new tasks": [found[i]["new_accuracy"] for i in kept],
            "size": [log2(found[i]["parameters"]) for i in kept],
            "step": [log2(found[i]["step_ms"]) for i in kept],
        }
        effects = {name: main_effects(levels, y, DEFAULTS) for name, y in outcomes.items()}
        measures = ("validation", "accuracy", "new_accuracy", "parameters", "step_ms", "seconds")
        return {
            "runs": [
                {"levels": own, "failed": i not in kept, **{name: run[name] for name in measures}}
                for i, (own, run) in enumerate(zip(designed, found, strict=True))
            ],
            "effects": effects,
            "factors": {name: factor_tests(levels, outcomes[name], DEFAULTS) for name in OUTCOMES},
            "claims": [_claim(name, effect) for name in OUTCOMES for effect in effects[name]],
        }

    @staticmethod
    def tables(results: Results) -> list[Table]:
        effects = results["effects"]
        levels = [(e["factor"], e["level"]) for e in effects["trained tasks"]]
        by_level = {
            outcome: {(e["factor"], e["level"]): e for e in found}
            for outcome, found in effects.items()
        }
        rows = []
        for factor, level in levels:
            size, step = (2 ** by_level[name][factor, level]["mean"] for name in ("size", "step"))
            cells = [factor, level]
            for outcome in OUTCOMES:
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
            Table(
                "Main effects compared with the default setting, points of accuracy", columns, rows
            ),
            Table("What matters: the F test of each factor", *_importance(results)),
        ]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        label = "effect compared with the default, points"
        count = len(results["effects"]["trained tasks"])
        with panels(list(OUTCOMES), path, x=label, size=(6.5, 0.23 * count)) as drawn:
            for axes, (outcome, colour) in zip(drawn, OUTCOMES.items(), strict=True):
                effects = results["effects"][outcome]
                means = [100 * e["mean"] for e in effects]
                errors = [
                    0.0 if e["low"] is None else 100 * (e["mean"] - e["low"]) for e in effects
                ]
                places = range(len(effects))
                axes.errorbar(means, places, xerr=errors, fmt="o", color=colour, capsize=2)
                axes.axvline(0, color=GREY, linewidth=0.8)
                axes.set_yticks(list(places), [f"{e['factor']}: {e['level']}" for e in effects])
                axes.invert_yaxis()


def design(runs: int) -> list[dict[str, str]]:
    """Draw a level of every factor for each run.

    All levels of a factor occur in the same number of runs, to within one.
    """
    columns: dict[str, list[str]] = {}
    for number, (factor, levels) in enumerate(FACTORS.items()):
        order = torch.randperm(runs, generator=seeded(number)).tolist()
        names = list(levels)
        columns[factor] = [names[place % len(names)] for place in order]
    return [{factor: columns[factor][run] for factor in FACTORS} for run in range(runs)]


def _experiment(study: Variations, levels: Mapping[str, str], seed: int) -> Experiment:
    settings: dict[str, Any] = {}
    for factor, level in levels.items():
        settings |= FACTORS[factor][level]
    settings.pop("normalise")
    if sigma := settings.pop("sigma", None):
        settings["method.sigma"] = sigma * settings["latent_dim"]
    experiment = Experiment(
        study.data,
        training(study.steps, seed, device=study.device),
        method=Sparse(),
        target=study.target,
        batch_size=25 * study.tasks_per_batch,
        tasks_per_batch=study.tasks_per_batch,
    )
    return with_settings(experiment, settings)


def _cell(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Train one hypernetwork, and learn new tasks."""
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    known = tasks.select(tasks.names[: -settings["held_out"]])
    new = tasks.select(tasks.names[-settings["held_out"] :])
    model = build_model(
        experiment, known, HyperNetwork if settings["normalise"] else _NotNormalised
    )
    _, values = measured(experiment, known, model)
    assert isinstance(model, HyperNetwork)
    if values["diverged"]:
        learned = statistics.fmean(1 / count for count in new.n_classes)
    else:
        learned = _learn(model.cpu(), new, settings["shots"], experiment.seed)
    return {**values, "new_accuracy": learned}


def _learn(hnet: HyperNetwork, new: TaskSet, shots: int, seed: int) -> float:
    """Learn tasks by their embeddings, and return their mean test accuracy."""
    samples = {name: shots_of(new.train, i, shots, seed) for i, name in enumerate(new.names)}
    fit_embeddings(hnet, samples, seed=seed, **LEARNING["embedding"])
    found = []
    for i, name in enumerate(new.names):
        x, y = images_of(new.test, i, 1000)
        found.append(accuracy(hnet.materialize(name).eval(), x, y, len(new.classes[i])))
    return statistics.fmean(found)


def _claim(outcome: str, effect: Mapping[str, Any]) -> dict[str, Any]:
    factor = effect["factor"]
    return {
        "family": outcome,
        "claim": f"{factor}: {effect['level']} − {DEFAULTS[factor]}",
        **{key: effect[key] for key in ("mean", "low", "high", "freedom")},
        "verdict": verdict(effect),
    }


def _importance(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: the share of the variance that only a factor explains, and the test's p."""
    found = {o: {test["factor"]: test for test in results["factors"][o]} for o in OUTCOMES}
    columns = ["factor"]
    for outcome in OUTCOMES:
        columns += [f"{outcome}: share of the variance, %", "p", "matters?"]
    rows = []
    for factor in found["trained tasks"]:
        cells: list[Any] = [factor]
        for outcome in OUTCOMES:
            test = found[outcome][factor]
            p = test["p"]
            cells += [f"{100 * test['share']:.1f}", "–" if p is None else f"{p:.1g}"]
            cells.append("–" if p is None else "yes" if p < 0.05 / _TESTS else "not shown")
        rows.append(cells)
    return columns, rows
