"""The study of variations: which settings of a sparse hypernetwork matter, and which do not.

Every run draws a level of every factor at random, balanced over runs, so each run tells something
of every factor. A run trains on some permutations of Fashion-MNIST, then learns others by their
embeddings alone. Main effects are fitted to both accuracies, to the parameters and to the time.

Source: the variations of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import MOST_REPEATS, check_choice, check_integer
from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.random import seeded
from sparsehyper.adaptation import fit_embeddings
from sparsehyper.generators import Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, images_of
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.runs.setup import build_model
from sparsehyper.lab.studies.cells import (
    SCALES,
    Cell,
    Settings,
    SharedTasks,
    run_cells,
    shared_tasks,
)
from sparsehyper.lab.studies.intervals import factor_tests, main_effects, verdict
from sparsehyper.lab.studies.learners import LEARNING, shots_of
from sparsehyper.lab.studies.search import with_settings
from sparsehyper.lab.studies.trainings import measured, training

# Factor → level → settings by their path; the default first. "normalise" is no setting of an
# experiment, as nothing but this study leaves it out.
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
OUTCOMES = ("trained tasks", "new tasks")


@dataclass(frozen=True)
class Variations(Settings):
    """The study's settings.

    Args:
        data: images and tasks, of which the last ``held_out`` are learned by their embeddings.
        held_out: how many.
        shots: images a class to learn those from.
        target: as `build_target` takes it.
        steps: updates.
        tasks_per_batch: of 25 images each.
        runs: how many; each has a seed of its own, and every level is in equally many, or in one
            more.
        device: where training takes place.
    """

    data: DataConfig
    held_out: int = 3
    shots: int = 20
    target: str = "mlp:100-100"
    steps: int = 800
    tasks_per_batch: int = 4
    runs: int = 160
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("runs", self.runs, minimum=1, maximum=MOST_REPEATS)


def variations_study(scale: str = "cpu") -> Variations:
    """The study's settings at a scale, as `new_tasks_study` has them."""
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        return Variations(DataConfig("digits", "permuted:4"), 1, 5, "mlp:16", 10, 3, 14)
    data = DataConfig("fashion_mnist", "permuted:13")
    if scale == "cpu":
        return Variations(data)
    return Variations(data, 3, 20, "mlp:400-400-400", 30_000, device="auto")


def run_variations(
    study: Variations,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``seconds`` of all cells;
        ``runs``, each with its levels, what was measured, and whether it ``failed``, that is with
        less than half the median accuracy; of the others ``effects`` on each outcome (``trained
        tasks`` and ``new tasks``, accuracies; ``size``, log2 of trainable ÷ N; ``step``, log2 of
        its milliseconds), as `main_effects` gives them; ``factors``, those on accuracies, as
        `factor_tests` gives them; and the effects on accuracies as ``claims``.
    """
    designed = design(study.runs)
    with shared_tasks(directory, [study.data], data_dir) as files:
        file = files[study.data]
        cells = [
            Cell(
                f"run-{seed:03}",
                {
                    "fingerprint": file.fingerprint,
                    "experiment": _experiment(study, levels, seed).to_dict(),
                    "normalise": levels["normalisation of z"] == "LayerNorm",
                    "held_out": study.held_out,
                    "shots": study.shots,
                    "learning": LEARNING["embedding"],
                },
            )
            for seed, levels in enumerate(designed)
        ]
        done = run_cells(cells, _cell, directory, files, workers=workers, quiet=quiet)
    found = [done[cell.name] for cell in cells]
    # Of those, some settings learn nothing at all: they are told apart, as no effect adds up there.
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
        "study": study.to_dict(),
        "machine": machine(),
        "runs": [
            {"levels": own, "failed": i not in kept, **{name: run[name] for name in measures}}
            for i, (own, run) in enumerate(zip(designed, found, strict=True))
        ],
        "effects": effects,
        "factors": {name: factor_tests(levels, outcomes[name], DEFAULTS) for name in OUTCOMES},
        "claims": [
            {
                "family": outcome,
                "claim": f"{effect['factor']}: {effect['level']} − {DEFAULTS[effect['factor']]}",
                **{key: effect[key] for key in ("mean", "low", "high", "freedom")},
                "verdict": verdict(effect),
            }
            for outcome in OUTCOMES
            for effect in effects[outcome]
        ],
        "seconds": sum(run["seconds"] for run in found),
    }


def design(runs: int) -> list[dict[str, str]]:
    """A level of every factor for each run; within a factor all levels are equally often there, or
    once more.
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


def _cell(settings: dict[str, Any], files: dict[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Train one hypernetwork, and let it learn new tasks."""
    began = time.perf_counter()
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    known = tasks.select(tasks.names[: -settings["held_out"]])
    new = tasks.select(tasks.names[-settings["held_out"] :])
    model = build_model(experiment, known)
    if not settings["normalise"]:
        model.normalise = _same  # type: ignore[assignment]
    _, values = measured(experiment, known, model)
    assert isinstance(model, HyperNetwork)
    if values["diverged"]:
        learned = statistics.fmean(1 / len(classes) for classes in new.classes)
    else:
        learned = _learn(model.cpu(), new, settings["shots"], experiment.seed)
    return {
        **values,
        "new_accuracy": learned,
        "seconds": time.perf_counter() - began,
    }


def _learn(hnet: HyperNetwork, new: TaskSet, shots: int, seed: int) -> float:
    """Mean test accuracy on tasks that are learned by their embeddings."""
    samples = {name: shots_of(new.train, i, shots, seed) for i, name in enumerate(new.names)}
    fit_embeddings(hnet, samples, seed=seed, **LEARNING["embedding"])
    found = []
    for i, name in enumerate(new.names):
        x, y = images_of(new.test, i, 1000)
        found.append(accuracy(hnet.materialize(name).eval(), x, y, len(new.classes[i])))
    return statistics.fmean(found)


def _same(z: Tensor) -> Tensor:
    return z
