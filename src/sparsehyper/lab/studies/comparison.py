"""The study of methods: sparse against chunked and others, on many sets of tasks and at budgets.

Hyperparameters are searched first, with equally many trials for every method and budget, on
validation images and with a seed of their own. Every method is then trained on every set of tasks
with several seeds, and evaluated on the test images once.

It tests a claim of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022): on multitask
computer vision, sparse hypernetworks match chunked ones, and are slightly behind on the more
complex problems.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from typing import Any

from sparsehyper._util.checks import check_choice
from sparsehyper.lab.data import SharedTasks
from sparsehyper.lab.plots import BUDGET, budget_axis
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import fit_generator, target_layout
from sparsehyper.lab.studies.cells import Workspace, slug
from sparsehyper.lab.studies.intervals import claim_of, mean_of
from sparsehyper.lab.studies.pages import (
    Table,
    by_method,
    panels,
    percent,
    points,
    searches_table,
)
from sparsehyper.lab.studies.search import LR, LRS, SEARCH_SEED, Space, run_searches, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import CNN, RESNETS, run_trainings, training
from sparsehyper.layout import count_numbers

# Method → its description, and the search space beside the learning rate, defaults first.
_BASE = {"base": ("zeros", "learned"), "similarity": (0.0, 0.9)}
_CHUNKED = {**_BASE, "method.hidden": (None, 8, 16, 32, 64, 256)}
COMPARED_METHODS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
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
_EPOCHS = 300  # in the thesis's protocol
_BATCH = 150  # images, in the thesis's protocol

_REFERENCE, _RIVAL = "sparse", "chunked"
_OTHERS = ("dense", "experts", "shared trunk")


@dataclass(frozen=True)
class ComparedTasks:
    """A set of tasks on which methods are compared.

    Args:
        data: images and tasks.
        searched_on: the set on which the hyperparameters for this one are searched.
        target: as `build_target` takes it.
        steps: number of updates.
        tasks_per_batch: tasks in a batch.
        images: images of each task in a batch.
        methods: methods to compare, from `COMPARED_METHODS`.
    """

    data: DataConfig
    searched_on: str
    target: str
    steps: int
    tasks_per_batch: int
    images: int
    methods: tuple[str, ...] = tuple(COMPARED_METHODS)


_CNN_METHODS = tuple(
    method for method in COMPARED_METHODS if method not in ("chunks of tensors", "butterfly")
)


def _mlp_tasks(
    source: str, tasks: str, searched_on: str, tasks_per_batch: int = 5
) -> ComparedTasks:
    data = DataConfig(source, tasks)
    return ComparedTasks(
        data, searched_on, "mlp:100-100", 500, tasks_per_batch, 100 // tasks_per_batch
    )


def _cnn_tasks(source: str, tasks: str, tasks_per_batch: int) -> ComparedTasks:
    data = DataConfig(source, tasks)
    images = 60 // tasks_per_batch
    return ComparedTasks(data, "CIFAR-10 5×2", CNN, 350, tasks_per_batch, images, _CNN_METHODS)


_SPLIT, _PAIRS = "Fashion-MNIST 5×2", "Fashion-MNIST, 45 pairs"
_PERMUTED = "Fashion-MNIST, 10 permutations"
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
# Number of training images of all tasks, without those for validation.
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


@dataclass(frozen=True)
class Comparison(Study):
    """The study of methods.

    Results: ``searches``, each with the ``settings_found`` and its trials; ``rows``, with the set
    of tasks as ``family``, ``method``, ``budget``, ``parameters`` ÷ N and ``generator``, and for
    each seed ``accuracy``, that of the ``worst`` task, ``step_ms``, ``seconds`` and
    ``peak_memory_mb``; ``left_out``, with the family, method and budget of those that cannot meet
    the budget; and ``claims``.

    Args:
        sets: sets of tasks, by name.
        budgets: trainable parameters ÷ N at which sparse and chunked generators are compared.
        trials: number of trials of each search.
        seeds: number of seeds.
        patience: evaluations, of 300 in a training, without improvement before training stops; None
            evaluates at the end only.
        device: training device.
    """

    sets: dict[str, ComparedTasks]
    budgets: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    trials: int = 8
    seeds: int = 5
    patience: int | None = None
    device: str = "cpu"

    name = "compare"
    title = "Methods compared"
    question = (
        "On multitask computer vision, are sparse hypernetworks as accurate as chunked ones of the "
        "same budget, and how do both compare with other generators, experts and a shared trunk?"
    )
    method = (
        "Every method and budget gets the same number of trials of the learning rate, the base, "
        "the similarity of tasks at the start and, for chunked generators, the hidden width. They "
        "are judged on validation images of one set of its kind, with a seed of their own. Each "
        "method is then trained on every set with all seeds, and evaluated on the test images "
        "once. Mean over tasks ± standard deviation over seeds; paired differences with Student's "
        "t intervals, not corrected for multiple comparisons."
    )
    picture = "accuracy_vs_budget.svg"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tasks in self.sets.items():
            check_choice(f"searched_on of {name!r}", tasks.searched_on, self.sets)

    @classmethod
    def smoke(cls) -> Comparison:
        methods = ("sparse", "chunked", "dense", "experts", "shared trunk")
        data = DataConfig("digits", "split:2")
        tasks = ComparedTasks(data, "digits 5×2", "mlp:100", 10, 5, 4, methods)
        return cls({"digits 5×2": tasks}, (0.25, 4.0), trials=2, seeds=2)

    @classmethod
    def cpu(cls) -> Comparison:
        return cls(_CPU)

    @classmethod
    def full(cls) -> Comparison:
        """Settings of the thesis's protocol: its targets and batches, 300 epochs, patience 10."""
        full = {
            name: replace(
                tasks,
                target="mlp:400-400-400" if tasks.target.startswith("mlp") else RESNETS["resnet32"],
                steps=_EPOCHS * _EPOCH_IMAGES[name] // _BATCH,
                images=_BATCH // tasks.tasks_per_batch,
                methods=tuple(COMPARED_METHODS),
                searched_on=tasks.searched_on.replace("CIFAR-10 5×2", "CIFAR-10 5×2, resnet32"),
            )
            for name, tasks in _CPU.items()
        }
        ten_by_two = full.pop("CIFAR-10 5×2")
        for name, source, maker in (
            ("CIFAR-10 5×2", "cifar10", "split:2"),
            ("CIFAR-100 10×10", "cifar100", "split:10"),
        ):
            for network, target in RESNETS.items():
                one = replace(ten_by_two, data=DataConfig(source, maker), target=target)
                full[f"{name}, {network}"] = replace(one, searched_on="CIFAR-10 5×2, resnet32")
        return cls(full, patience=10, device="auto")

    def task_sets(self) -> list[DataConfig]:
        return [tasks.data for tasks in self.sets.values()]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        wanted = list(_entries(self, workspace.files))
        entries = [entry for entry in wanted if all(entry.space.values())]
        searched = {
            entry.search: (
                entry.experiment(self, self.sets[entry.family], SEARCH_SEED),
                entry.space,
            )
            for entry in entries
            if entry.family == self.sets[entry.family].searched_on
        }
        searches = run_searches(searched, self.trials, workspace)
        experiments = {
            entry.cell(seed): with_settings(
                entry.experiment(self, self.sets[entry.family], seed),
                searches[entry.search]["settings_found"],
            )
            for seed in range(self.seeds)
            for entry in entries
        }
        done = run_trainings(experiments, workspace)
        rows = []
        for entry in entries:
            found = [done[entry.cell(seed)] for seed in range(self.seeds)]
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
            "searches": searches,
            "rows": rows,
            "left_out": [
                {"family": entry.family, "method": entry.method, "budget": entry.budget}
                for entry in wanted
                if not all(entry.space.values())
            ],
            "claims": _claims(self, rows),
        }

    @staticmethod
    def tables(results: Results) -> list[Table]:
        columns = [
            *("method", "budget ÷ N", "trainable ÷ N", "accuracy, %", "worst task, %", "step, ms"),
            *("seconds", "peak MB"),
        ]
        tables = []
        for family in results["study"]["sets"]:
            rows = [
                [
                    row["method"],
                    "–" if row["budget"] is None else f"{row['budget']:g}",
                    f"{row['parameters']:.2f}",
                    percent(row["accuracy"]),
                    percent(row["worst"]),
                    f"{statistics.median(row['step_ms']):.1f}",
                    f"{statistics.median(row['seconds']):.1f}",
                    f"{statistics.median(row['peak_memory_mb']):.0f}",
                ]
                for row in results["rows"]
                if row["family"] == family
            ]
            tables.append(Table(family, columns, rows))
        if left_out := results["left_out"]:
            rows = [[one["family"], one["method"], f"{one['budget']:g}"] for one in left_out]
            columns = ["set", "method", "budget ÷ N"]
            tables.append(Table("Left out, because their layers alone are larger", columns, rows))
        return [*tables, searches_table(results)]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        families = list(results["study"]["sets"])
        with panels(families, path, x=BUDGET, y="test accuracy, %") as drawn:
            for family, axes in zip(families, drawn, strict=True):
                for method, rows in by_method(results["rows"], family=family).items():
                    x = [row["parameters"] for row in rows]
                    points(axes, x, [row["accuracy"] for row in rows], method)
                own = [row for row in results["rows"] if row["family"] == family]
                budget_axis(axes, [row["parameters"] for row in own], 1.3)

    @staticmethod
    def by_budget(results: Results) -> list[tuple[str, list[Mapping[str, Any]]]]:
        rows = results["rows"]
        return [(f, [r for r in rows if r["family"] == f]) for f in results["study"]["sets"]]


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

    def experiment(self, study: Comparison, tasks: ComparedTasks, seed: int) -> Experiment:
        return _experiment(study, tasks, self.method, self.budget, seed)

    @property
    def _name(self) -> str:
        return slug(self.method) + ("" if self.budget is None else f"--{self.budget:g}N")


def _entries(study: Comparison, files: Mapping[DataConfig, SharedTasks]) -> Iterator[_Entry]:
    """Every method at every budget, with the search space in which the budget can be met."""
    for family, tasks in study.sets.items():
        known = files[tasks.data].load()
        numel = count_numbers(target_layout(_experiment(study, tasks, "experts", None, 0), known))
        for method in tasks.methods:
            budgets: list[float | None] = [None]
            if method in _AT_EVERY_BUDGET:
                budgets = [*study.budgets]
            elif method in _AT_ONE_BUDGET:
                budgets = [_BUDGET]
            for budget in budgets:
                experiment = _experiment(study, tasks, method, budget, 0)
                space = _possible(experiment, COMPARED_METHODS[method][1], numel)
                yield _Entry(family, tasks.searched_on, method, budget, {LR: LRS, **space})


def _possible(experiment: Experiment, choices: Space, numel: int) -> dict[str, tuple[Any, ...]]:
    """The choices of each setting that can meet the budget.

    A choice is kept if, for every kept choice of the earlier settings, some choice of the later
    ones meets the budget.
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
    """Whether the budget can be met without narrower hidden layers."""
    if experiment.budget is None:
        return True
    try:
        fitted = fit_generator(experiment, numel)
    except ValueError:
        return False
    return getattr(fitted, "hidden", None) == getattr(experiment.method, "hidden", None)


def _experiment(
    study: Comparison, tasks: ComparedTasks, method: str, budget: float | None, seed: int
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
        method=parse_method(COMPARED_METHODS[method][0]),
        budget=budget,
        latent_dim=64,
        base="zeros",
        target=tasks.target,
        batch_size=tasks.images * tasks.tasks_per_batch,
        tasks_per_batch=tasks.tasks_per_batch,
    )


def _claims(study: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Differences paired over seeds, at each budget and as the mean over budgets."""
    accuracy = {(r["family"], r["method"], r["budget"]): r["accuracy"] for r in rows}
    claims = []
    for family in study.sets:
        budgets = [
            budget
            for budget in study.budgets
            if {(family, method, budget) for method in (_REFERENCE, _RIVAL)} <= accuracy.keys()
        ]
        places = [(f"{budget:g} N", [budget]) for budget in budgets]
        for name, at in [*places, ("mean of budgets", budgets)] if places else []:
            pair = [mean_of(accuracy[family, m, b] for b in at) for m in (_REFERENCE, _RIVAL)]
            claims.append(claim_of(family, f"{_REFERENCE} − {_RIVAL}, {name}", *pair))
        for other in _OTHERS:
            if {(family, _REFERENCE, _BUDGET), (family, other, None)} <= accuracy.keys():
                claim = f"{_REFERENCE}, {_BUDGET:g} N − {other}"
                pair = [accuracy[family, _REFERENCE, _BUDGET], accuracy[family, other, None]]
                claims.append(claim_of(family, claim, *pair))
    return claims
