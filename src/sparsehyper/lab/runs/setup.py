"""The parts that an experiment needs: its tasks, its batches and its model, each built once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsehyper._util.random import spawn_seeds
from sparsehyper.conditioning import Conditioner, InputEncoder
from sparsehyper.generators import Generator
from sparsehyper.generators.base import BudgetError
from sparsehyper.heads import HEADS, Head, Ridge, ends_in_linear
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import (
    SOURCES,
    Batches,
    LabelledTask,
    Source,
    TaskInfo,
    TaskSet,
    is_source,
    load_folder,
    load_new_rows,
    load_new_tasks,
    load_source,
    load_table,
    make_tasks,
    parse_tasks,
)
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.lab.runs.conditioners import build_conditioner
from sparsehyper.lab.runs.config import BY_EXAMPLES, GENERATED, DataConfig, Experiment
from sparsehyper.lab.runs.targets import build_target
from sparsehyper.layout import Layout, count_numbers, plan_layout
from sparsehyper.target.target import TRAINED_BASES

_TOGETHER = 8  # tasks of a table in a batch


def load_tasks(
    data: DataConfig,
    data_dir: str | PathLike[str] | None = None,
    *,
    known: TaskInfo | None = None,
) -> TaskSet:
    """Read the images or the table, and make the tasks.

    Args:
        data: the images and tasks.
        data_dir: folder of the named data sets' files, as `load_source` takes it.
        known: the tasks of a run that exists, as `load_table` takes it.

    Raises:
        FileNotFoundError: the source is neither a name nor a folder, or its files are missing.
        ValueError: images, tasks or their settings do not fit.
    """
    if data.is_table:
        assert data.task_column is not None
        assert data.target_column is not None
        return load_table(
            Path(data.source),
            data.task_column,
            data.target_column,
            sequence_column=data.sequence_column,
            order_column=data.order_column,
            targets=data.targets,
            val_fraction=data.val_fraction,
            seed=data.seed,
            known=known,
        )
    return tasks_of(data, source_of(data, data_dir))


def read_new_tasks(
    info: TaskInfo, data: str | PathLike[str], *, task: str | None = None, resize: bool = False
) -> list[LabelledTask]:
    """Read new tasks for a trained model, as `load_new_tasks` or `load_new_rows` does."""
    if info.columns is not None:
        check_of_images(resize)
        return load_new_rows(
            *(Path(data), info.columns, info.classes[0]), task=task, names=info.names
        )
    return load_new_tasks(data, info.image_shape, task=task, resize=resize)


def check_of_images(resize: bool) -> None:
    """Raise ``ValueError`` if the rows of a table are to be resized."""
    if resize:
        raise ValueError("`resize` is for images, and this run is of a table")


def source_of(data: DataConfig, data_dir: str | PathLike[str] | None = None) -> Source:
    """Read the images alone, which several sets of tasks can share."""
    if is_source(data.source):
        return load_source(data.source, data_dir)
    if Path(data.source).is_dir():
        return load_folder(data.source, image_size=data.image_size, seed=data.seed)
    raise FileNotFoundError(
        "`source` must be a folder of images, a table (*.csv, *.parquet) or one of "
        f"{', '.join(map(repr, SOURCES))}, or several joined by '+'; got "
        f"{data.source!r}, which is none of them; if it has moved, say where it is now: `evaluate` "
        "and `train --resume` take `--data`, and the latter records it in a run whose tasks are "
        "those that it was trained on"
    )


def tasks_of(data: DataConfig, source: Source) -> TaskSet:
    """Make the tasks of images that `source_of` has read."""
    maker = None if data.tasks is None else parse_tasks(data.tasks)
    return make_tasks(source, maker, val_fraction=data.val_fraction, seed=data.seed)


def make_batches(
    experiment: Experiment, tasks: TaskSet, shard: tuple[int, int] = (0, 1)
) -> Batches:
    """Make the training stream; ``shard`` as `Batches` takes it."""
    return Batches(
        tasks.train,
        experiment.batch_size,
        tasks_per_batch=experiment.tasks_per_batch,
        seed=_seeds(experiment)["batches"],
        augment=experiment.augment,
        shard=shard,
    )


def build_model(
    experiment: Experiment,
    tasks: TaskInfo,
    kind: type[HyperNetwork] = HyperNetwork,
) -> nn.Module:
    """Build the freshly initialised model of an experiment; the same one for the same seed.

    Raises:
        BudgetError: the generator cannot be as small as the budget.
        ValueError: the target or a setting of the method is invalid.
    """
    seeds = _seeds(experiment)
    target = partial(_build_target, experiment, tasks)
    with _seeded(seeds["target"]):
        if experiment.method == Experts.kind:
            return Experts(target, tasks.names)
        if experiment.method == SharedTrunk.kind:
            return SharedTrunk(target(), tasks.names)
        module = target()
    return kind(
        module,
        fit_generator(experiment, _layout(experiment, module)),
        _conditioner(experiment, tasks, seeds),
        base=experiment.base,
        init=experiment.init,
        norm_stats=experiment.norm_stats,
        head=_head(experiment, tasks),
        seed=seeds["generator"],
    )


def usual_head(experiment: Experiment, tasks: TaskInfo) -> str:
    """The head to choose for an experiment's tasks and target, as `Experiment` takes it.

    It is ``"ridge"`` where tasks have classes of their own, or are regressions, and the target ends
    in a linear layer after other layers.
    """
    if experiment.conditioner == InputEncoder.kind:
        return GENERATED  # it knows no tasks
    if len(set(tasks.classes)) == 1 and not tasks.are_numbers:
        return GENERATED
    with _seeded(0):
        target = _build_target(experiment, tasks).eval()
    return Ridge.kind if ends_in_linear(target, torch.zeros(2, *tasks.image_shape)) else GENERATED


def usual_batch(tasks: TaskSet) -> tuple[int, int]:
    """Batch size and tasks per batch to choose for a table.

    A head in closed form learns from leave-one-out predictions, so a row must not be in a batch
    twice. Each task has as many rows in a batch as the smallest task has in all, but at least 8 and
    at most 50.
    """
    together = min(_TOGETHER, len(tasks.names))
    return together * max(8, min(*tasks.train.counts, 50)), together


def fit_generator(experiment: Experiment, layout: Layout) -> Generator:
    """Choose the generator's settings so that it meets the budget, for a target of this layout.

    A trained base takes one number per generated parameter out of the budget.

    Raises:
        BudgetError: the generator cannot be that small.
    """
    generator = experiment.method
    assert isinstance(generator, Generator)
    if experiment.budget is None:
        return generator
    numel = count_numbers(layout)
    budget = round(experiment.budget * numel)
    if experiment.base in TRAINED_BASES:
        if budget <= numel:
            raise BudgetError(
                f"`budget` must be greater than 1 where `base` is {experiment.base!r}, which has a "
                f"trainable number for each generated one ('zeros' has none); got "
                f"{experiment.budget:g}"
            )
        budget -= numel
    return generator.with_budget(max(1, budget), experiment.latent_dim, layout)


def target_layout(experiment: Experiment, tasks: TaskInfo) -> Layout:
    """The layout of the target of an experiment, for plans made before there is a model."""
    with _seeded(0):
        return _layout(experiment, _build_target(experiment, tasks))


def target_numel(model: nn.Module) -> int:
    """N, the number of parameters of one target of a model, or of an ordinary module."""
    if isinstance(model, HyperNetwork):
        return model.target.numel
    if isinstance(model, (Experts, SharedTrunk)):
        return model.target_numel
    return count_numbers(plan_layout(model))


def resolve(tasks: TaskInfo, model: nn.Module) -> dict[str, Any]:
    """Describe what follows from an experiment whatever its seed.

    Args:
        tasks: the experiment's tasks.
        model: the model that `build_model` made for them.

    Returns:
        A JSON-ready dict: ``tasks`` (as `TaskInfo`), ``numel`` (N, the number of parameters of one
        target), ``generator`` (with the settings that meet the budget; None for a baseline) and
        ``trainable_parameters`` of the whole model.
    """
    return {
        "tasks": tasks.to_dict(),
        "numel": target_numel(model),
        "generator": model.settings["generator"] if isinstance(model, HyperNetwork) else None,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _seeds(experiment: Experiment) -> dict[str, int]:
    names = ("target", "generator", "embeddings", "batches", "encoder")
    return dict(zip(names, spawn_seeds(experiment.seed, len(names)), strict=True))


def _conditioner(experiment: Experiment, tasks: TaskInfo, seeds: Mapping[str, int]) -> Conditioner:
    if experiment.conditioner in BY_EXAMPLES and tasks.are_numbers:
        raise ValueError(
            f"`conditioner` {experiment.conditioner!r} is for classes, and numbers are predicted "
            "here; give another one"
        )
    with _seeded(seeds["encoder"]):
        return build_conditioner(
            experiment,
            *(tasks.names, tasks.image_shape, _outputs(experiment, tasks)),
            tasks if isinstance(tasks, TaskSet) else None,
            seeds["embeddings"],
        )


def _head(experiment: Experiment, tasks: TaskInfo) -> Head | None:
    if experiment.head == GENERATED:
        return None
    if not tasks.are_numbers:
        return HEADS[experiment.head]()
    if experiment.head != Ridge.kind:
        raise ValueError(
            f"`head` must be 'ridge' or 'generated' where numbers are predicted, got "
            f"{experiment.head!r}"
        )
    return Ridge(targets="numbers")


def _layout(experiment: Experiment, target: nn.Module) -> Layout:
    if experiment.head == GENERATED:
        return plan_layout(target)
    solved, _ = HEADS[experiment.head]().find(target)
    return plan_layout(target, lambda name, _: not name.startswith(f"{solved}."))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Context in which PyTorch's global CPU generator has this seed; its state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_ordinary(experiment: Experiment, info: TaskInfo, outputs: int) -> nn.Module:
    """The target of an experiment, without a mask, as an ordinary module of some number of outputs.

    Its values do not matter. Every model that `materialize` returns has the names of its tensors.
    """
    with _seeded(0):
        return build_target(experiment.target.partition("/")[0], info.image_shape, outputs)


def _build_target(experiment: Experiment, tasks: TaskInfo) -> nn.Module:
    return build_target(experiment.target, tasks.image_shape, _outputs(experiment, tasks))


def _outputs(experiment: Experiment, tasks: TaskInfo) -> int:
    """The number of logits of the target."""
    classes = max(map(len, tasks.classes))
    outputs = experiment.outputs or classes
    if outputs < classes:
        raise ValueError(
            f"`outputs` must be at least {classes}, the number of classes of the largest task; "
            f"got {outputs}"
        )
    return outputs
