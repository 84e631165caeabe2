"""Methods of the study of conditioners: hypernetworks whose models depend on different things."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsehyper._util.modes import frozen
from sparsehyper.adaptation import fit_embedding
from sparsehyper.adaptation.fitter import Fitter
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.conditioning import InputAndTask, InputEncoder, TaskEmbedding
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, TaskSplit
from sparsehyper.lab.runs.config import BY_EXAMPLES, GENERATED, Experiment
from sparsehyper.lab.studies.few_shot import Learner, Learnt, TrunkLearner
from sparsehyper.lab.studies.learners import Shots

MEAN, NEAREST, FITTED = "mean embedding", "nearest embedding", "fitted embedding"
BY_CLASS, WHOLE = "support set, by class", "support set, mean"
THEN_FITTED = "support set, then fitted"
INPUT, BOTH = "input", "input and task"
EMBEDDING, SHARED = "task embedding", "shared trunk"
PROBE = "linear probe"

_NEW = "new"
_EVERY = 5  # known tasks are validated, tested and have heads solved on every fifth image
_AT_ONCE = 100  # images with a model each


class _Conditioned(Learner):
    """A hypernetwork; a new task is learned without training, unless a way says otherwise."""

    conditioner: ClassVar[str]
    model: HyperNetwork

    def __init__(self, experiment: Experiment, known: TaskSet, *rest: Any) -> None:
        super().__init__(self._own(experiment), _thinned(known, experiment), *rest)

    def _own(self, experiment: Experiment) -> Experiment:
        """The experiment of this method, from that of all."""
        return replace(experiment, conditioner=self.conditioner)

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:
        hnet = copy.deepcopy(self.model)
        self._add(hnet, way, samples, n_classes)
        if hnet.head is not None:
            hnet.solve_head(_NEW, samples)
        return Learnt(hnet.materialize(_NEW).eval())

    def _add(self, hnet: HyperNetwork, way: str, samples: Shots, n_classes: int) -> None:
        """Add the new task."""
        raise NotImplementedError


class _ByTask(_Conditioned):
    """A trained embedding for each known task."""

    conditioner = TaskEmbedding.kind
    ways = (MEAN, NEAREST, FITTED)
    judged = FITTED

    def _add(self, hnet: HyperNetwork, way: str, samples: Shots, n_classes: int) -> None:
        if way == FITTED:
            fit_embedding(hnet, _NEW, samples, n_classes=n_classes, seed=self.seed)
        elif way == MEAN:
            hnet.add_task(_NEW)
        else:
            hnet.add_task(_NEW, self._nearest(hnet, samples, n_classes))

    def _nearest(self, hnet: HyperNetwork, samples: Shots, n_classes: int) -> Tensor:
        """The embedding of the known task whose model has the least loss on the images."""
        task = TaskSamples.of(_NEW, samples, samples[0].device, n_classes=n_classes, seed=self.seed)
        with frozen(hnet):
            rows = tuple(range(len(hnet.task_names)))
            losses = Fitter(hnet, [task], [task], 1, rows).known_on(task).losses()
        return hnet.known_embeddings([int(losses.argmin())])[0]


class _ByClass(_Conditioned):
    """Examples of the task, pooled by class."""

    conditioner = BY_EXAMPLES[0]
    ways: ClassVar[tuple[str, ...]] = (BY_CLASS,)

    def _add(self, hnet: HyperNetwork, way: str, samples: Shots, n_classes: int) -> None:  # noqa: ARG002
        hnet.add_task(_NEW, samples)


class _ByClassOrFitted(_ByClass):
    """The embedding of the examples as it is, or where a fit starts from."""

    ways = (BY_CLASS, THEN_FITTED)
    judged = BY_CLASS

    def _add(self, hnet: HyperNetwork, way: str, samples: Shots, n_classes: int) -> None:
        super()._add(hnet, way, samples, n_classes)
        if way == THEN_FITTED:
            how: dict[str, Any] = {"n_classes": n_classes, "overwrite": True, "seed": self.seed}
            fit_embedding(hnet, _NEW, samples, init=hnet.known_embeddings([-1])[0], **how)


class _Whole(_ByClass):
    """Examples of the task, pooled as a whole."""

    conditioner = BY_EXAMPLES[1]
    ways = (WHOLE,)


class _ByInput(_Conditioned):
    """The input alone; it knows no tasks, so its head is generated."""

    conditioner = InputEncoder.kind
    ways = (INPUT,)

    def _own(self, experiment: Experiment) -> Experiment:
        if experiment.head != GENERATED:
            experiment = replace(experiment, head=GENERATED, base="learned")
        return super()._own(experiment)

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        return Learnt(_called(self.model))


class _ByBoth(_Conditioned):
    """Input and task; a new task has the mean vector of the known ones."""

    conditioner = InputAndTask.kind
    ways = (BOTH,)

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        hnet = copy.deepcopy(self.model)
        hnet.add_task(_NEW)
        if hnet.head is not None:
            hnet.solve_head(_NEW, samples)
        return Learnt(_called(hnet, task=_NEW))


class _Trunk(TrunkLearner):
    """Features that all known tasks share, with what is quickly learned on them."""

    ways: ClassVar[tuple[str, ...]] = (PROBE, "nearest mean")

    def __init__(self, experiment: Experiment, known: TaskSet, *rest: Any) -> None:
        super().__init__(experiment, _thinned(known, experiment), *rest)


METHODS: dict[str, type[Learner]] = {
    EMBEDDING: _ByTask,
    BY_CLASS: _ByClass,
    WHOLE: _Whole,
    INPUT: _ByInput,
    BOTH: _ByBoth,
    SHARED: _Trunk,
}
# Those of the study of support sets.
SUPPORT_METHODS: dict[str, type[Learner]] = {
    EMBEDDING: _ByTask,
    BY_CLASS: _ByClassOrFitted,
    SHARED: _Trunk,
}


def _called(hnet: HyperNetwork[Tensor], task: str | None = None) -> nn.Module:
    """A hypernetwork with a model for each input, called for some inputs at a time."""

    class Called(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([hnet(some, task=task) for some in x.split(_AT_ONCE)])

    return Called()


def _thinned(known: TaskSet, experiment: Experiment) -> TaskSet:
    """The tasks with fewer images to validate and test on, and to solve heads from."""

    def some(split: TaskSplit) -> TaskSplit:
        return split.among(torch.arange(len(split.pixels)) % _EVERY == 0)

    train = known.train if experiment.head == GENERATED else some(known.train)
    return replace(known, train=train, val=some(known.val), test=some(known.test))
