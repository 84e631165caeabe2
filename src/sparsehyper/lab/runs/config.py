"""An experiment as plain data: images, tasks, target, method and training.

One seed determines everything except the split of the images, which has a seed of its own, so that
runs with different seeds see the same training, validation and test images.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from sparsehyper._util.checks import (
    WIDEST,
    check_choice,
    check_integer,
    check_number,
    check_settings,
    check_type,
)
from sparsehyper._util.text import listed
from sparsehyper.conditioning import InputAndTask, InputEncoder, SupportSet, TaskEmbedding
from sparsehyper.generators import (
    GENERATORS,
    Composed,
    Generator,
    Sparse,
    generator_from_config,
    parse_generator,
)
from sparsehyper.heads import HEADS
from sparsehyper.lab.data import TARGETS, is_source, is_table, names_of_columns, parse_tasks
from sparsehyper.lab.runs.baselines import BASELINES
from sparsehyper.lab.runs.targets import recorded_target, spelled_out
from sparsehyper.target.initialisation import INIT_RULES
from sparsehyper.target.target import BASES, STATISTICS_MODES
from sparsehyper.training import TrainConfig

GENERATED = "generated"
# What models depend on; of support sets the pool too.
BY_EXAMPLES = (SupportSet.kind, f"{SupportSet.kind}:pool=examples")
BY_INPUT = (InputEncoder.kind, InputAndTask.kind)
EXPERIMENT_CONDITIONERS = (TaskEmbedding.kind, *BY_EXAMPLES, *BY_INPUT)
EXPERIMENT_HEADS = (GENERATED, *HEADS)
# Methods with a short form; a composed generator can be given in Python only.
METHODS = (*(kind for kind in GENERATORS if kind != Composed.kind), *BASELINES)

_OF_TABLES = ("task_column", "target_column", "sequence_column", "order_column", "targets")


@dataclass(frozen=True)
class DataConfig:
    """The images or the table, and the tasks to make of them.

    Args:
        source: a name, as `load_source` takes it, or a folder ``<task>/<class>/*.png``,
            or a table, ``*.csv`` or ``*.parquet``. It is kept as an absolute path, so that a run
            can be used from anywhere.
        tasks: the tasks, such as ``"split:2"``; None for the tasks that a folder defines, or one
            task for each of several sources.
        image_size: side to resize a folder's images to; None if they all have the same size.
        val_fraction: share of the training images to validate on, in (0, 1).
        seed: seed of the split into training, validation and test images.
        task_column: for a table, the column that names each row's task.
        target_column: for a table, the column to predict.
        sequence_column: for a table of sequences, the column that names each row's sequence.
        order_column: for a table of sequences, the column to sort their steps by; None for the
            order of the file.
        targets: for a table, ``"numbers"`` or ``"classes"``; None for what the column holds.

    Raises:
        ValueError: ``tasks`` is not understood, ``image_size`` is given for a named source,
            ``val_fraction`` is out of range, or what is for images is given for a table or the
            other way round.
    """

    source: str = "digits"
    tasks: str | None = None
    image_size: int | None = None
    val_fraction: float = 0.1
    seed: int = 0
    task_column: str | None = None
    target_column: str | None = None
    sequence_column: str | None = None
    order_column: str | None = None
    targets: str | None = None

    def __post_init__(self) -> None:
        check_type("source", self.source, str, "a name or a folder")
        if not self.source:
            raise ValueError("`source` must be a name or a folder, got ''")
        if not is_source(self.source) and os.path.exists(self.source):
            object.__setattr__(self, "source", os.path.abspath(self.source))
        if self.tasks is not None:
            try:
                parse_tasks(self.tasks)
            except ValueError as error:
                if is_source(self.source):
                    raise
                raise ValueError(
                    f"{error}; leave `tasks` out to use all tasks of a folder"
                ) from error
        # Training keeps the weights of the best validation, so it needs validation images.
        check_number("val_fraction", self.val_fraction, above=0)
        if self.image_size is not None and is_source(self.source):
            raise ValueError(
                f"`image_size` is for folders of images; {self.source!r} has one already, got "
                f"{self.image_size}"
            )
        if self.targets is not None:
            check_choice("targets", self.targets, TARGETS)
        named = ("task_column", "target_column")
        for name in named if self.is_table else ():
            if getattr(self, name) is None:
                found = os.path.isfile(self.source)
                names = f": {listed(names_of_columns(Path(self.source)))}" if found else ""
                raise ValueError(f"`{name}` must name a column of the table {self.source!r}{names}")
        for name in ("tasks", "image_size") if self.is_table else _OF_TABLES:
            if (value := getattr(self, name)) is not None:
                kind = "images" if self.is_table else "a table, *.csv or *.parquet"
                raise ValueError(f"`{name}` is for {kind}; got {value!r} for {self.source!r}")

    @property
    def is_table(self) -> bool:
        """Whether the source is a table."""
        return not is_source(self.source) and is_table(self.source)

    @property
    def samples(self) -> str:
        """What the samples are: images, rows or sequences."""
        if not self.is_table:
            return "images"
        return "rows" if self.sequence_column is None else "sequences"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; settings that only tables have are left out if they are None."""
        values = dataclasses.asdict(self)
        for name in _OF_TABLES:
            if values[name] is None:
                del values[name]  # records from before there were tables lack it
        return values


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a training run.

    Args:
        data: images and tasks.
        training: settings of the training loop; its ``seed`` is the seed of the whole run.
        method: a generator, or a baseline: ``"experts"`` or ``"shared_trunk"``.
        target: as `build_target` takes it; kept with every setting spelled out.
        outputs: number of logits of the target, at least the number of classes of the largest
            task, which is the default. More leave room for new tasks with more classes.
        budget: largest number of trainable parameters, of the generator and a trained base, per
            target parameter; `Generator.with_budget` chooses the generator's size to meet it. None
            leaves the generator as it is.
        conditioner: what the models depend on, one of `EXPERIMENT_CONDITIONERS`. This and the next
            six are for hypernetworks.
        latent_dim: length of an embedding.
        similarity: initial similarity of tasks, as `TaskEmbedding` takes it.
        base: as `HyperNetwork` takes it.
        init: as `HyperNetwork` takes it.
        norm_stats: as `HyperNetwork` takes it.
        head: the target's last layer is ``"generated"``, or solved from each task's images by
            ``"ridge"`` or ``"prototypes"`` (`sparsehyper.heads`).
        batch_size: number of images per batch.
        tasks_per_batch: number of tasks per batch.
        augment: any of `sparsehyper.lab.data.AUGMENTATIONS`.

    Raises:
        TypeError, ValueError: an unknown method or setting of the target, or a ``budget`` that is
            out of range or for a baseline.

    >>> experiment = Experiment(DataConfig(tasks="split:2"), TrainConfig(steps=100), budget=4)
    >>> Experiment.from_dict(experiment.to_dict()) == experiment
    True
    """

    data: DataConfig
    training: TrainConfig
    method: Generator | str = field(default_factory=Sparse)
    target: str = "mlp:128-64"
    outputs: int | None = None
    budget: float | None = None
    conditioner: str = TaskEmbedding.kind
    latent_dim: int = 256
    similarity: float = 0.0
    base: str = "learned"
    init: str = "torch"
    norm_stats: str = "per_task"
    head: str = GENERATED
    batch_size: int = 100
    tasks_per_batch: int = 1
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_type("target", self.target, str, "a string such as 'mlp:128-64'")
        object.__setattr__(self, "target", spelled_out(self.target))
        check_integer("latent_dim", self.latent_dim, minimum=2, maximum=WIDEST)
        check_number("similarity", self.similarity, minimum=0)
        if self.similarity >= 1:
            raise ValueError(f"`similarity` must be less than 1, got {self.similarity}")
        if self.outputs is not None:
            check_integer("outputs", self.outputs, minimum=2, maximum=WIDEST)
        check_choice("base", self.base, BASES)
        check_choice("init", self.init, INIT_RULES)
        check_choice("norm_stats", self.norm_stats, STATISTICS_MODES)
        check_choice("head", self.head, EXPERIMENT_HEADS)
        check_choice("conditioner", self.conditioner, EXPERIMENT_CONDITIONERS)
        if self.conditioner == InputEncoder.kind and self.head != GENERATED:
            raise ValueError(
                f"`head` must be 'generated' with `conditioner` {self.conditioner!r}, which knows "
                f"no tasks that a head could be solved for, got {self.head!r}"
            )
        if not isinstance(self.method, Generator) and self.method not in BASELINES:
            raise ValueError(
                f"`method` must be a generator or one of {', '.join(map(repr, BASELINES))}; got "
                f"{self.method!r}"
            )
        if self.conditioner != TaskEmbedding.kind and not isinstance(self.method, Generator):
            raise ValueError(
                f"`conditioner` is for generators; {self.method!r} has none, got "
                f"{self.conditioner!r}"
            )
        if self.augment and self.data.is_table:
            raise ValueError(f"`augment` is for images, got {list(self.augment)} for a table")
        if self.budget is not None:
            check_number("budget", self.budget, above=0, maximum=1e6)
            if not isinstance(self.method, Generator):
                raise ValueError(
                    f"`budget` is for generators; {self.method!r} has one size, got {self.budget}"
                )

    @property
    def seed(self) -> int:
        """Seed of the whole run, except the split of the images."""
        return self.training.seed

    def with_seed(self, seed: int) -> Self:
        """The same experiment under another seed."""
        return replace(self, training=replace(self.training, seed=seed))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of the settings.

        ``head`` and ``conditioner``, which early versions did not have, are left out where they
        have the value that was then the only one. So records of early runs stay equal to new ones.
        """
        method = self.method
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, before in (("head", GENERATED), ("conditioner", TaskEmbedding.kind)):
            if values[name] == before:
                del values[name]
        return {
            **values,
            "data": self.data.to_dict(),
            "training": self.training.to_dict(),
            "method": method.to_config() if isinstance(method, Generator) else {"kind": method},
            "augment": list(self.augment),
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; settings left out take their defaults.

        Raises:
            TypeError, ValueError: a setting is unknown, has the wrong type or is out of range, or
                ``data`` or ``training`` is missing.
        """
        check_settings("an experiment", settings, _names(cls))
        values = dict(settings)
        for name in ("data", "training"):
            if name not in values:
                raise ValueError(f"setting {name!r} is missing")
        check_settings("data", values["data"], _names(DataConfig))
        values["data"] = DataConfig(**values["data"])
        values["training"] = TrainConfig.from_dict(values["training"])
        if "method" in values:
            values["method"] = _method_from_config(values["method"])
        if "augment" in values:
            check_type("augment", values["augment"], (list, tuple), "a list of names")
            values["augment"] = tuple(values["augment"])
        return cls(**values)


def up_to_date(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version may have written, as this one writes them.

    All that is read from a file goes through here, so that it keeps its meaning.

    >>> up_to_date({"experiment": {"target": "cnn:8"}, "seed": 0})
    {'experiment': {'target': 'cnn:8,norm=none,pool=stride'}, 'seed': 0}
    >>> up_to_date({"training": {"steps": 5, "tensorboard": True}})
    {'training': {'steps': 5, 'log_with': 'tensorboard'}}
    """
    recorded = dict(recorded)
    if isinstance(recorded.get("tensorboard"), bool):
        recorded["log_with"] = "tensorboard" if recorded.pop("tensorboard") else None

    def updated(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return up_to_date(value)
        return recorded_target(value) if key == "target" and isinstance(value, str) else value

    return {key: updated(key, value) for key, value in recorded.items()}


def parse_method(text: str) -> Generator | str:
    """Parse a method in the command line's form: ``sparse:growth=8``, ``experts``.

    Raises:
        ValueError: an unknown method, setting or value.

    >>> parse_method("chunked"), parse_method("experts")
    (Chunked(chunks=32, hidden=None, by='flat', layers=2, embedding=None), 'experts')
    """
    kind = text.partition("/")[0].partition(":")[0]
    check_choice("method", kind, METHODS)
    if text in BASELINES:
        return text
    if kind in BASELINES:
        raise ValueError(f"`method` {kind!r} has no settings, got {text!r}")
    return parse_generator(text)


def _method_from_config(config: Mapping[str, Any]) -> Generator | str:
    check_type("method", config, Mapping, "a configuration")
    kind = config.get("kind")
    check_choice("method", kind, (*GENERATORS, *BASELINES))
    return kind if kind in BASELINES else generator_from_config(dict(config))


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]
