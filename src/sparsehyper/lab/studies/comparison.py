"""The study of methods: sparse against chunked and others, on many sets of tasks and at budgets.

Hyperparameters are searched first, with equally many trials for every method and budget, on
validation images and a seed of their own; then every method is trained on every set of tasks, over
seeds, and looks at the test images once.

The claim that it tests, of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022): on
multitask computer vision sparse hypernetworks match chunked ones, and are slightly behind on the
more complex problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from sparsehyper._util.checks import check_choice
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import count_target_parameters, fit_generator
from sparsehyper.lab.studies.cells import (
    SCALES,
    Settings,
    SharedTasks,
    shared_tasks,
    slug,
)
from sparsehyper.lab.studies.intervals import claim_of, mean_of
from sparsehyper.lab.studies.search import (
    LR,
    LRS,
    SEARCH_SEED,
    Space,
    run_searches,
    with_settings,
)
from sparsehyper.lab.studies.trainings import run_trainings, training

# Method → its description, and what is searched beside the learning rate, defaults first.
_BASE = {"base": ("zeros", "learned"), "similarity": (0.0, 0.9)}
_CHUNKED = {**_BASE, "method.hidden": (None, 8, 16, 32, 64, 256)}
METHODS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "sparse": ("sparse", _BASE),
    "chunked": ("chunked", _CHUNKED),
    "sparse, affine": ("sparse:bias=true", _BASE),
    "sparse, MLP": ("sparse:activation=prelu", _BASE),
    "chunks of tensors": ("chunked:by=tensor", _CHUNKED),
    "dense": ("dense", _BASE),
    "butterfly": ("butterfly:stages=6", _BASE),
    "experts": ("experts", {}),
    "shared trunk": ("shared_trunk", {}),
}
_AT_EVERY_BUDGET = ("sparse", "chunked")
_AT_ONE_BUDGET = ("sparse, affine", "sparse, MLP", "chunks of tensors")
_BUDGET = 4.0
_EPOCHS = 300  # of the thesis's protocol
_BATCH = 150  # images, of the thesis's protocol

REFERENCE, _RIVAL = "sparse", "chunked"
_OTHERS = ("dense", "experts", "shared trunk")


@dataclass(frozen=True)
class Tasks:
    """A set of tasks.

    Args:
        data: images and tasks.
        searched_on: the set on which hyperparameters are searched for this one.
        target: as `build_target` takes it.
        steps: updates.
        tasks_per_batch: of ``images`` each.
        images: of each task in a batch.
        methods: that are compared, of `METHODS`.
    """

    data: DataConfig
    searched_on: str
    target: str
    steps: int
    tasks_per_batch: int
    images: int
    methods: tuple[str, ...] = tuple(METHODS)


@dataclass(frozen=True)
class Comparison(Settings):
    """The study's settings.

    Args:
        sets: of tasks, by name.
        budgets: trainable parameters ÷ N at which sparse and chunked ones are compared.
        trials: of each search.
        seeds: number of seeds.
        patience: evaluations, 300 in a training, without improvement before it stops; None
            evaluates at the end only.
        device: where training takes place.
    """

    sets: dict[str, Tasks]
    budgets: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    trials: int = 8
    seeds: int = 5
    patience: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tasks in self.sets.items():
            check_choice(f"searched_on of {name!r}", tasks.searched_on, self.sets)


_CNN = "cnn:16-32-64,norm=batch"
_FEWER = tuple(method for method in METHODS if method not in ("chunks of tensors", "butterfly"))


def _mlp_tasks(source: str, tasks: str, searched_on: str, tasks_per_batch: int = 5) -> Tasks:
    data = DataConfig(source, tasks)
    return Tasks(data, searched_on, "mlp:100-100", 500, tasks_per_batch, 100 // tasks_per_batch)


def _cnn_tasks(source: str, tasks: str, tasks_per_batch: int) -> Tasks:
    data = DataConfig(source, tasks)
    images = 60 // tasks_per_batch
    return Tasks(data, "CIFAR-10 5×2", _CNN, 350, tasks_per_batch, images, _FEWER)


_PERMUTED, _SPLIT = "Fashion-MNIST, 10 permutations", "Fashion-MNIST 5×2"
_PAIRS = "Fashion-MNIST, 45 pairs"
_CPU = {
    _SPLIT: _mlp_tasks("fashion_mnist", "split:2", _SPLIT),
    _PERMUTED: _mlp_tasks("fashion_mnist", "permuted:10", _PERMUTED),
    _PAIRS: _mlp_tasks("fashion_mnist", "split:2,all", _PAIRS),
    "MNIST 5×2": _mlp_tasks("mnist", "split:2", _SPLIT),
    "MNIST, 10 permutations": _mlp_tasks("mnist", "permuted:10", _PERMUTED),
    "CIFAR-10 5×2": _cnn_tasks("cifar10", "split:2", 5),
    "CIFAR-10 2×5": _cnn_tasks("cifar10", "split:5", 2),
    "three data sets, 15 pairs": _cnn_tasks("mnist+fashion_mnist+cifar10", "split:2", 5),
}
# Training images of all tasks, validation left out.
_EPOCH_IMAGES = {
    _SPLIT: 54_000,
    _PERMUTED: 540_000,
    _PAIRS: 486_000,
    "MNIST 5×2": 54_000,
    "MNIST, 10 permutations": 540_000,
    "CIFAR-10 5×2": 45_000,
    "CIFAR-10 2×5": 45_000,
    "three data sets, 15 pairs": 153_000,
}


def comparison_study(scale: str = "cpu") -> Comparison:
    """The study's settings at a scale, as `new_tasks_study` has them."""
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        methods = ("sparse", "chunked", "dense", "experts", "shared trunk")
        data = DataConfig("digits", "split:2")
        tasks = Tasks(data, "digits 5×2", "mlp:100", 10, 5, 4, methods)
        return Comparison({"digits 5×2": tasks}, (0.25, 4.0), trials=2, seeds=2)
    if scale == "cpu":
        return Comparison(_CPU)
    # The thesis's protocol: its targets and batches, 300 epochs, patience 10.
    full = {
        name: replace(
            tasks,
            target="mlp:400-400-400" if tasks.target.startswith("mlp") else "resnet32",
            steps=_EPOCHS * _EPOCH_IMAGES[name] // _BATCH,
            images=_BATCH // tasks.tasks_per_batch,
            methods=tuple(METHODS),
            searched_on=tasks.searched_on.replace("CIFAR-10 5×2", "CIFAR-10 5×2, resnet32"),
        )
        for name, tasks in _CPU.items()
    }
    ten_by_two = full.pop("CIFAR-10 5×2")
    for name, source, maker in (
        ("CIFAR-10 5×2", "cifar10", "split:2"),
        ("CIFAR-100 10×10", "cifar100", "split:10"),
    ):
        for target in ("resnet32", "resnet18"):
            one = replace(ten_by_two, data=DataConfig(source, maker), target=target)
            full[f"{name}, {target}"] = replace(one, searched_on="CIFAR-10 5×2, resnet32")
    return Comparison(full, patience=10, device="auto")


def run_comparison(
    study: Comparison,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``seconds`` of all cells;
        ``searches``, each with the ``settings_found`` and its trials; ``rows`` (family, that is the
        set of tasks, method, budget, ``accuracy`` and ``worst`` task for each seed, ``parameters``
        ÷ N, ``generator``, ``step_ms``, ``seconds`` and ``peak_memory_mb`` for each seed);
        ``left_out`` (family, method and budget of those that cannot be as small); and ``claims``.
    """
    with shared_tasks(directory, [tasks.data for tasks in study.sets.values()], data_dir) as files:
        wanted = list(_entries(study, files))
        entries = [entry for entry in wanted if all(entry.space.values())]
        searched = {
            entry.search: (
                entry.experiment(study, study.sets[entry.family], SEARCH_SEED),
                entry.space,
            )
            for entry in entries
            if entry.family == study.sets[entry.family].searched_on
        }
        how: dict[str, Any] = {"workers": workers, "quiet": quiet}
        searches = run_searches(searched, study.trials, directory, files, **how)
        experiments = {
            entry.cell(seed): with_settings(
                entry.experiment(study, study.sets[entry.family], seed),
                searches[entry.search]["settings_found"],
            )
            for seed in range(study.seeds)
            for entry in entries
        }
        done = run_trainings(experiments, directory, files, **how)
    rows = []
    for entry in entries:
        found = [done[entry.cell(seed)] for seed in range(study.seeds)]
        each = ("accuracy", "step_ms", "seconds", "peak_memory_mb")
        rows.append(
            {
                "family": entry.family,
                "method": entry.method,
                "budget": entry.budget,
                **{name: [run[name] for run in found] for name in each},
                "worst": [min(run["accuracies"].values()) for run in found],
                "parameters": found[0]["parameters"],
                "generator": found[0]["generator"],
            }
        )
    return {
        "study": study.to_dict(),
        "machine": machine(),
        "searches": searches,
        "rows": rows,
        "left_out": [
            {"family": entry.family, "method": entry.method, "budget": entry.budget}
            for entry in wanted
            if not all(entry.space.values())
        ],
        "claims": _claims(study, rows),
        "seconds": sum(cell["seconds"] for cell in [*done.values(), *searches.values()]),
    }


@dataclass(frozen=True)
class _Entry:
    """A method at a budget on a set of tasks."""

    family: str
    searched_on: str
    method: str
    budget: float | None
    space: Space

    @property
    def search(self) -> str:
        return f"search--{slug(self.searched_on)}--{self._name}"

    def cell(self, seed: int) -> str:
        return f"{slug(self.family)}--{self._name}--{seed}"

    def experiment(self, study: Comparison, tasks: Tasks, seed: int) -> Experiment:
        return _experiment(study, tasks, self.method, self.budget, seed)

    @property
    def _name(self) -> str:
        return slug(self.method) + ("" if self.budget is None else f"--{self.budget:g}N")


def _entries(study: Comparison, files: dict[DataConfig, SharedTasks]) -> Iterator[_Entry]:
    """Every method at every budget, with the choices with which it can be met, if there are any."""
    for family, tasks in study.sets.items():
        known = files[tasks.data].load()
        numel = count_target_parameters(_experiment(study, tasks, "experts", None, 0), known)
        for method in tasks.methods:
            budgets: list[float | None] = [None]
            if method in _AT_EVERY_BUDGET:
                budgets = [*study.budgets]
            elif method in _AT_ONE_BUDGET:
                budgets = [_BUDGET]
            for budget in budgets:
                experiment = _experiment(study, tasks, method, budget, 0)
                space = _possible(experiment, METHODS[method][1], numel)
                yield _Entry(family, tasks.searched_on, method, budget, {LR: LRS, **space})


def _possible(experiment: Experiment, choices: Space, numel: int) -> dict[str, tuple[Any, ...]]:
    """The choices of each setting with which the budget can be met: some for the settings after
    it, and whatever is chosen of those before.
    """

    def combinations(of: Space) -> list[dict[str, Any]]:
        return [dict(zip(of, chosen, strict=True)) for chosen in product(*of.values())]

    space: dict[str, tuple[Any, ...]] = {}
    later = dict(choices)
    for path in choices:
        values = later.pop(path)
        space[path] = tuple(
            value
            for value in values
            if all(
                any(
                    _fits(with_settings(experiment, {**before, path: value, **after}), numel)
                    for after in combinations(later)
                )
                for before in combinations(space)
            )
        )
    return space


def _fits(experiment: Experiment, numel: int) -> bool:
    """Whether the budget can be met without narrowing hidden layers."""
    if experiment.budget is None:
        return True
    try:
        fitted = fit_generator(experiment, numel)
    except ValueError:
        return False
    return getattr(fitted, "hidden", None) == getattr(experiment.method, "hidden", None)


def _experiment(
    study: Comparison, tasks: Tasks, method: str, budget: float | None, seed: int
) -> Experiment:
    patience: dict[str, Any] = {}
    if study.patience is not None:
        patience = {
            "patience": study.patience,
            "eval_every": tasks.steps // _EPOCHS,
            "schedule": "plateau",
        }
    return Experiment(
        tasks.data,
        training(tasks.steps, seed, device=study.device, **patience),
        method=parse_method(METHODS[method][0]),
        budget=budget,
        latent_dim=64,
        base="zeros",
        target=tasks.target,
        batch_size=tasks.images * tasks.tasks_per_batch,
        tasks_per_batch=tasks.tasks_per_batch,
    )


def _claims(study: Comparison, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences over seeds."""
    accuracy = {(r["family"], r["method"], r["budget"]): r["accuracy"] for r in rows}
    claims = []
    for family in study.sets:
        budgets = [
            budget
            for budget in study.budgets
            if {(family, method, budget) for method in (REFERENCE, _RIVAL)} <= accuracy.keys()
        ]
        places = [(f"{budget:g} N", [budget]) for budget in budgets]
        for name, at in [*places, ("mean of budgets", budgets)] if places else []:
            pair = [mean_of(accuracy[family, m, b] for b in at) for m in (REFERENCE, _RIVAL)]
            claims.append(claim_of(family, f"{REFERENCE} − {_RIVAL}, {name}", *pair))
        for other in _OTHERS:
            if {(family, REFERENCE, _BUDGET), (family, other, None)} <= accuracy.keys():
                claim = f"{REFERENCE}, {_BUDGET:g} N − {other}"
                pair = [accuracy[family, REFERENCE, _BUDGET], accuracy[family, other, None]]
                claims.append(claim_of(family, claim, *pair))
    return claims
