"""The study of target sparsity: generated targets with zeros, against experts pruned as far.

A random mask, the same for all tasks, leaves a part of every weight to generate
(`sparsehyper.adapters.masked`). Experts are masked at random too, or pruned by magnitude in the
middle of their training.

Source: the study of the same name in F. Cubélier, "Sparse hypernetworks for multitasking" (Liège,
2022); magnitude pruning as in S. Han et al., "Learning both weights and connections for efficient
neural networks" (NeurIPS 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import nn
from torch.nn.utils import prune

from sparsehyper._util.random import spawn_seeds
from sparsehyper.lab.data import SharedTasks, TaskSet
from sparsehyper.lab.runs.baselines import Experts
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import target_layout
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.intervals import claim_of
from sparsehyper.lab.studies.pages import Table, by_method, panels, percent, points, searches_table
from sparsehyper.lab.studies.search import LR, LRS, SEARCH_SEED, run_searches, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import (
    CNN,
    RESNETS,
    chunked_within,
    measured,
    trained,
    training,
)
from sparsehyper.layout import count_numbers

# Method → its description, and its budget ÷ the parameters that are not masked.
SPARSIFIED_METHODS: dict[str, tuple[str, float | None]] = {
    "sparse": ("sparse", 4.0),
    "chunked": ("chunked", 4.0),
    "experts, masked": ("experts", None),
    "experts, pruned": ("experts", None),
}
_LATENT = 64
_PRUNED = "experts, pruned"
_REFERENCE = "sparse"


@dataclass(frozen=True)
class SparsifiedTasks:
    """A set of tasks whose targets have zeros.

    Args:
        data: images and tasks.
        target: the whole target, as `build_target` takes it.
        steps: number of updates.
        tasks_per_batch: tasks in a batch.
        images: images of each task in a batch.
    """

    data: DataConfig
    target: str
    steps: int
    tasks_per_batch: int
    images: int


@dataclass(frozen=True)
class TargetSparsity(Study):
    """The study of target sparsity.

    Results: ``searches`` of learning rates; ``rows``, with the set of tasks as ``family``,
    ``method``, ``sparsity``, the ``accuracy`` of each seed, and ``parameters``, trainable ÷ those
    of one whole target; and ``claims``.

    Args:
        sets: sets of tasks, by name.
        sparsities: shares of the weights that are zero.
        searched_at: the sparsity at which learning rates are searched; that of
            pruned experts is searched without pruning.
        trials: number of trials of each search.
        seeds: number of seeds.
        device: training device.
    """

    sets: dict[str, SparsifiedTasks]
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    searched_at: float = 0.9
    trials: int = 5
    seeds: int = 5
    device: str = "cpu"

    name = "target-sparsity"
    title = "Target sparsity"
    question = (
        "How many zeros may generated targets have, compared with experts that are pruned as far?"
    )
    method = (
        "A random mask, the same for all tasks, leaves a part of every weight; hypernetworks "
        "generate what is left, with four trainable numbers for each. Experts are masked in the "
        "same way, or pruned by magnitude layer by layer in the middle of their training, which "
        "has the same number of updates. Each method has the learning rate that is best on "
        "validation images at 90% zeros; that of pruned experts is searched without pruning. Mean "
        "over tasks ± standard deviation over seeds."
    )
    picture = "accuracy_vs_zeros.svg"

    @classmethod
    def smoke(cls) -> TargetSparsity:
        tasks = SparsifiedTasks(DataConfig("digits", "split:2"), "mlp:200", 20, 5, 4)
        return cls({"digits 5×2": tasks}, (0.0, 0.5), 0.5, 2, 2)

    @classmethod
    def cpu(cls) -> TargetSparsity:
        return cls(
            {
                "Fashion-MNIST, 10 permutations": SparsifiedTasks(
                    DataConfig("fashion_mnist", "permuted:10"), "mlp:100-100", 600, 5, 20
                ),
                "CIFAR-10 5×2": SparsifiedTasks(DataConfig("cifar10", "split:2"), CNN, 400, 5, 12),
            }
        )

    @classmethod
    def full(cls) -> TargetSparsity:
        larger = (("mlp:400-400-400", 30_000), (RESNETS["resnet32"], 60_000))
        return cls(
            {
                name: replace(tasks, target=target, steps=steps, images=30)
                for (name, tasks), (target, steps) in zip(
                    cls.cpu().sets.items(), larger, strict=True
                )
            },
            device="auto",
        )

    def task_sets(self) -> list[DataConfig]:
        return [tasks.data for tasks in self.sets.values()]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        counts = {}  # parameters of a target that are not masked
        for name, tasks in self.sets.items():
            loaded = workspace.files[tasks.data].load()
            for sparsity in {0.0, *self.sparsities}:
                experiment = _experiment(self, tasks, "experts", sparsity)
                counts[name, sparsity] = count_numbers(target_layout(experiment, loaded))
        places = list(_places(self, counts))
        searched = {
            _search(family, method): (experiment.with_seed(SEARCH_SEED), {LR: LRS})
            for family, method, sparsity, experiment in places
            if sparsity == self.searched_at
        }
        searches = run_searches(searched, self.trials, workspace)
        cells = [
            Cell(
                _name(family, method, sparsity, seed),
                {
                    "fingerprint": workspace.files[experiment.data].fingerprint,
                    "experiment": with_settings(
                        experiment.with_seed(seed),
                        searches[_search(family, method)]["settings_found"],
                    ).to_dict(),
                    "pruned": sparsity if method == _PRUNED else None,
                },
            )
            for seed in range(self.seeds)
            for family, method, sparsity, experiment in places
        ]
        done = workspace.run(cells, _cell)
        rows = []
        for family, method, sparsity, _ in places:
            found = [done[_name(family, method, sparsity, seed)] for seed in range(self.seeds)]
            rows.append(
                {
                    "family": family,
                    "method": method,
                    "sparsity": sparsity,
                    "accuracy": [run["accuracy"] for run in found],
                    "parameters": found[0]["trainable"] / counts[family, 0.0],
                }
            )
        return {"searches": searches, "rows": rows, "claims": _claims(rows)}

    @staticmethod
    def tables(results: Results) -> list[Table]:
        sparsities = results["study"]["sparsities"]
        tables = []
        for family in results["study"]["sets"]:
            rows = []
            for method, own in by_method(results["rows"], family=family).items():
                found = {row["sparsity"]: row for row in own}
                rows.append(
                    [
                        method,
                        *(percent(found[s]["accuracy"]) if s in found else "–" for s in sparsities),
                    ]
                )
                rows.append(
                    [
                        f"{method}: trainable ÷ those of one whole target",
                        *(
                            f"{found[s]['parameters']:.2f}" if s in found else "–"
                            for s in sparsities
                        ),
                    ]
                )
            columns = ["method", *(f"{s:.0%} zeros" for s in sparsities)]
            tables.append(Table(f"{family}: test accuracy, %", columns, rows))
        return [*tables, searches_table(results)]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        families = list(results["study"]["sets"])
        kept = "weights that are not zero, %"
        with panels(families, path, x=kept, y="test accuracy, %") as drawn:
            for family, axes in zip(families, drawn, strict=True):
                for method, own in by_method(results["rows"], family=family).items():
                    x = [100 * (1 - row["sparsity"]) for row in own]
                    points(axes, x, [row["accuracy"] for row in own], method)
                axes.set_xscale("log")
                axes.invert_xaxis()
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _places(
    study: TargetSparsity, counts: dict[tuple[str, float], int]
) -> Iterator[tuple[str, str, float, Experiment]]:
    """Set of tasks, method, sparsity and experiment, wherever the method can meet its budget."""
    for family, tasks in study.sets.items():
        for sparsity in study.sparsities:
            for method, (described, budget) in SPARSIFIED_METHODS.items():
                chosen: str | None = described
                if method == "chunked" and budget is not None:
                    chosen = chunked_within(budget, counts[family, sparsity], _LATENT)
                # without zeros nothing is pruned, and both kinds of experts are the same
                if chosen is not None and (sparsity or method != _PRUNED):
                    whole = method == _PRUNED
                    experiment = _experiment(study, tasks, chosen, 0.0 if whole else sparsity)
                    yield family, method, sparsity, replace(experiment, budget=budget)


def _search(family: str, method: str) -> str:
    return f"search--{slug(family)}--{slug(method)}"


def _name(family: str, method: str, sparsity: float, seed: int) -> str:
    return f"{slug(family)}--{slug(method)}--{sparsity:g}--{seed}"


def _experiment(
    study: TargetSparsity, tasks: SparsifiedTasks, method: str, sparsity: float
) -> Experiment:
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


def _cell(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Train one method at one sparsity."""
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    if settings["pruned"]:
        accuracy, trainable = _pruned(experiment, tasks, settings["pruned"])
    else:
        model, values = measured(experiment, tasks)
        accuracy = values["accuracy"]
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"accuracy": accuracy, "trainable": trainable}


def _pruned(experiment: Experiment, tasks: TaskSet, sparsity: float) -> tuple[float, int]:
    """Train experts, and half-way prune the smallest weights of every layer.

    Returns:
        Test accuracy, and the number of parameters left.
    """
    steps = experiment.training.steps
    halves = [
        replace(experiment, training=replace(experiment.training, steps=part, eval_every=part))
        for part in (steps // 2, steps - steps // 2)
    ]
    # another seed, for other batches
    halves[1] = halves[1].with_seed(spawn_seeds(experiment.seed, 1)[0])
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


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences over seeds, at every sparsity."""
    accuracy = {(r["family"], r["method"], r["sparsity"]): r["accuracy"] for r in rows}
    claims = []
    for (family, method, sparsity), ours in accuracy.items():
        for rival in SPARSIFIED_METHODS if method == _REFERENCE else ():
            theirs = accuracy.get((family, rival, sparsity))
            if rival != _REFERENCE and theirs:
                claim = f"{_REFERENCE} − {rival}, {sparsity:.0%} zeros"
                claims.append(claim_of(family, claim, ours, theirs))
    return claims
