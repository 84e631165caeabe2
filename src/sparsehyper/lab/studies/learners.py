"""Learners: methods that are pretrained on known tasks and then learn new ones from few images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.random import seeded
from sparsehyper.adaptation import fine_tune, fit_embeddings, identify_task, task_profiles
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, TaskSplit, images_of
from sparsehyper.lab.runs.baselines import SharedTrunk
from sparsehyper.lab.runs.config import Experiment
from sparsehyper.lab.runs.setup import build_model
from sparsehyper.lab.studies.trainings import measured

Shots = tuple[Tensor, Tensor]
Model = Callable[[Tensor], Tensor]
Learn = Callable[[Sequence[str], list[Shots]], Iterable[Model]]

# How a task is learned, apart from the number of updates, which the study sets. This is part of the
# settings of every cell.
LEARNING: dict[str, Any] = {
    "embedding": {"init": "nearest", "steps": 25, "batch_size": 1024},
    "then": {"steps": 100, "lr": 1e-3, "batch_size": 64},
    "model": {"lr": 1e-3, "batch_size": 64, "norm_stats": "renewed"},
    "probe": {"lr": 1e-2, "batch_size": 64},
    "reptile": {"inner": 5, "outer_rate": 0.5, "lr": 1e-3},
}


class Learner:
    """A method that is pretrained on known tasks and makes models for new ones.

    Attributes:
        updates: number of updates by Adam to learn a task.
        model: the pretrained model.
    """

    updates: int
    model: nn.Module

    def __init__(self, experiment: Experiment, known: TaskSet) -> None:
        self.experiment, self.known = experiment, known
        self.seed = experiment.seed
        self.n_classes = max(map(len, known.classes))

    def build(self) -> nn.Module:
        """The model to pretrain."""
        return build_model(self.experiment, self.known)

    def pretrain(self) -> float | None:
        """Pretrain, and return the mean test accuracy on the known tasks."""
        self.model, values = measured(self.experiment, self.known, self.build())
        self.model.cpu()  # new tasks are learned on the CPU
        return values["accuracy"]

    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def identified(self) -> float | None:
        """Share of the known tasks that are identified from 20 unlabelled test images."""
        if not isinstance(self.model, HyperNetwork):
            return None
        names = self.known.names
        train, held, test = (
            {name: images_of(split, i, most) for i, name in enumerate(names)}
            for split, most in (
                (self.known.train, 1000),
                (self.known.val, 1000),
                (self.known.test, 20),
            )
        )
        profiles = task_profiles(self.model, train, validation=held)
        right = [
            identify_task(self.model, profiles, test[name][0]).likeliest == name for name in names
        ]
        return sum(right) / len(names)

    def ways(self, names: Sequence[str]) -> dict[str, Learn]:
        """Ways to learn tasks from samples.

        Args:
            names: ways that follow the method itself.

        Returns:
            The method itself under ``""``, then the others by name.
        """
        assert not names
        return {"": self.learn}

    def learn(self, names: Sequence[str], samples: list[Shots]) -> Iterable[Model]:
        """Make a model for each task."""
        raise NotImplementedError

    def tuned(self, module: nn.Module, samples: Shots, **settings: Any) -> nn.Module:
        """A copy of a module, trained further on samples."""
        module = copy.deepcopy(module)
        fine_tune(
            module,
            samples,
            n_classes=self.n_classes,
            **{"steps": self.updates, "seed": self.seed, **settings},
        )
        return module.eval()


class Embeddings(Learner):
    """A hypernetwork; only the embeddings of new tasks are fitted.

    Ways that may follow: ``norm``, ``last`` and ``all`` train the norms, the last layer or all of
    each model further; ``mean model`` trains all of the model of the mean embedding instead.
    """

    def ways(self, names: Sequence[str]) -> dict[str, Learn]:
        return {"": self.learn, **{name: self._way(name) for name in names}}

    def learn(self, names: Sequence[str], samples: list[Shots]) -> list[nn.Module]:
        assert isinstance(self.model, HyperNetwork)
        # a copy, as every number of images starts from the pretrained hypernetwork
        hnet = copy.deepcopy(self.model)
        fit_embeddings(
            hnet,
            dict(zip(names, samples, strict=True)),
            n_classes=dict.fromkeys(names, self.n_classes),
            seed=self.seed,
            **LEARNING["embedding"],
        )
        self._fitted = [hnet.materialize(name).eval() for name in names]
        return self._fitted

    def _way(self, name: str) -> Learn:
        if name == "mean model":
            return self._mean_model

        def learn(_: Sequence[str], samples: list[Shots]) -> list[nn.Module]:
            pairs = zip(self._fitted, samples, strict=True)
            return [self.tuned(m, some, tune=name, **LEARNING["then"]) for m, some in pairs]

        return learn

    def _mean_model(self, _: Sequence[str], samples: list[Shots]) -> list[nn.Module]:
        assert isinstance(self.model, HyperNetwork)
        module = self.model.materialize(self.model.task_embedding.weight.detach().mean(0))
        return [self.tuned(module, some, **LEARNING["model"]) for some in samples]


class _Scratch(Learner):
    def build(self) -> nn.Module:
        one = self.known.select(self.known.names[:1])
        experts = build_model(replace(self.experiment, method="experts", budget=None), one)
        return experts.experts[0]  # type: ignore[index, return-value]

    def pretrain(self) -> float | None:
        self.model = self.build()
        return None

    def learn(self, _: Sequence[str], samples: list[Shots]) -> list[nn.Module]:
        return [self.tuned(self.model, some, **LEARNING["model"]) for some in samples]


class _Reptile(_Scratch):
    """An initialisation from which a few steps suffice."""

    def pretrain(self) -> float | None:
        super().pretrain()
        reptile(
            self.model,
            self.known.train,
            # the other methods see as many images
            self.experiment.training.steps * self.experiment.batch_size,
            seed=self.seed,
            **LEARNING["reptile"],
        )
        return None


class _Trunk(Learner):
    """A method that uses features which all known tasks share."""

    def __init__(self, experiment: Experiment, known: TaskSet) -> None:
        super().__init__(replace(experiment, method=SharedTrunk.kind), known)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        assert isinstance(self.model, SharedTrunk)
        model = self.model.eval()
        return torch.cat([model.trunk(some) for some in x.split(500)])


class _Probe(_Trunk):
    def learn(self, _: Sequence[str], samples: list[Shots]) -> list[Model]:
        return [self._probe(x, y) for x, y in samples]

    def _probe(self, x: Tensor, y: Tensor) -> Model:
        features = self.features(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head: nn.Module = nn.Linear(features.shape[1], self.n_classes)
        head = self.tuned(head, (features, y), **LEARNING["probe"])
        return lambda x: head(self.features(x))


class _NearestMean(_Trunk):
    def learn(self, _: Sequence[str], samples: list[Shots]) -> list[Model]:
        return [self._nearest(x, y) for x, y in samples]

    def _nearest(self, x: Tensor, y: Tensor) -> Model:
        features = self.features(x)
        means = torch.stack([features[y == c].mean(0) for c in range(self.n_classes)])
        return lambda x: -torch.cdist(self.features(x), means)


# Methods other than generators, whose learner is `Embeddings`.
LEARNERS: dict[str, type[Learner]] = {
    "scratch": _Scratch,
    "reptile": _Reptile,
    "linear probe": _Probe,
    "nearest mean": _NearestMean,
}


def reptile(
    module: nn.Module,
    split: TaskSplit,
    images: int,
    *,
    inner: int,
    outer_rate: float,
    lr: float,
    seed: int,
) -> None:
    """Train an initialisation from which a few steps suffice, in place.

    After the inner steps on a task, the initialisation moves part of the way to where they led.

    Args:
        module: the initialisation.
        split: images of the tasks, of which each inner step takes 25 of one task.
        images: number of images to train on.
        inner: number of inner steps, by Adam.
        outer_rate: part of the way to move, falling to 0.
        lr: learning rate of the inner steps.
        seed: seed of the choice of tasks and images.

    Source: A. Nichol et al., "On first-order meta-learning algorithms" (2018).
    """
    outer = max(1, images // (25 * inner))
    rng = seeded(seed)
    module.train()
    for step in range(outer):
        task = int(torch.randint(len(split.counts), (), generator=rng))
        before = [p.detach().clone() for p in module.parameters()]
        optimizer = torch.optim.Adam(module.parameters(), lr, betas=(0.0, 0.999))
        for _ in range(inner):
            index = torch.randint(split.counts[task], (25,), generator=rng)
            x, y, _ = split.batch(torch.full_like(index, task), index)
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
        rate = outer_rate * (1 - step / outer)
        with torch.no_grad():
            for parameter, old in zip(module.parameters(), before, strict=True):
                parameter.copy_(old + rate * (parameter - old))
    module.zero_grad()
