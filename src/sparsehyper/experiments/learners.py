"""What the study of new tasks compares: methods that are pretrained on known tasks and then learn
new ones from few images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._random import seeded
from sparsehyper.adaptation import fine_tune, fit_embeddings, identify_task
from sparsehyper.data import TaskSet, TaskSplit
from sparsehyper.experiments.baselines import SharedTrunk
from sparsehyper.experiments.config import Experiment
from sparsehyper.experiments.setup import build_model, make_batches
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.training import evaluate, train

Samples = tuple[Tensor, Tensor]
Model = Callable[[Tensor], Tensor]
Learn = Callable[[Sequence[str], list[Samples]], Iterable[Model]]

_TUNE_STEPS = 100  # after an embedding


class Learner:
    """A method: pretrained on known tasks, it makes models for new ones.

    Attributes:
        updates: of what is trained by Adam to learn a task.
    """

    updates: int

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
            identify_task(self.model, images_of(test, i, 20)[0]).name == name
            for i, name in enumerate(names)
        ]
        return sum(right) / len(names)

    def ways(self, names: Sequence[str]) -> dict[str, Learn]:
        """Ways to learn tasks from samples: the method itself under ``""``, and some of ``names``,
        which follow it.
        """
        assert not names
        return {"": self.learn}

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
            **{"steps": self.updates, "seed": self.seed, **settings},
        )
        return module.eval()


class Embeddings(Learner):
    """A hypernetwork, of whose new tasks only the embeddings are fitted.

    What may follow: the model further trained in its ``norm``, its ``last`` layer or ``all`` of it;
    and ``mean model``, that at the mean embedding, all of it trained.
    """

    def ways(self, names: Sequence[str]) -> dict[str, Learn]:
        return {"": self.learn, **{name: self._way(name) for name in names}}

    def learn(self, names: Sequence[str], samples: list[Samples]) -> list[nn.Module]:
        assert isinstance(self.model, HyperNetwork)
        # Fitted anew for every number of images: on a copy, which forgets them.
        hnet = copy.deepcopy(self.model)
        fit_embeddings(
            hnet,
            dict(zip(names, samples, strict=True)),
            n_classes=dict.fromkeys(names, self.n_classes),
            seed=self.seed,
        )
        self._fitted = [hnet.materialize(name).eval() for name in names]
        return self._fitted

    def _way(self, name: str) -> Learn:
        if name == "mean model":
            return self._mean_model

        def learn(_: Sequence[str], samples: list[Samples]) -> list[nn.Module]:
            pairs = zip(self._fitted, samples, strict=True)
            return [self.tuned(m, some, tune=name, steps=_TUNE_STEPS) for m, some in pairs]

        return learn

    def _mean_model(self, _: Sequence[str], samples: list[Samples]) -> list[nn.Module]:
        assert isinstance(self.model, HyperNetwork)
        module = self.model.materialize(self.model.task_embedding.weight.detach().mean(0))
        return [self.tuned(module, some) for some in samples]


class _Scratch(Learner):
    def pretrain(self) -> None:
        self.fresh = _expert(self.experiment, self.known)

    def parameters(self) -> int:
        return sum(p.numel() for p in _expert(self.experiment, self.known).parameters())

    def learn(self, _: Sequence[str], samples: list[Samples]) -> list[nn.Module]:
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


class _Trunk(Learner):
    """Features that all known tasks share."""

    def __init__(self, experiment: Experiment, known: TaskSet) -> None:
        super().__init__(replace(experiment, method=SharedTrunk.kind), known)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        assert isinstance(self.model, SharedTrunk)
        return self.model.eval().trunk(x)


class _Probe(_Trunk):
    def learn(self, _: Sequence[str], samples: list[Samples]) -> list[Model]:
        return [self._probe(x, y) for x, y in samples]

    def _probe(self, x: Tensor, y: Tensor) -> Model:
        features = self.features(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head: nn.Module = nn.Linear(features.shape[1], self.n_classes)
        head = self.tuned(head, (features, y), lr=1e-2)
        return lambda x: head(self.features(x))


class _NearestMean(_Trunk):
    def learn(self, _: Sequence[str], samples: list[Samples]) -> list[Model]:
        return [self._nearest(x, y) for x, y in samples]

    def _nearest(self, x: Tensor, y: Tensor) -> Model:
        features = self.features(x)
        means = torch.stack([features[y == c].mean(0) for c in range(self.n_classes)])
        return lambda x: -torch.cdist(self.features(x), means)


# The methods that are no generators; `Embeddings` is for those.
LEARNERS: dict[str, type[Learner]] = {
    "scratch": _Scratch,
    "reptile": _Reptile,
    "linear probe": _Probe,
    "nearest mean": _NearestMean,
}


def _expert(experiment: Experiment, known: TaskSet) -> nn.Module:
    one = known.select(known.names[:1])
    model = build_model(replace(experiment, method="experts", budget=None), one)
    return model.experts[0]  # type: ignore[index, return-value]


def images_of(split: TaskSplit, task: int, most: int) -> Samples:
    """Up to so many images of a task, evenly spread."""
    count = split.counts[task]
    index = torch.linspace(0, count - 1, min(most, count)).long()
    x, y, _ = split.batch(torch.full_like(index, task), index)
    return x, y


def shots_of(split: TaskSplit, task: int, shots: int | None, seed: int) -> Samples:
    """The first images of each class of a task, in an order drawn from the seed."""
    labels = split.labels(task)
    order = torch.randperm(len(labels), generator=seeded(seed))
    sorted_labels = labels[order]
    chosen = torch.cat([order[sorted_labels == c][:shots] for c in labels.unique()])
    x, y, _ = split.batch(torch.full_like(chosen, task), chosen)
    return x, y


@torch.no_grad()
def accuracy(model: Model, x: Tensor, y: Tensor, n_classes: int) -> float:
    right = [
        int((model(a)[:, :n_classes].argmax(1) == b).sum())
        for a, b in zip(x.split(500), y.split(500), strict=True)
    ]
    return sum(right) / len(y)
