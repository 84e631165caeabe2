"""The study of target sparsity: generated targets with zeros, against experts pruned as far.

A mask at random places, the same for all tasks, leaves a part of every weight to generate
(`sparsehyper.adapters.masked`). Experts are masked at random too, or pruned by magnitude in the
middle of their training.

Source: the thesis's study of the same name, F. Cubélier, "Sparse hypernetworks for multitasking"
(Liège, 2022); magnitude pruning as in S. Han et al., "Learning both weights and connections for
efficient neural networks" (NeurIPS 2015).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.utils import prune

from sparsehyper._util.checks import check_choice
from sparsehyper._util.random import spawn_seeds
from sparsehyper.lab.data import TaskSet
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.baselines import Experts
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import count_target_parameters
from sparsehyper.lab.studies.cells import (
    SCALES,
    Cell,
    Settings,
    SharedTasks,
    run_cells,
    shared_tasks,
    slug,
)
from sparsehyper.lab.studies.intervals import claim_of
from sparsehyper.lab.studies.search import (
    LR,
    LRS,
    SEARCH_SEED,
    run_searches,
    with_settings,
)
from sparsehyper.lab.studies.trainings import chunked_within, measured, trained, training

# Method → its description, and its budget in parameters that are left.
METHODS: dict[str, tuple[str, float | None]] = {
    "sparse": ("sparse", 4.0),
    "chunked": ("chunked", 4.0),
    "experts, masked": ("experts", None),
    "experts, pruned": ("experts", None),
}
_LATENT = 64
_PRUNED = "experts, pruned"
_REFERENCE = "sparse"


@dataclass(frozen=True)
class Tasks:
    """A set of tasks.

    Args:
        data: images and tasks.
        target: as `build_target` takes it, whole.
        steps: updates.
        tasks_per_batch: of ``images`` each.
        images: of each task in a batch.
    """

    data: DataConfig
    target: str
    steps: int
    tasks_per_batch: int
    images: int


@dataclass(frozen=True)
class TargetSparsity(Settings):
    """The study's settings.

    Args:
        sets: of tasks, by name.
        sparsities: parts of the weights that are zero.
        searched_at: the one at which learning rates are searched; experts that are pruned are
            searched whole.
        trials: of each search.
        seeds: number of seeds.
        device: where training takes place.
    """

    sets: dict[str, Tasks]
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    searched_at: float = 0.9
    trials: int = 5
    seeds: int = 5
    device: str = "cpu"


def target_sparsity_study(scale: str = "cpu") -> TargetSparsity:
    """The study's settings at a scale, as `new_tasks_study` has them."""
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        tasks = Tasks(DataConfig("digits", "split:2"), "mlp:200", 20, 5, 4)
        return TargetSparsity({"digits 5×2": tasks}, (0.0, 0.5), 0.5, 2, 2)
    permuted, pairs = DataConfig("fashion_mnist", "permuted:10"), DataConfig("cifar10", "split:2")
    if scale == "cpu":
        cnn = "cnn:16-32-64,norm=batch"
        return TargetSparsity(
            {
                "Fashion-MNIST, 10 permutations": Tasks(permuted, "mlp:100-100", 600, 5, 20),
                "CIFAR-10 5×2": Tasks(pairs, cnn, 400, 5, 12),
            }
        )
    return TargetSparsity(
        {
            "Fashion-MNIST, 10 permutations": Tasks(permuted, "mlp:400-400-400", 30_000, 5, 30),
            "CIFAR-10 5×2": Tasks(pairs, "resnet32", 60_000, 5, 30),
        },
        device="auto",
    )


def run_target_sparsity(
    study: TargetSparsity,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``seconds`` of all cells;
        ``searches`` of learning rates; ``rows`` (family, that is the set of tasks, method,
        ``sparsity``, ``accuracy`` for each seed, and ``parameters``, trainable ÷ those of one whole
        target); and ``claims``.
    """
    with shared_tasks(directory, [tasks.data for tasks in study.sets.values()], data_dir) as files:
        loaded = {name: files[tasks.data].load() for name, tasks in study.sets.items()}
        numels = {name: _count(study, name, 0.0, tasks) for name, tasks in loaded.items()}
        places = list(_places(study, loaded))
        searches = run_searches(
            {
                _search(family, method): (experiment.with_seed(SEARCH_SEED), {LR: LRS})
                for family, method, sparsity, experiment in places
                if sparsity == study.searched_at
            },
            study.trials,
            directory,
            files,
            workers=workers,
            quiet=quiet,
        )
        cells = [
            Cell(
                _name(family, method, sparsity, seed),
                {
                    "fingerprint": loaded[family].fingerprint,
                    "experiment": with_settings(
                        experiment.with_seed(seed),
                        searches[_search(family, method)]["settings_found"],
                    ).to_dict(),
                    "pruned": sparsity if method == _PRUNED else None,
                },
            )
            for seed in range(study.seeds)
            for family, method, sparsity, experiment in places
        ]
        done = run_cells(cells, _cell, directory, files, workers=workers, quiet=quiet)
    rows = []
    for family, method, sparsity, _ in places:
        found = [done[_name(family, method, sparsity, seed)] for seed in range(study.seeds)]
        rows.append(
            {
                "family": family,
                "method": method,
                "sparsity": sparsity,
                "accuracy": [run["accuracy"] for run in found],
                "parameters": found[0]["trainable"] / numels[family],
            }
        )
    return {
        "study": study.to_dict(),
        "machine": machine(),
        "searches": searches,
        "rows": rows,
        "claims": _claims(rows),
        "seconds": sum(cell["seconds"] for cell in [*done.values(), *searches.values()]),
    }


def _places(
    study: TargetSparsity, loaded: dict[str, TaskSet]
) -> Iterator[tuple[str, str, float, Experiment]]:
    """Family, method, sparsity and the experiment, where the method can have its budget."""
    for family, tasks in study.sets.items():
        for sparsity in study.sparsities:
            left = _count(study, family, sparsity, loaded[family])
            for method, (described, budget) in METHODS.items():
                chosen: str | None = described
                if method == "chunked" and budget is not None:
                    chosen = chunked_within(budget, left, _LATENT)
                # Without zeros nothing is pruned, and both kinds of experts are the same.
                if chosen is not None and (sparsity or method != _PRUNED):
                    whole = method == _PRUNED
                    experiment = _experiment(study, tasks, chosen, 0.0 if whole else sparsity)
                    yield family, method, sparsity, replace(experiment, budget=budget)


def _count(study: TargetSparsity, family: str, sparsity: float, tasks: TaskSet) -> int:
    """Parameters that a target has, zeros left out."""
    experiment = _experiment(study, study.sets[family], "experts", sparsity)
    return count_target_parameters(experiment, tasks)


def _search(family: str, method: str) -> str:
    return f"search--{slug(family)}--{slug(method)}"


def _name(family: str, method: str, sparsity: float, seed: int) -> str:
    return f"{slug(family)}--{slug(method)}--{sparsity:g}--{seed}"


def _experiment(study: TargetSparsity, tasks: Tasks, method: str, sparsity: float) -> Experiment:
    return Experiment(
        tasks.data,
        training(tasks.steps, 0, device=study.device),
        method=parse_method(method),
        target=f"{tasks.target}/masked:{sparsity:g}" if sparsity else tasks.target,
        latent_dim=_LATENT,
        base="zeros",
        batch_size=tasks.images * tasks.tasks_per_batch,
        tasks_per_batch=tasks.tasks_per_batch,
    )


def _cell(settings: dict[str, Any], files: dict[DataConfig, SharedTasks]) -> dict[str, Any]:
    began = time.perf_counter()
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    if settings["pruned"]:
        accuracy, trainable = _pruned(experiment, tasks, settings["pruned"])
    else:
        model, values = measured(experiment, tasks)
        accuracy = values["accuracy"]
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "accuracy": accuracy,
        "trainable": trainable,
        "seconds": time.perf_counter() - began,
    }


def _pruned(experiment: Experiment, tasks: TaskSet, sparsity: float) -> tuple[float, int]:
    """Experts that lose the smallest weights of every layer half-way: accuracy and what is left."""
    steps = experiment.training.steps
    halves = [
        replace(experiment, training=replace(experiment.training, steps=part, eval_every=part))
        for part in (steps // 2, steps - steps // 2)
    ]
    halves[1] = halves[1].with_seed(spawn_seeds(experiment.seed, 1)[0])  # other batches
    model, _ = trained(halves[0], tasks)
    assert isinstance(model, Experts)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=sparsity)
    model, values = measured(halves[1], tasks, model)
    zeros = sum(
        int((buffer == 0).sum()) for name, buffer in model.named_buffers() if "mask" in name
    )
    return values["accuracy"], sum(p.numel() for p in model.parameters()) - zeros


def _claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences over seeds, at every sparsity."""
    accuracy = {(r["family"], r["method"], r["sparsity"]): r["accuracy"] for r in rows}
    claims = []
    for (family, method, sparsity), ours in accuracy.items():
        for rival in METHODS if method == _REFERENCE else ():
            theirs = accuracy.get((family, rival, sparsity))
            if rival != _REFERENCE and theirs:
                claim = f"{_REFERENCE} − {rival}, {sparsity:.0%} zeros"
                claims.append(claim_of(family, claim, ours, theirs))
    return claims
