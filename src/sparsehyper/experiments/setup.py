"""An experiment as plain data, and what it stands for: its tasks and its model.

One seed drives everything but the split of the images, which has its own, so that runs that are to
be compared over seeds see the same images in training, validation and test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from sparsehyper._checks import check_number
from sparsehyper._random import spawn_seeds
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.data import (
    SOURCES,
    Batches,
    TaskSet,
    load_folder,
    load_source,
    make_tasks,
    parse_tasks,
)
from sparsehyper.experiments.baselines import BASELINES, Experts, SharedTrunk
from sparsehyper.experiments.targets import build_target
from sparsehyper.generators import (
    GENERATORS,
    Generator,
    Sparse,
    generator_from_config,
    parse_generator,
)
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target import plan_layout
from sparsehyper.training import TrainConfig

METHODS = (*GENERATORS, *BASELINES)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and which tasks are made of them.

    Args:
        source: a name, one of `sparsehyper.data.SOURCES`, or a folder ``<task>/<class>/*.png``.
        tasks: what the tasks are, such as ``"split:2"``; None for those a folder defines.
        image_size: side to resize a folder's images to; None where they have one size already.
        val_fraction: share of the training images to validate on.
        seed: of the split of the images.

    Raises:
        ValueError: ``tasks`` is not understood, or ``image_size`` is given for a named source.
    """

    source: str = "digits"
    tasks: str | None = None
    image_size: int | None = None
    val_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tasks is not None:
            parse_tasks(self.tasks)
        if self.image_size is not None and self.source in SOURCES:
            raise ValueError(
                f"`image_size` is for folders of images; {self.source!r} has one already, got "
                f"{self.image_size}"
            )


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a training run.

    Args:
        data: images and tasks.
        training: the loop's settings; its ``seed`` is the seed of the whole run.
        method: a generator, or a baseline: ``"experts"`` or ``"shared_trunk"``.
        target: as `build_target` takes it.
        budget: trainable parameters of the generator per target parameter, at most; the setting
            that its ``with_budget`` names is chosen accordingly. None takes it as it is.
        latent_dim: length of a task's embedding; hypernetworks only, as are the next two.
        base: as `HyperNetwork` takes it.
        norm_stats: as `HyperNetwork` takes it.
        batch_size: images a batch.
        tasks_per_batch: tasks a batch is made of.
        augment: any of `sparsehyper.data.AUGMENTATIONS`.

    Raises:
        TypeError, ValueError: an unknown method, or a ``budget`` that is out of range or for a
            baseline.

    >>> experiment = Experiment(DataConfig(tasks="split:2"), TrainConfig(steps=100), budget=4)
    >>> Experiment.from_dict(experiment.to_dict()) == experiment
    True
    """

    data: DataConfig
    training: TrainConfig
    method: Generator | str = field(default_factory=Sparse)
    target: str = "mlp:128-64"
    budget: float | None = None
    latent_dim: int = 64
    base: str = "zeros"
    norm_stats: str = "per_task"
    batch_size: int = 100
    tasks_per_batch: int = 1
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.method, Generator) and self.method not in BASELINES:
            raise ValueError(
                f"`method` must be a generator or one of {', '.join(map(repr, BASELINES))}; got "
                f"{self.method!r}"
            )
        if self.budget is not None:
            check_number("budget", self.budget, above=0)
            if not isinstance(self.method, Generator):
                raise ValueError(
                    f"`budget` is for generators; {self.method!r} has one size, got {self.budget}"
                )

    @property
    def seed(self) -> int:
        """Of the whole run but the split of the images."""
        return self.training.seed

    def with_seed(self, seed: int) -> Self:
        """The same experiment under another seed."""
        return replace(self, training=replace(self.training, seed=seed))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of every setting."""
        method = self.method
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "data": dataclasses.asdict(self.data),
            "training": self.training.to_dict(),
            "method": method.to_config() if isinstance(method, Generator) else {"kind": method},
            "augment": list(self.augment),
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; settings left out take their defaults.

        Raises:
            KeyError: a setting is unknown or ``data`` or ``training`` is missing.
            TypeError, ValueError: a setting has the wrong type or is out of range.
        """
        values = dict(settings)
        _check_names(cls, values)
        _check_names(DataConfig, values["data"])
        values["data"] = DataConfig(**values["data"])
        values["training"] = TrainConfig.from_dict(values["training"])
        if "method" in values:
            values["method"] = _method_from_config(values["method"])
        if "augment" in values:
            values["augment"] = tuple(values["augment"])
        return cls(**values)


@dataclass(frozen=True)
class TaskInfo:
    """What a model needs to know of its tasks, and what tells them from others.

    Attributes:
        names: one a task.
        classes: for each task, its class names.
        image_shape: channels, height, width.
        fingerprint: of the images, labels, splits and tasks.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    image_shape: tuple[int, int, int]
    fingerprint: str

    @classmethod
    def of(cls, tasks: TaskSet) -> Self:
        """Of tasks at hand."""
        return cls(tasks.names, tasks.classes, tasks.image_shape, tasks.fingerprint)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also after a round trip through JSON."""
        channels, height, width = values["image_shape"]
        return cls(
            tuple(values["names"]),
            tuple(map(tuple, values["classes"])),
            (channels, height, width),
            values["fingerprint"],
        )


def parse_method(text: str) -> Generator | str:
    """A method from the command line's form: ``sparse:growth=8``, ``experts``.

    Raises:
        ValueError: an unknown method, setting or value.

    >>> parse_method("chunked"), parse_method("experts")
    (Chunked(chunks=32, hidden=None), 'experts')
    """
    kind = text.partition(":")[0]
    if kind not in METHODS:
        valid = ", ".join(map(repr, METHODS))
        raise ValueError(f"`method` must be one of {valid}; got {text!r}")
    if text in BASELINES:
        return text
    if kind in BASELINES:
        raise ValueError(f"`method` {kind!r} has no settings, got {text!r}")
    return parse_generator(text)


def load_tasks(data: DataConfig, data_dir: str | PathLike[str] | None = None) -> TaskSet:
    """Read the images and make the tasks.

    Args:
        data: which.
        data_dir: where the files of named sources are, as `load_source` takes it.

    Raises:
        FileNotFoundError: the source is neither a name nor a folder, or its files are missing.
        ValueError: images, tasks or their settings do not fit.
    """
    if data.source in SOURCES:
        source = load_source(data.source, data_dir)
    elif Path(data.source).is_dir():
        source = load_folder(data.source, image_size=data.image_size, seed=data.seed)
    else:
        raise FileNotFoundError(
            f"`source` must be a folder of images or one of {', '.join(map(repr, SOURCES))}; got "
            f"{data.source!r}"
        )
    maker = None if data.tasks is None else parse_tasks(data.tasks)
    return make_tasks(source, maker, val_fraction=data.val_fraction, seed=data.seed)


def make_batches(
    experiment: Experiment, tasks: TaskSet, shard: tuple[int, int] = (0, 1)
) -> Batches:
    """The training stream; ``shard`` as `Batches` takes it."""
    return Batches(
        tasks.train,
        experiment.batch_size,
        tasks_per_batch=experiment.tasks_per_batch,
        seed=_seeds(experiment)["batches"],
        augment=experiment.augment,
        shard=shard,
    )


def build_model(experiment: Experiment, tasks: TaskSet | TaskInfo) -> nn.Module:
    """The model, freshly initialised; the same one for the same seed.

    Raises:
        ValueError: the target or a setting of the method is invalid, or the budget out of reach.
    """
    seeds = _seeds(experiment)

    target = partial(_target, experiment, tasks)
    with _seeded(seeds["target"]):
        if experiment.method == Experts.kind:
            return Experts(target, tasks.names)
        if experiment.method == SharedTrunk.kind:
            return SharedTrunk(target(), tasks.names)
        module = target()
    generator = experiment.method
    assert isinstance(generator, Generator)
    if experiment.budget is not None:
        numel = _count_generated(module)
        budget = max(1, round(experiment.budget * numel))
        generator = generator.with_budget(budget, experiment.latent_dim, numel)
    return HyperNetwork(
        module,
        generator,
        TaskEmbedding(tasks.names, experiment.latent_dim, seed=seeds["embeddings"]),
        base=experiment.base,
        norm_stats=experiment.norm_stats,
        seed=seeds["generator"],
    )


def resolve(experiment: Experiment, tasks: TaskSet, model: nn.Module) -> dict[str, Any]:
    """The experiment and all that follows from it, as a run directory records it.

    Returns:
        `Experiment.to_dict` and, under ``"resolved"``: ``tasks`` (as `TaskInfo`), ``numel`` (N, the
        parameters of one target), ``generator`` (the one that meets the budget; None for a
        baseline) and ``trainable_parameters`` of the whole model. JSON-ready.
    """
    with _seeded(0):
        numel = _count_generated(_target(experiment, tasks))
    resolved = {
        "tasks": dataclasses.asdict(TaskInfo.of(tasks)),
        "numel": numel,
        "generator": model.config["generator"] if isinstance(model, HyperNetwork) else None,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    return {**experiment.to_dict(), "resolved": resolved}


def _seeds(experiment: Experiment) -> dict[str, int]:
    names = ("target", "generator", "embeddings", "batches")
    return dict(zip(names, spawn_seeds(experiment.seed, len(names)), strict=True))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within, PyTorch's global CPU generator has this seed; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _target(experiment: Experiment, tasks: TaskSet | TaskInfo) -> nn.Module:
    return build_target(experiment.target, tasks.image_shape, max(map(len, tasks.classes)))


def _count_generated(target: nn.Module) -> int:
    return sum(spec.numel for spec in plan_layout(target))


def _method_from_config(config: Mapping[str, Any]) -> Generator | str:
    if config.get("kind") in BASELINES:
        return parse_method(":".join(config.values()))
    return generator_from_config(dict(config))


def _check_names(cls: type, settings: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    for name in settings:
        if name not in known:
            valid = ", ".join(map(repr, known))
            raise KeyError(f"unknown setting {name!r}; expected one of {valid}")
