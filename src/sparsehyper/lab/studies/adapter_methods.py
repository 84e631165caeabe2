"""Methods that learn to tell intents apart, on top of one frozen sentence encoder.

A method is trained on known tasks, all methods on the same ones and for as many updates, and then
learns new tasks in one or several *ways*. All train for what a new task will do: each sentence of
a batch is classified by the ridge regression on all others: of an intent, its name and one or three
sentences. The last layer of a new task is a logistic regression, as on the frozen encoder.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.extras import require
from sparsehyper._util.random import seeded
from sparsehyper.adaptation import fit_embedding
from sparsehyper.conditioning import Conditioner, SupportSet, TaskEmbedding, TaskFeatures
from sparsehyper.generators import LowRank
from sparsehyper.heads import Ridge, SolvedHead
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data.sentences import NAME, Corpus
from sparsehyper.lab.studies.few_shot_fits import logistic, tuned
from sparsehyper.target.adapters import lora

Model = Callable[[Tensor], Tensor]  # numbers of sentences to logits
_NEW = "new"
_WARMUP = 10  # updates


class Task(NamedTuple):
    """Intents to tell apart."""

    name: str
    intents: tuple[str, ...]


class Support(NamedTuple):
    """What is known of a new task: its intents' names, and sentences of each."""

    numbers: Tensor  # of the corpus, [n]
    labels: Tensor  # numbers of the intents, [n]
    names: Tensor  # the numbers of the names alone, [intents]

    @property
    def shots(self) -> int:
        """Sentences of an intent, without its name."""
        return len(self.numbers) // len(self.names) - 1


def with_names(
    corpus: Corpus, part: str, task: Task, each: int | None, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The names of a task's intents and ``each`` sentences of every one, as `Corpus.draw` does."""
    parts = [(NAME, 1), *([(part, each)] if each != 0 else [])]
    drawn = [corpus.draw(part, task.intents, each, rng) for part, each in parts]
    numbers, labels = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
    return numbers, labels


@dataclass(frozen=True)
class How:
    """Settings of all methods.

    Attributes:
        rank: of LoRA.
        layers: layers of a block with LoRA.
        latent_dim: length of an embedding.
        products: rank of the products that make A and B.
        steps: updates on known tasks.
        lr: their learning rate.
        scale: of what differs between tasks, relative to an ordinary initialisation.
        each: numbers of sentences of an intent in a batch, drawn at random; and its name.
        fit_steps: evaluations of the loss that an embedding is fitted with.
        updates: numbers of updates from scratch to choose from.
        scratch_lr, scratch_batch: learning rate and sentences of an update from scratch.
        penalties: of logistic regressions, to choose from.
        peft: LoRA from scratch by peft; by ours otherwise.
    """

    rank: int = 4
    layers: tuple[str, ...] = ("query", "value")
    latent_dim: int = 32
    products: int = 8
    steps: int = 150
    lr: float = 2e-3
    scale: float = 0.1
    each: tuple[int, ...] = (1, 3)
    fit_steps: int = 8
    updates: tuple[int, int] = (15, 40)
    scratch_lr: float = 1e-2
    scratch_batch: int = 16
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    peft: bool = True


def own_lora(corpus: Corpus, outputs: int, how: How, seed: int) -> Any:
    """The upper blocks with a LoRA; the last layer is frozen."""
    layers = [f"*.{layer}" for layer in how.layers]
    return lora(corpus.encoder(outputs), how.rank, layers, seed=seed)


def scratch_lora(corpus: Corpus, outputs: int, how: How, seed: int) -> nn.Module:
    """The upper blocks with a LoRA and a last layer to train, by peft or by ours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not how.peft:
            model = own_lora(corpus, outputs, how, seed)
            model.head.requires_grad_()
            return model
        peft: Any = require("peft", "dev")
        config = peft.LoraConfig(
            r=how.rank,
            lora_alpha=how.rank,
            target_modules=list(how.layers),
            modules_to_save=["head"],
        )
        return peft.get_peft_model(corpus.encoder(outputs), config)


class Method:
    """A method.

    Args:
        corpus: the sentences.
        known: known tasks.
        how: settings.
        seed: seed of everything.

    Attributes:
        ways: ways to learn a new task, and what each keeps of it beside the last layer: an
            ``"embedding"``, a ``"lora"`` or nothing.
    """

    ways: ClassVar[dict[str, str]]

    def __init__(self, corpus: Corpus, known: Sequence[Task], how: How, seed: int) -> None:
        self.corpus, self.known, self.how, self.seed = corpus, known, how, seed

    def pretrain(self) -> None:
        """Train on the known tasks."""

    def learn(self, way: str, support: Support) -> Model:
        """Learn a new task; returns logits for numbers of sentences."""
        raise NotImplementedError

    def _lora(self, outputs: int) -> Any:
        return own_lora(self.corpus, outputs, self.how, self.seed)

    def _batches(self) -> Iterator[tuple[Task, Tensor, Tensor]]:
        """A task of each update, sentences of it with the names first, and their intents."""
        rng, own = seeded(self.seed), random.Random(self.seed)
        for _ in range(self.how.steps):
            task = own.choice(self.known)
            each = own.choice(self.how.each)
            yield task, *with_names(self.corpus, "train", task, each, rng)

    def _train(self, model: nn.Module, losses: Iterator[Tensor]) -> None:
        """An update for each loss; the learning rate falls to 0 along half a cosine."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.how.lr)
        for step, loss in enumerate(losses):
            falling = (1 + math.cos(math.pi * step / self.how.steps)) / 2
            optimizer.param_groups[0]["lr"] = self.how.lr * min(1, (step + 1) / _WARMUP) * falling
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        model.eval().requires_grad_(False)

    def _nearest(self, features: Model, support: Support) -> Model:
        """The nearest class mean, of features of sentences."""
        found, intents = features(support.numbers), range(len(support.names))
        means = torch.stack([found[support.labels == intent].mean(0) for intent in intents])
        return lambda numbers: -torch.cdist(features(numbers), means)

    def _logistic(self, features: Model, support: Support) -> Model:
        """Logistic regression on features of sentences, the penalty by cross-validation."""
        found = features(support.numbers)
        layer = logistic(found, support.labels, len(support.names), self.how.penalties)
        return lambda numbers: layer(features(numbers))


class _Frozen(Method):
    """The encoder's own sentence vectors."""

    ways: ClassVar = {"nearest mean": "", "logistic regression": ""}

    def learn(self, way: str, support: Support) -> Model:
        features: Model = self.corpus.vectors.__getitem__
        if way == "logistic regression":
            return self._logistic(features, support)
        return self._nearest(features, support)


class _Scratch(Method):
    """A LoRA and a last layer trained on the new task alone."""

    ways: ClassVar = {"LoRA from scratch": "lora"}

    def learn(self, way: str, support: Support) -> Model:  # noqa: ARG002
        outputs = len(support.names)
        model = scratch_lora(self.corpus, outputs, self.how, self.seed)
        found = tuned(
            model,
            (self.corpus.inputs(support.numbers), support.labels),
            outputs,
            self.how.updates,
            seed=self.seed,
            lr=self.how.scratch_lr,
            batch_size=self.how.scratch_batch,
        )
        return lambda numbers: found(self.corpus.inputs(numbers))


class _Shared(Method):
    """One LoRA for all tasks; a new task gets a last layer of its own."""

    ways: ClassVar = {"shared LoRA": "", "shared LoRA, nearest mean": ""}

    def pretrain(self) -> None:
        self.model = self._lora(1)
        self.head = SolvedHead(Ridge(), self.model.head, 1)
        self.model.head = nn.Identity()
        self._train(nn.ModuleList([self.model, self.head]), self._losses())

    def learn(self, way: str, support: Support) -> Model:
        if way == "shared LoRA":
            return self._logistic(self._features, support)
        return self._nearest(self._features, support)

    def _losses(self) -> Iterator[Tensor]:
        for _, numbers, labels in self._batches():
            logits = self.head.leave_one_out(self._features(numbers), labels)
            yield F.cross_entropy(logits, labels)

    def _features(self, numbers: Tensor) -> Tensor:
        features: Tensor = self.model(self.corpus.inputs(numbers))
        return features


class _Generated(Method):
    """A LoRA for each task, by one hypernetwork; what tasks share is trained beside it."""

    hnet: HyperNetwork
    head: SolvedHead

    def pretrain(self) -> None:
        vectors = torch.stack([self._names_of(task).mean(0) for task in self.known])
        self.mean, self.spread = vectors.mean(0), vectors.std(0).mean()
        self._build()
        self._train(nn.ModuleList([self.hnet, self.head]), self._losses())

    def learn(self, way: str, support: Support) -> Model:
        z = self._embedding(way, support)
        return self._logistic(lambda x: self.hnet(self.corpus.inputs(x), task=z), support)

    def _conditioner(self) -> Conditioner:
        """The conditioner, not trained."""
        raise NotImplementedError

    def _of_known(self, task: Task) -> Tensor:
        """The embedding of a known task, to train it."""
        return self.hnet.embedding(task.name)

    def _embedding(self, way: str, support: Support) -> Tensor:
        """The embedding of a new task."""
        raise NotImplementedError

    def _build(self) -> None:
        target = self._lora(max(len(task.intents) for task in self.known))
        self.hnet = self._over(target, head=Ridge())
        self.head = self.hnet.own_head()

    def _over(self, target: nn.Module, **settings: Any) -> HyperNetwork:
        return HyperNetwork(
            target,
            LowRank(self.how.products),
            self._conditioner(),
            base="residual",
            scale=self.how.scale,
            copy=False,
            seed=self.seed,
            **settings,
        )

    def _losses(self) -> Iterator[Tensor]:
        for task, numbers, labels in self._batches():
            features = self.hnet(self.corpus.inputs(numbers), task=self._of_known(task))
            logits = self.head.leave_one_out(features, labels)[:, : len(task.intents)]
            yield F.cross_entropy(logits, labels)

    def _fit(self, support: Support, **settings: Any) -> Tensor:
        """The embedding that is fitted to the support; the task is then forgotten."""
        samples = self.corpus.inputs(support.numbers), support.labels
        steps = self.how.fit_steps
        fit = fit_embedding(self.hnet, _NEW, samples, steps=steps, seed=self.seed, **settings)
        self.hnet.remove_task(_NEW)
        return fit.embedding

    def _names_of(self, task: Task) -> Tensor:
        return self.corpus.vectors[self.corpus.draw(NAME, task.intents, 1, seeded(0))[0]]


class _ByEmbedding(_Generated):
    """Every known task has an embedding of its own; a new one starts from their mean."""

    ways: ClassVar = {"LoRA from an embedding": "embedding"}

    def _conditioner(self) -> TaskEmbedding:
        names = [task.name for task in self.known]
        return TaskEmbedding(names, self.how.latent_dim, seed=self.seed)

    def _embedding(self, way: str, support: Support) -> Tensor:  # noqa: ARG002
        if support.shots > 0:
            return self._fit(support, init="mean")
        # A name alone cannot be left out of its own prototype.
        every = [self._of_known(task) for task in self.known]
        return HyperNetwork.normalise(torch.stack(every)).mean(0)


class _ByWords(_Generated):
    """The embedding follows from the mean of the vectors of the intents' names."""

    ways: ClassVar = {
        "LoRA from the description": "embedding",
        "LoRA from the description, refined": "embedding",
    }

    def _conditioner(self) -> TaskFeatures:
        described = {task.name: self._described(self._names_of(task)) for task in self.known}
        return TaskFeatures(described, self.how.latent_dim, seed=self.seed)

    def _embedding(self, way: str, support: Support) -> Tensor:
        features = self._described(self.corpus.vectors[support.names])
        if support.shots == 0 or way == "LoRA from the description":
            assert isinstance(self.hnet.conditioner, TaskFeatures)
            return self.hnet.conditioner.of(features)
        self.hnet.add_task(_NEW, features)
        return self._fit(support)

    def _described(self, names: Tensor) -> Tensor:
        return (names.mean(0) - self.mean) / self.spread


class _ByExamples(_Generated):
    """The embedding follows from the sentence vectors of examples, pooled by intents."""

    ways: ClassVar = {"LoRA from examples": "embedding"}

    def _build(self) -> None:
        # A support set has no name, and so no row in a table of heads.
        target = self._lora(1)
        self.head = SolvedHead(Ridge(), target.head, 1)
        target.head = nn.Identity()
        self.hnet = self._over(target)
        self._rng = seeded(self.seed + 1)

    def _conditioner(self) -> SupportSet:
        most = max(len(task.intents) for task in self.known)
        width = self.corpus.shape[0]
        return SupportSet(
            *(nn.Identity(), width, most, self.how.latent_dim), pool="classes", seed=self.seed
        )

    def _of_known(self, task: Task) -> Tensor:
        # Sentences of their own: those of the batch would tell their labels.
        each = self.how.each[int(torch.randint(len(self.how.each), (), generator=self._rng))]
        return self._of(*with_names(self.corpus, "train", task, each, self._rng))

    def _embedding(self, way: str, support: Support) -> Tensor:  # noqa: ARG002
        return self._of(support.numbers, support.labels)

    def _of(self, numbers: Tensor, labels: Tensor) -> Tensor:
        return self.hnet.embedding((self.corpus.vectors[numbers], labels))


METHODS: dict[str, type[Method]] = {
    "frozen encoder": _Frozen,
    "scratch": _Scratch,
    "shared LoRA": _Shared,
    "embedding": _ByEmbedding,
    "description": _ByWords,
    "examples": _ByExamples,
}
