"""Methods that learn new tasks from few images, each as its users would use it.

A learner is pretrained on known tasks, all learners on the same batches, and then learns new tasks
in one or several *ways*. What a way must choose beyond the settings of its trials it chooses by
cross-validation on the new task's own images: `adapt_task` its ways and their weights, the probe
and the logistic regression their penalty, all that is trained further its number of updates.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.classifiers import mask_classes
from sparsehyper.adaptation import Adapted, adapt_task
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.adaptation.ways import WAYS, Start, Way
from sparsehyper.heads import Head, Prototypes, SolvedHead
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, images_of
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.lab.runs.config import GENERATED, Experiment
from sparsehyper.lab.runs.setup import build_model, make_batches, usual_head
from sparsehyper.lab.runs.targets import build_target
from sparsehyper.lab.studies.few_shot_fits import LEARNING, logistic, tuned
from sparsehyper.lab.studies.learners import Model, Shots, reptile
from sparsehyper.lab.studies.trainings import measured
from sparsehyper.training.optim import build_optimizer, learning_rate

AUTO = "auto"
SINGLE = {f"only {name}": way for name, way in WAYS.items()}  # the ways of `adapt_task`, alone


class Learnt(NamedTuple):
    """A model of a new task.

    Attributes:
        model: returns logits.
        adapted: what `adapt_task` says of it; None for other ways.
    """

    model: Model
    adapted: Adapted | None = None


class Learner:
    """A method that is pretrained on known tasks and makes models for new ones.

    Args:
        experiment: how to pretrain.
        known: the known tasks.
        settings: what is searched besides the settings of the experiment.
        seconds: time for `adapt_task`, and for each of its ways alone.
        updates: numbers of updates to choose from where something is trained further, at least two.

    Attributes:
        ways: ways to learn a new task.
        judged: the way that judges the trials of all; None if each way judges its own.
        trials: settings to try, the default first, equally many for every learner. Those of the
            experiment have a dot in their name.
    """

    ways: ClassVar[tuple[str, ...]]
    judged: ClassVar[str | None] = None
    trials: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"training.lr": lr, "training.weight_decay": decay}
        for decay in (0.0, 1e-4)
        for lr in (2e-3, 5e-3)
    )
    model: nn.Module

    def __init__(
        self,
        experiment: Experiment,
        known: TaskSet,
        settings: dict[str, Any],
        seconds: float,
        updates: Sequence[int],
    ) -> None:
        self.experiment, self.known, self.settings = experiment, known, settings
        self.seconds, self.updates, self.seed = seconds, updates, experiment.seed

    def pretrain(self) -> dict[str, Any] | None:
        """Pretrain, and return what `measured` does for the known tasks, None without outputs."""
        model = build_model(self.experiment, self.known)
        self.model, values = measured(self.experiment, self.known, model)
        self.model.cpu().eval()  # new tasks are learned on the CPU
        return values

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:
        """Learn a new task from its images.

        Args:
            way: one of `ways`.
            samples: images and class numbers.
            n_classes: number of classes.

        Raises:
            Unsuitable: the way does not apply.
        """
        raise NotImplementedError

    def _untrained(self, n_classes: int | None = None) -> nn.Module:
        """The target, freshly initialised, with outputs for all known tasks by default."""
        outputs = n_classes or max(self.known.n_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_target(self.experiment.target, self.known.image_shape, outputs)

    def _tuned(self, module: nn.Module, samples: Shots, n_classes: int, **settings: Any) -> Learnt:
        model = tuned(module, samples, n_classes, self.updates, seed=self.seed, **settings)
        return Learnt(model)


class HypernetworkLearner(Learner):
    """The default generator, with the head that follows from the tasks; all that it can do.

    The single ways have the pretraining that is best for `adapt_task`.
    """

    ways: ClassVar[tuple[str, ...]] = (AUTO, *SINGLE)
    judged = AUTO

    def __init__(self, experiment: Experiment, known: TaskSet, *rest: Any) -> None:
        head = usual_head(experiment, known)
        # as the command line chooses it
        base = "learned" if head == GENERATED else "residual"
        super().__init__(replace(experiment, head=head, base=base), known, *rest)

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:
        assert isinstance(self.model, HyperNetwork)
        if way in SINGLE:
            return Learnt(self._alone(self.model, SINGLE[way], samples, n_classes))
        known = {
            name: images_of(self.known.train, i, LEARNING["known"])
            for i, name in enumerate(self.known.names)
        }
        adapted = adapt_task(
            copy.deepcopy(self.model),
            "new",
            samples,
            known=known,
            n_classes=n_classes,
            seconds=self.seconds,
            seed=self.seed,
        )
        return Learnt(adapted.model, adapted)

    def _alone(self, hnet: HyperNetwork, way: Way, samples: Shots, n_classes: int) -> nn.Module:
        """What `adapt_task` fits to all samples, without the folds that judge it."""
        task = TaskSamples.of(
            "new", samples, samples[0].device, n_classes=n_classes, seed=self.seed
        )
        start = Start(hnet, tuple(range(len(hnet.task_names))), task, self.seconds)
        deadline = time.perf_counter() + self.seconds
        return way(start, torch.arange(len(task.y)), self.seed, deadline)


class TrunkLearner(Learner):
    """Features that all known tasks share, each task with a head of its own."""

    ways: ClassVar[tuple[str, ...]] = ("linear probe", "nearest mean", "fine-tuned trunk")

    def __init__(self, experiment: Experiment, *rest: Any) -> None:
        super().__init__(replace(experiment, method=SharedTrunk.kind), *rest)

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:
        assert isinstance(self.model, SharedTrunk)
        trunk, (x, y) = self.model.trunk, samples
        features = _features(trunk, x)
        if way == "nearest mean":
            means = torch.stack([features[y == c].mean(0) for c in range(n_classes)])
            return Learnt(lambda x: -torch.cdist(_features(trunk, x), means))
        probe = logistic(features, y, n_classes, LEARNING["penalties"])
        if way == "linear probe":
            return Learnt(lambda x: probe(_features(trunk, x)))
        whole = nn.Sequential(copy.deepcopy(trunk), probe).requires_grad_()
        return self._tuned(whole, samples, n_classes)


class _ProtoNets(Learner):
    """A trunk that is trained for the distance to class means, each image left out of its own.

    Source: J. Snell et al., "Prototypical networks for few-shot learning" (NIPS 2017). Deviation:
    each image of a batch is classified by the means of all others of its task, in place of a
    division into support and query images.
    """

    ways = ("Prototypical Networks",)

    def pretrain(self) -> None:
        trunk = self._untrained()
        name, layer = Head().find(trunk)
        trunk.set_submodule(name, nn.Identity())
        head = SolvedHead(Prototypes(), layer, 1)
        self.model, self._head = trunk, head
        config, batches = self.experiment.training, make_batches(self.experiment, self.known)
        parameters = [*trunk.parameters(), *head.parameters()]
        optimizer = build_optimizer(config, parameters)
        limits = torch.tensor(self.known.n_classes)
        trunk.train()
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            x, y, task = batches.batch(*divmod(step, batches.steps_per_epoch))
            logits = mask_classes(head.leave_one_out(trunk(x), y, task), limits[task])
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            nn.utils.clip_grad_norm_(parameters, config.clip or torch.inf)
            optimizer.step()
        trunk.eval().requires_grad_(False)

    @torch.no_grad()
    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        x, y = samples
        weight, bias = self._head.solve(_features(self.model, x), y)
        return Learnt(lambda x: F.linear(_features(self.model, x), weight, bias))


class _Scratch(Learner):
    """The target from scratch."""

    ways = ("scratch",)
    trials = tuple({"lr": lr, "batch_size": size} for size in (64, 16) for lr in (1e-3, 3e-3))

    def pretrain(self) -> None:
        self.model = nn.Identity()

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        return self._tuned(self._untrained(n_classes), samples, n_classes, **self.settings)


class _Reptile(Learner):
    """An initialisation from which a few steps suffice."""

    ways = ("Reptile",)
    trials = tuple({"lr": lr, "outer_rate": rate} for rate in (0.5, 1.0) for lr in (1e-3, 3e-3))

    def pretrain(self) -> None:
        self.model = self._untrained()
        images = self.experiment.training.steps * self.experiment.batch_size
        inner = LEARNING["inner"]
        reptile(self.model, self.known.train, images, inner=inner, seed=self.seed, **self.settings)

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        return self._tuned(self.model, samples, n_classes, lr=self.settings["lr"])


class _Pixels(Learner):
    """What needs no network."""

    def pretrain(self) -> None:
        self.model = nn.Identity()


class _Nearest(_Pixels):
    """The classes of the nearest images, the nearest one among equally frequent ones."""

    ways = ("nearest neighbour",)
    trials = tuple({"neighbours": k, "cosine": c} for c in (False, True) for k in (1, 3))

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        points, y = self._points(samples[0]), samples[1]
        count = min(self.settings["neighbours"], len(y))

        def votes(x: Tensor) -> Tensor:
            nearest = torch.cdist(self._points(x), points).topk(count, largest=False).indices
            worth = 1 - torch.arange(count) / (100 * count)  # breaks ties
            return (F.one_hot(y[nearest], n_classes) * worth[:, None]).sum(1)

        return Learnt(votes)

    def _points(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return F.normalize(flat) if self.settings["cosine"] else flat


class _Regression(_Pixels):
    """Logistic regression on pixels."""

    ways = ("logistic regression",)
    trials = tuple({"penalty": penalty} for penalty in (10.0, 1.0, 100.0, 1000.0))

    def learn(self, way: str, samples: Shots, n_classes: int) -> Learnt:  # noqa: ARG002
        x, y = samples
        layer = logistic(x.flatten(1), y, n_classes, (self.settings["penalty"],))
        return Learnt(lambda x: layer(x.flatten(1)))


class _Experts(Learner):
    """A network for each known task, for its accuracy on these; it learns no new ones."""

    ways = ()

    def __init__(self, experiment: Experiment, *rest: Any) -> None:
        super().__init__(replace(experiment, method=Experts.kind), *rest)


HYPERNETWORK, TRUNK, EXPERTS = "hypernetwork", "shared trunk", "experts"
LEARNERS: dict[str, type[Learner]] = {
    HYPERNETWORK: HypernetworkLearner,
    TRUNK: TrunkLearner,
    "Prototypical Networks": _ProtoNets,
    "Reptile": _Reptile,
    "scratch": _Scratch,
    "nearest neighbour": _Nearest,
    "logistic regression": _Regression,
    EXPERTS: _Experts,
}


@torch.no_grad()
def _features(trunk: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([trunk.eval()(some) for some in x.split(500)])
