"""The study of new tasks: pretrain on some tasks, learn others from few images each.

The claim that it tests, of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022): with
a pretrained hypernetwork, models for new tasks can be inferred by fitting an embedding alone, and
linear sparse generators are better at that than others.

For every family of tasks, method and seed, a cell pretrains on the same training tasks and then
learns the same held-out tasks from the same images: the first 1, 5, 20, … of each class in an order
drawn from the seed. Accuracy is that on the held-out tasks' test images, which nothing else sees.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._checks import check_choice, check_integer
from sparsehyper._random import seeded, spawn_seeds
from sparsehyper.adaptation import fine_tune, fit_embeddings, identify_task
from sparsehyper.data import TaskSet, TaskSplit
from sparsehyper.experiments.baselines import SharedTrunk
from sparsehyper.experiments.compare import machine
from sparsehyper.experiments.config import DataConfig, Experiment, parse_method
from sparsehyper.experiments.setup import (
    build_model,
    count_target_parameters,
    load_tasks,
    make_batches,
)
from sparsehyper.experiments.study import Cell, paired, run_cells, verdict
from sparsehyper.generators import Chunked, Generator
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.training import TrainConfig, evaluate, train

SCALES = ("smoke", "cpu", "full")

# Method → how its generator is described; "chunked" gets the sparse generator's budget.
GENERATORS = {
    "sparse linear": "sparse",
    "sparse linear, local": "sparse:topology=local",
    "sparse linear, growth 8": "sparse:growth=8",
    "sparse affine": "sparse:bias=true",
    "sparse PReLU": "sparse:activation=prelu",
    "chunked": "chunked",
    "chunked, 49.5 N": "chunked",
    "dense linear": "dense",
}
_BUDGETS = {"chunked": 4.0, "chunked, 49.5 N": 49.5}
_BASELINES = ("scratch", "reptile", "linear probe", "nearest mean")
_STAGES = ("last", "all")  # after the embedding of the first method
REFERENCE = "sparse linear"
_RIVALS = ("sparse PReLU", "chunked")


@dataclass(frozen=True)
class Family:
    """Related tasks, of which some are held out.

    Args:
        source, tasks: as `DataConfig` has them; all tasks.
        held_out: how many tasks are held out, drawn from the seed; or the numbers of some.
        methods: that are compared, of `METHODS`.
        target: as `build_target` takes it.
        steps: of pretraining.
        tasks_per_batch: of 25 images each.
    """

    source: str
    tasks: str
    held_out: int | tuple[int, ...]
    methods: tuple[str, ...]
    target: str = "mlp:100-100"
    steps: int = 1500
    tasks_per_batch: int = 4


@dataclass(frozen=True)
class NewTasks:
    """The study's settings.

    Args:
        families: by name.
        seeds: number of seeds.
        shots: images a class; None for all.
        fit_steps: updates of an embedding, or of what a baseline trains, for each of ``shots``.
        test_images: of each held-out task, at most.
    """

    families: dict[str, Family]
    seeds: int = 5
    shots: tuple[int | None, ...] = (1, 5, 20, 100, None)
    fit_steps: tuple[int, ...] = (150, 150, 150, 200, 300)
    test_images: int = 1000

    def __post_init__(self) -> None:
        check_integer("seeds", self.seeds, minimum=1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


METHODS = (*GENERATORS, *_BASELINES)
_FEWER = (REFERENCE, *_RIVALS, "scratch")
_REPAIRED = "split:0-1,2-3,0-2,1-3,0-3,2-1"
_CPU = {
    "permuted Fashion-MNIST": Family("fashion_mnist", "permuted:25", 5, METHODS),
    "Fashion-MNIST pairs": Family("fashion_mnist", "split:2,all", 9, METHODS),
    "nine permutations, then the tenth": Family("fashion_mnist", "permuted:10", 1, _FEWER),
    "two pairs, then re-paired": Family(
        "fashion_mnist", _REPAIRED, (2, 3, 4, 5), _FEWER, tasks_per_batch=2
    ),
}


def new_tasks_study(scale: str = "cpu") -> NewTasks:
    """The study's settings at a scale.

    Args:
        scale: ``"smoke"`` runs everything on tiny data in seconds; ``"cpu"`` decides the question
            on two cores; ``"full"`` is the thesis's protocol, for a GPU.
    """
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        methods = (REFERENCE, *_RIVALS, *_BASELINES)
        pairs = Family("digits", "split:2,all", 3, methods, "mlp:400", steps=20)
        some = Family("digits", "split:0-1,2-3,0-2", (2,), _FEWER, "mlp:400", 20, tasks_per_batch=2)
        return NewTasks({"pairs": pairs, "re-paired": some}, 2, (1, 5, None), (5, 5, 5))
    if scale == "cpu":
        return NewTasks(_CPU)
    families = {**_CPU, "rotated MNIST": Family("mnist", "rotated:24", 6, METHODS)}
    full = {
        name: replace(family, steps=30_000, target="mlp:400-400-400", methods=METHODS)
        for name, family in families.items()
    }
    for name, tasks in (("CIFAR-10 pairs", "split:2,all"), ("CIFAR-10 hues", "split:2/hue:8")):
        full[name] = Family("cifar10", tasks, 10, METHODS, "resnet32", 60_000)
    return NewTasks(full)


def run_new_tasks(
    study: NewTasks,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``rows`` (family, method, shots,
        mean ``accuracy`` over held-out tasks for each seed, ``trained``, the same on the training
        tasks, ``identified``, the share of training tasks told from 20 of their test images,
        ``parameters`` ÷ N, ``fit_seconds``), ``seconds`` of all cells, and ``claims``.
    """
    check_integer("workers", workers, minimum=1)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".images-", dir=directory) as scratch:
        images: dict[str, str] = {}  # decoded once, and shared by all processes
        fingerprints = {}
        for family in study.families.values():
            key = f"{family.source} {family.tasks}"
            if key not in images:
                images[key] = str(Path(scratch, f"{len(images)}.pt"))
                tasks = load_tasks(DataConfig(family.source, family.tasks), data_dir)
                torch.save(tasks, images[key])
                fingerprints[key] = tasks.fingerprint
        cells = [
            Cell(
                f"{_slug(name)}--{_slug(method)}--{seed}",
                {
                    "family": asdict(family),
                    "fingerprint": fingerprints[f"{family.source} {family.tasks}"],
                    "method": method,
                    "experiment": _experiment(family, method, seed).to_dict(),
                    "shots": list(study.shots),
                    "fit_steps": list(study.fit_steps),
                    "test_images": study.test_images,
                },
            )
            for seed in range(study.seeds)
            for name, family in study.families.items()
            for method in family.methods
        ]
        done = run_cells(
            study.to_dict(), cells, _cell, directory, images, workers=workers, quiet=quiet
        )
    rows = []
    for name, family in study.families.items():
        for method in family.methods:
            found = [done[f"{_slug(name)}--{_slug(method)}--{seed}"] for seed in range(study.seeds)]
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
                    for i, shots in enumerate(study.shots)
                ]
    return {
        "study": study.to_dict(),
        "machine": machine(),
        "rows": rows,
        "seconds": sum(cell["seconds"] for cell in done.values()),
        "claims": _claims(study, rows),
    }


def _claims(study: NewTasks, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences over seeds, each of means over the same held-out tasks."""
    accuracy = {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in rows}
    claims = []
    for family in study.families:
        for rival in (*_RIVALS, "scratch"):
            # With many images training from scratch needs more updates than are given here.
            few = [s for s in study.shots if rival != "scratch" or (s is not None and s <= 20)]
            differences = {
                shots: [
                    a - b
                    for a, b in zip(
                        accuracy[family, REFERENCE, shots],
                        accuracy[family, rival, shots],
                        strict=True,
                    )
                ]
                for shots in few
            }
            means = [statistics.fmean(values) for values in zip(*differences.values(), strict=True)]
            together = f"mean of {', '.join('all' if s is None else str(s) for s in few)}"
            for shots, values in [*differences.items(), (together, means)]:
                interval = paired(values)
                claims.append(
                    {
                        "family": family,
                        "claim": f"{REFERENCE} − {rival}",
                        "shots": shots,
                        **interval,
                        "verdict": verdict(interval),
                    }
                )
    return claims


def _experiment(family: Family, method: str, seed: int) -> Experiment:
    return Experiment(
        DataConfig(family.source, family.tasks),
        TrainConfig(
            steps=family.steps,
            lr=2e-3,
            warmup=min(100, family.steps // 10),
            eval_every=family.steps,
            seed=seed,
            device="cpu",
        ),
        method=_method(method),
        budget=_BUDGETS.get(method),
        target=family.target,
        batch_size=25 * family.tasks_per_batch,
        tasks_per_batch=family.tasks_per_batch,
    )


def _cell(settings: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    """Pretrain one method, and learn the held-out tasks."""
    family, method = Family(**settings["family"]), settings["method"]
    experiment = Experiment.from_dict(settings["experiment"])
    began = time.perf_counter()
    # Mapped into memory; the file is our own.
    path = images[f"{family.source} {family.tasks}"]
    tasks: TaskSet = torch.load(path, mmap=True, weights_only=False)
    held = _held_out(family, tasks, experiment.seed)
    known = tasks.select([name for name in tasks.names if name not in held])
    new = tasks.select(held)
    test = [_images(new.test, i, settings["test_images"]) for i in range(len(held))]
    learner = _LEARNERS.get(method, _Embeddings)(experiment, known)
    trained = learner.pretrain()
    result: dict[str, Any] = {
        "held_out": list(held),
        "trained": trained,
        "parameters": learner.parameters() / count_target_parameters(experiment, known),
        "identified": learner.identified(),
        "accuracies": {},
        "fit_seconds": {},
    }
    for shots, learner.steps in zip(settings["shots"], settings["fit_steps"], strict=True):
        train_images = [_shots(new.train, i, shots, experiment.seed) for i in range(len(held))]
        for stage, learn in learner.stages(method).items():
            started = time.perf_counter()
            models = learn(held, train_images)
            seconds = time.perf_counter() - started
            found = {
                name: _accuracy(model, *test[i], len(new.classes[i]))
                for i, (name, model) in enumerate(zip(held, models, strict=True))
            }
            result["accuracies"].setdefault(stage, []).append(found)
            result["fit_seconds"].setdefault(stage, []).append(seconds)
    return {**result, "seconds": time.perf_counter() - began}


Samples = tuple[Tensor, Tensor]
Model = Callable[[Tensor], Tensor]


class _Learner:
    """A method: pretrained on known tasks, it makes models for new ones."""

    steps: int  # of learning a task

    def __init__(self, experiment: Experiment, known: TaskSet) -> None:
        self.experiment, self.known = experiment, known
        self.seed = experiment.seed
        self.n_classes = max(map(len, known.classes))
        self.model = build_model(experiment, known)

    def pretrain(self) -> float | None:
        """Mean test accuracy on the known tasks afterwards."""
        experiment, known = self.experiment, self.known
        classes = [len(names) for names in known.classes]
        train(
            self.model,
            make_batches(experiment, known),
            known.val,
            experiment.training,
            names=known.names,
            n_classes=classes,
            quiet=True,
        )
        return evaluate(self.model, known.test, names=known.names, n_classes=classes).accuracy

    def parameters(self) -> int:
        """That are trained."""
        return sum(p.numel() for p in self.model.parameters())

    def identified(self) -> float | None:
        """Share of the known tasks that are told from 20 of their test images, without labels."""
        if not isinstance(self.model, HyperNetwork):
            return None
        names, test = self.known.names, self.known.test
        right = [
            identify_task(self.model, _images(test, i, 20)[0]).name == name
            for i, name in enumerate(names)
        ]
        return sum(right) / len(names)

    def stages(
        self, method: str
    ) -> dict[str, Callable[[Sequence[str], list[Samples]], Iterable[Model]]]:
        """By the name under which they are reported, ways to learn tasks from samples."""
        return {method: self.learn}

    def learn(self, names: Sequence[str], samples: list[Samples]) -> Iterable[Model]:
        """A model for each task."""
        raise NotImplementedError

    def tuned(self, module: nn.Module, samples: Samples, **settings: Any) -> nn.Module:
        """A copy, trained further."""
        module = copy.deepcopy(module)
        fine_tune(
            module,
            samples,
            n_classes=self.n_classes,
            **{"steps": self.steps, "seed": self.seed, **settings},
        )
        return module.eval()


class _Embeddings(_Learner):
    def stages(
        self, method: str
    ) -> dict[str, Callable[[Sequence[str], list[Samples]], Iterable[Model]]]:
        if method != REFERENCE:
            return {method: self.learn}
        return {
            method: self.learn,
            **{f"{method}, then {tune}": self._then(tune) for tune in _STAGES},
            "mean model, tuned": self._mean_model,
        }

    def learn(self, names: Sequence[str], samples: list[Samples]) -> list[nn.Module]:
        assert isinstance(self.model, HyperNetwork)
        # Fitted anew for every number of images: on a copy, which forgets them.
        hnet = copy.deepcopy(self.model)
        fit_embeddings(
            hnet,
            dict(zip(names, samples, strict=True)),
            n_classes=dict.fromkeys(names, self.n_classes),
            steps=self.steps,
            seed=self.seed,
        )
        self._fitted = [hnet.materialize(name).eval() for name in names]
        return self._fitted

    def _then(self, tune: str) -> Callable[[Sequence[str], list[Samples]], list[nn.Module]]:
        def learn(_: Sequence[str], samples: list[Samples]) -> list[nn.Module]:
            pairs = zip(self._fitted, samples, strict=True)
            return [self.tuned(module, some, tune=tune, steps=100) for module, some in pairs]

        return learn

    def _mean_model(self, names: Sequence[str], samples: list[Samples]) -> list[nn.Module]:  # noqa: ARG002
        assert isinstance(self.model, HyperNetwork)
        module = self.model.materialize(self.model.conditioner.weight.detach().mean(0))
        return [self.tuned(module, some) for some in samples]


class _Scratch(_Learner):
    def pretrain(self) -> None:
        self.fresh = _expert(self.experiment, self.known)

    def parameters(self) -> int:
        return sum(p.numel() for p in _expert(self.experiment, self.known).parameters())

    def learn(self, names: Sequence[str], samples: list[Samples]) -> list[nn.Module]:  # noqa: ARG002
        return [self.tuned(self.fresh, some) for some in samples]


class _Reptile(_Scratch):
    """An initialisation from which a few steps suffice.

    Source: A. Nichol et al., "On first-order meta-learning algorithms" (2018): after k inner steps
    on a task, the initialisation moves a share of the way there.
    """

    inner, outer_rate, lr = 5, 0.5, 1e-3

    def pretrain(self) -> None:
        super().pretrain()
        module, training = self.fresh, self.experiment.training
        # As many images as the others see.
        images = training.steps * self.experiment.batch_size
        outer = max(1, images // (25 * self.inner))
        rng = seeded(self.seed)
        module.train()
        for step in range(outer):
            task = int(torch.randint(len(self.known.names), (), generator=rng))
            before = [p.detach().clone() for p in module.parameters()]
            optimizer = torch.optim.Adam(module.parameters(), self.lr, betas=(0.0, 0.999))
            for _ in range(self.inner):
                count = self.known.train.counts[task]
                index = torch.randint(count, (25,), generator=rng)
                x, y, _ = self.known.train.batch(torch.full_like(index, task), index)
                optimizer.zero_grad()
                F.cross_entropy(module(x), y).backward()
                optimizer.step()
            rate = self.outer_rate * (1 - step / outer)
            with torch.no_grad():
                for parameter, old in zip(module.parameters(), before, strict=True):
                    parameter.copy_(old + rate * (parameter - old))
        module.zero_grad()


class _Trunk(_Learner):
    """Features that all known tasks share."""

    def __init__(self, experiment: Experiment, known: TaskSet) -> None:
        super().__init__(replace(experiment, method=SharedTrunk.kind), known)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        assert isinstance(self.model, SharedTrunk)
        return self.model.eval().trunk(x)


class _Probe(_Trunk):
    def learn(self, names: Sequence[str], samples: list[Samples]) -> list[Model]:  # noqa: ARG002
        return [self._probe(x, y) for x, y in samples]

    def _probe(self, x: Tensor, y: Tensor) -> Model:
        features = self.features(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head: nn.Module = nn.Linear(features.shape[1], self.n_classes)
        head = self.tuned(head, (features, y), lr=1e-2)
        return lambda x: head(self.features(x))


class _NearestMean(_Trunk):
    def learn(self, names: Sequence[str], samples: list[Samples]) -> list[Model]:  # noqa: ARG002
        return [self._nearest(x, y) for x, y in samples]

    def _nearest(self, x: Tensor, y: Tensor) -> Model:
        features = self.features(x)
        means = torch.stack([features[y == c].mean(0) for c in range(self.n_classes)])
        return lambda x: -torch.cdist(self.features(x), means)


_LEARNERS: dict[str, type[_Learner]] = {
    "scratch": _Scratch,
    "reptile": _Reptile,
    "linear probe": _Probe,
    "nearest mean": _NearestMean,
}


def _expert(experiment: Experiment, known: TaskSet) -> nn.Module:
    one = known.select(known.names[:1])
    model = build_model(replace(experiment, method="experts", budget=None), one)
    return model.experts[0]  # type: ignore[index, return-value]


def _method(name: str) -> Generator | str:
    if name not in GENERATORS:
        return "experts"
    if name == "chunked, 49.5 N":
        return Chunked()
    return parse_method(GENERATORS[name])


def _held_out(family: Family, tasks: TaskSet, seed: int) -> list[str]:
    if not isinstance(family.held_out, int):
        return [tasks.names[i] for i in family.held_out]
    rng = seeded(spawn_seeds(seed, 1)[0])
    order = torch.randperm(len(tasks.names), generator=rng).tolist()
    return [tasks.names[i] for i in sorted(order[: family.held_out])]


def _images(split: TaskSplit, task: int, most: int) -> Samples:
    """Up to so many images of a task, evenly spread."""
    count = split.counts[task]
    index = torch.linspace(0, count - 1, min(most, count)).long()
    x, y, _ = split.batch(torch.full_like(index, task), index)
    return x, y


def _shots(split: TaskSplit, task: int, shots: int | None, seed: int) -> Samples:
    """The first images of each class of a task, in an order drawn from the seed."""
    labels = split.labels(task)
    order = torch.randperm(len(labels), generator=seeded(seed))
    sorted_labels = labels[order]
    chosen = torch.cat([order[sorted_labels == c][:shots] for c in labels.unique()])
    x, y, _ = split.batch(torch.full_like(chosen, task), chosen)
    return x, y


@torch.no_grad()
def _accuracy(model: Model, x: Tensor, y: Tensor, n_classes: int) -> float:
    right = [
        int((model(a)[:, :n_classes].argmax(1) == b).sum())
        for a, b in zip(x.split(500), y.split(500), strict=True)
    ]
    return sum(right) / len(y)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)
