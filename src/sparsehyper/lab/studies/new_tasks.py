"""The study of new tasks: pretrain on some tasks, learn others from few images each.

It tests a claim of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022): with a
pretrained hypernetwork, models for new tasks can be inferred by fitting an embedding alone, and
linear sparse generators are better at that than others.

For every family of tasks, method and seed, a cell pretrains on the same training tasks and then
learns the same held-out tasks from the same images: the first 1, 5, 20, … of each class in an order
drawn from the seed. Accuracy is measured on the held-out tasks' test images, which are used for
nothing else. The study of `adaptation` supersedes this one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from os import PathLike
from typing import Any

import torch

from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.random import seeded, spawn_seeds
from sparsehyper.lab import plots
from sparsehyper.lab.data import SharedTasks, TaskSet, images_of, shots_of
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import target_numel
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.intervals import claim_of, mean_of
from sparsehyper.lab.studies.learners import LEARNERS, LEARNING, Embeddings
from sparsehyper.lab.studies.pages import (
    Table,
    by_method,
    percent,
    shots_lines,
    shots_panels,
    shots_text,
)
from sparsehyper.lab.studies.search import with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import CNN, RESNETS, training

# Method → description of its generator.
NEW_TASK_GENERATORS = {
    "sparse linear": "sparse",
    "sparse linear, local": "sparse:topology=local",
    "sparse linear, growth 8": "sparse:growth=8",
    "sparse affine": "sparse:bias=true",
    "sparse PReLU": "sparse:activation=prelu",
    "chunked": "chunked",
    "chunked, 49.5 N": "chunked",
    "dense linear": "dense",
    "sparse linear, base and 256": "sparse",
    "chunked, base": "chunked",
}
_REFERENCE = "sparse linear"
_RIVALS = ("sparse PReLU", "chunked")
_RECOMMENDED, _BASED = "sparse linear, base and 256", "chunked, base"
# Other settings in which they differ. Budgets are those of the sparse generator, except for the
# thesis's default of chunked ones; a learned base is part of the budget. Methods with a base have
# the best learning rate of trials with other seeds.
_METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "chunked": {"budget": 4.0},
    "chunked, 49.5 N": {"budget": 49.5},
    _RECOMMENDED: {"budget": 4.0, "base": "learned", "latent_dim": 256, "training.lr": 4e-3},
    _BASED: {"budget": 4.0, "base": "learned"},
}
# Differences that the study claims, those of the thesis first.
_CLAIMS = (
    *((_REFERENCE, rival) for rival in (*_RIVALS, "scratch")),
    *((_RECOMMENDED, rival) for rival in (_REFERENCE, "chunked", _BASED, "scratch")),
)

# Lines of the picture, in the order of its legend: colour, marker and style.
_LINES = {
    "sparse linear": (plots.VERMILION, "o", "-"),
    "sparse linear, growth 8": (plots.ORANGE, "P", "-"),
    "sparse linear, base and 256": (plots.WINE, "h", "-"),
    "sparse PReLU": (plots.PURPLE, "v", "-"),
    "chunked": (plots.BLUE, "s", "-"),
    "chunked, base": (plots.INDIGO, "p", "-"),
    "dense linear": (plots.GREEN, "^", "-"),
    "sparse linear, then all": (plots.VERMILION, "o", ":"),
    "mean model, tuned": (plots.PURPLE, "d", ":"),
    "linear probe": (plots.SKY, "X", "--"),
    "scratch": (plots.DARK, "D", "--"),
    "reptile": (plots.BROWN, "<", "--"),
    "nearest mean": (plots.BLACK, "*", "--"),
}


@dataclass(frozen=True)
class Family:
    """Related tasks, of which some are held out.

    Args:
        source, tasks: all tasks, as in `DataConfig`.
        held_out: number of tasks to hold out, drawn from the seed; or the indices of some.
        methods: methods to compare, of `NEW_TASK_METHODS`.
        then: ways that follow the embedding of the reference, as in `Embeddings`.
        target: as `build_target` takes it.
        steps: number of updates of pretraining.
        tasks_per_batch: tasks in a batch, of 25 images each.
    """

    source: str
    tasks: str
    held_out: int | tuple[int, ...]
    methods: tuple[str, ...]
    then: tuple[str, ...] = ()
    target: str = "mlp:100-100"
    steps: int = 1500
    tasks_per_batch: int = 4


NEW_TASK_METHODS = (*NEW_TASK_GENERATORS, *LEARNERS)
_MAIN = (_REFERENCE, *_RIVALS, "scratch", "linear probe", _RECOMMENDED, _BASED)
_THEN = ("last", "all", "mean model")
_REPAIRED = "split:0-1,2-3,0-2,1-3,0-3,2-1"
_THREE = "mnist+fashion_mnist+cifar10"  # with classes 0 to 9, 10 to 19 and 20 to 29
_EACH_PAIR = "split:" + ",".join(
    f"{start + a}-{start + b}" for start in (0, 10, 20) for a, b in combinations(range(10), 2)
)
_CPU = {
    "permuted Fashion-MNIST": Family("fashion_mnist", "permuted:25", 5, NEW_TASK_METHODS, _THEN),
    "Fashion-MNIST pairs": Family("fashion_mnist", "split:2,all", 9, NEW_TASK_METHODS, _THEN),
    "CIFAR-10 pairs": Family("cifar10", "split:2,all", 9, _MAIN, ("norm", *_THEN), CNN),
    "CIFAR-10 pairs in 8 hues": Family("cifar10", "split:2/hue:8", 8, _MAIN, target=CNN),
    "pairs of three data sets": Family(_THREE, _EACH_PAIR, 6, _MAIN, target=CNN),
    "MNIST pairs": Family("mnist", "split:2,all", 9, _MAIN),
    "rotated MNIST": Family("mnist", "rotated:24", 6, _MAIN),
    "nine permutations, then the tenth": Family("fashion_mnist", "permuted:10", 1, _MAIN),
    "two pairs, then re-paired": Family(
        "fashion_mnist", _REPAIRED, (2, 3, 4, 5), _MAIN, tasks_per_batch=2
    ),
}


@dataclass(frozen=True)
class NewTasks(Study):
    """The study of new tasks.

    Results: ``rows``, with ``family``, ``method``, ``shots`` and ``parameters`` ÷ N, and for each
    seed the mean ``accuracy`` over held-out tasks, ``trained``, the same on the training tasks,
    ``identified``, the share of training tasks identified from 20 of their test images, and
    ``fit_seconds``; and ``claims``.

    Args:
        families: families of tasks, by name.
        seeds: number of seeds.
        shots: images per class; None for all.
        updates: number of Adam updates of what a baseline trains, for each of ``shots``; the other
            settings are in `LEARNING`.
        test_images: images of each held-out task, at most.
        device: pretraining device; new tasks are learned on the CPU.
    """

    families: dict[str, Family]
    seeds: int = 5
    shots: tuple[int | None, ...] = (1, 5, 20, 100, None)
    updates: tuple[int, ...] = (150, 150, 150, 200, 300)
    test_images: int = 1000
    device: str = "cpu"

    name = "new-tasks"
    title = "New tasks"
    question = (
        "Can models for new tasks be inferred by an embedding alone, and are linear sparse "
        "generators better at that than sparse ones with an activation, and than chunked ones of "
        "the same budget?"
    )
    method = (
        "Every method is trained on the same tasks and learns the same held-out ones from 1, 5, "
        "20, 100 and all images per class. Accuracies are means over held-out tasks ± standard "
        "deviation over seeds. Claims are differences paired over seeds, with Student's t "
        "intervals; the verdict on a family is that on its mean over numbers of images."
    )
    picture = "accuracy_vs_shots.svg"

    @classmethod
    def smoke(cls) -> NewTasks:
        methods = (_REFERENCE, *_RIVALS, *LEARNERS, _RECOMMENDED)
        cnn = "cnn:8-8,norm=batch,pool=stride"
        tasks = "split:0-1,2-3,4-5,6-7,8-9,0-2,1-3"
        pairs = Family("digits", tasks, 2, methods, ("norm", *_THEN), cnn, steps=20)
        some = Family("digits", "split:0-1,2-3,0-2", (2,), _MAIN, (), "mlp:400", 20, 2)
        return cls({"pairs": pairs, "re-paired": some}, 2, (1, 5, None), (5, 5, 5))

    @classmethod
    def cpu(cls) -> NewTasks:
        return cls(_CPU)

    @classmethod
    def full(cls) -> NewTasks:
        targets = {Family.target: ("mlp:400-400-400", 30_000), CNN: (RESNETS["resnet32"], 60_000)}
        full = {}
        for name, family in _CPU.items():
            target, steps = targets[family.target]
            # the large target has no norms to tune
            then = tuple(stage for stage in family.then if stage != "norm")
            full[name] = replace(
                family, target=target, steps=steps, methods=NEW_TASK_METHODS, then=then
            )
        return cls(full, device="auto")

    def task_sets(self) -> list[DataConfig]:
        return [_data(family) for family in self.families.values()]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        cells = [
            Cell(
                f"{slug(name)}--{slug(method)}--{seed}",
                {
                    # only its own method, so that others can be added
                    "family": {
                        **asdict(family),
                        "methods": [method],
                        "then": _then(family, method),
                    },
                    "fingerprint": workspace.files[_data(family)].fingerprint,
                    "method": method,
                    "learning": LEARNING,
                    "experiment": _experiment(self, family, method, seed).to_dict(),
                    "shots": list(self.shots),
                    "updates": list(self.updates),
                    "test_images": self.test_images,
                },
            )
            for seed in range(self.seeds)
            for name, family in self.families.items()
            for method in family.methods
        ]
        done = workspace.run(cells, _cell)
        rows = []
        for name, family in self.families.items():
            for method in family.methods:
                found = [
                    done[f"{slug(name)}--{slug(method)}--{seed}"] for seed in range(self.seeds)
                ]
                for stage in found[0]["accuracies"]:
                    rows += [
                        {
                            "family": name,
                            "method": stage,
                            "shots": shots,
                            "accuracy": [
                                statistics.fmean(f["accuracies"][stage][i].values()) for f in found
                            ],
                            "trained": [f["trained"] for f in found],
                            "identified": [f["identified"] for f in found],
                            "parameters": found[0]["parameters"],
                            "fit_seconds": [f["fit_seconds"][stage][i] for f in found],
                        }
                        for i, shots in enumerate(self.shots)
                    ]
        return {"rows": rows, "claims": _claims(self, rows)}

    @staticmethod
    def tables(results: Results) -> list[Table]:
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
            columns = ["method", "trainable ÷ N", "trained tasks", "identified", *names]
            title = f"{family}: accuracy on new tasks, %, by images per class"
            tables.append(Table(title, columns, rows))
        return tables

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        shots_panels(results, _LINES, path)

    @staticmethod
    def by_shots(results: Results) -> dict[str, Any]:
        return shots_lines(results, _LINES)


def _claims(study: NewTasks, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Differences of mean accuracies over the same held-out tasks, paired over seeds."""
    accuracy = {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in rows}
    claims = []
    for family, settings in study.families.items():
        for method, rival in _CLAIMS:
            if not {method, rival} <= set(settings.methods):
                continue
            # with many images, training from scratch needs more updates than it gets here
            few = [s for s in study.shots if rival != "scratch" or (s is not None and s <= 20)]
            together = f"mean of {', '.join('all' if s is None else str(s) for s in few)}"
            for name, shots in [*((s, [s]) for s in few), (together, few)]:
                pair = [mean_of(accuracy[family, m, s] for s in shots) for m in (method, rival)]
                claims.append(claim_of(family, f"{method} − {rival}", *pair, shots=name))
    return claims


def _data(family: Family) -> DataConfig:
    return DataConfig(family.source, family.tasks)


def _experiment(study: NewTasks, family: Family, method: str, seed: int) -> Experiment:
    experiment = Experiment(
        _data(family),
        training(family.steps, seed, device=study.device),
        method=parse_method(NEW_TASK_GENERATORS.get(method, "experts")),
        latent_dim=64,
        base="zeros",
        target=family.target,
        batch_size=25 * family.tasks_per_batch,
        tasks_per_batch=family.tasks_per_batch,
    )
    return with_settings(experiment, _METHOD_SETTINGS.get(method, {}))


def _cell(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Pretrain one method, and learn the held-out tasks."""
    family, method = Family(**settings["family"]), settings["method"]
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[_data(family)].load()
    held = _held_out(family, tasks, experiment.seed)
    known = tasks.select([name for name in tasks.names if name not in held])
    new = tasks.select(held)
    test = [images_of(new.test, i, settings["test_images"]) for i in range(len(held))]
    learner = LEARNERS.get(method, Embeddings)(experiment, known)
    trained = learner.pretrain()
    result: dict[str, Any] = {
        "held_out": list(held),
        "trained": trained,
        "parameters": learner.parameters() / target_numel(learner.model),
        "identified": learner.identified(),
        "accuracies": {},
        "fit_seconds": {},
    }
    for shots, learner.updates in zip(settings["shots"], settings["updates"], strict=True):
        samples = [shots_of(new.train, i, shots, experiment.seed) for i in range(len(held))]
        for stage, learn in learner.ways(family.then).items():
            started = time.perf_counter()
            models = learn(held, samples)
            seconds = time.perf_counter() - started
            found = {
                name: accuracy(model, *test[i], len(new.classes[i]))
                for i, (name, model) in enumerate(zip(held, models, strict=True))
            }
            way = f"{method}, then {stage}" if stage else method
            way = "mean model, tuned" if stage == "mean model" else way
            result["accuracies"].setdefault(way, []).append(found)
            result["fit_seconds"].setdefault(way, []).append(seconds)
    return result


def _then(family: Family, method: str) -> list[str]:
    return list(family.then) if method == _REFERENCE else []


def _held_out(family: Family, tasks: TaskSet, seed: int) -> list[str]:
    if not isinstance(family.held_out, int):
        return [tasks.names[i] for i in family.held_out]
    rng = seeded(spawn_seeds(seed, 1)[0])
    order = torch.randperm(len(tasks.names), generator=rng).tolist()
    return [tasks.names[i] for i in sorted(order[: family.held_out])]
