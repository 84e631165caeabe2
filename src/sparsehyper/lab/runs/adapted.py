"""Runs with more tasks than they were trained on.

`adapt_run` fits new tasks and writes a new run directory. It shares the weights of the original
run, which is left as it is:

=====================  =========================================================================
``config.json``        a copy of the original's
``checkpoints/best``   hard links to the original's (copies if the file system has no links)
``tasks.json``         the tasks, in order: their classes, and where each embedding is stored
``tasks.safetensors``  the fitted values: embeddings, batch-norm statistics, tuned parameters
=====================  =========================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.files import CheckpointError, digest, read_file, read_sealed, whole
from sparsehyper.saving import check_like, read_tensors, write_tensors
from sparsehyper._util.text import listed
from sparsehyper.adaptation import fine_tune, fit_embeddings
from sparsehyper.adaptation.tune import tuned_parameters
from sparsehyper.lab.data import load_new_tasks
from sparsehyper.lab.runs.setup import TaskInfo
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.training.checkpoint import (
    CHECKPOINTS,
    DIGESTS_FILE,
    checkpoints_of,
    link_checkpoint,
    open_checkpoint,
)
from sparsehyper.training.run import read_id, write_sealed

_FORMAT = 1
_TASKS, _TENSORS = "tasks.json", "tasks.safetensors"


@dataclass(frozen=True)
class TaskEntry:
    """A task of an adapted run.

    Attributes:
        name: task name.
        classes: class names.
        row: number of the task in the original run; None for an added task.
        key: prefix of its tensors' names; None for a trained task.
        tune: the part of the model that was tuned after the embedding was fitted, if any.
    """

    name: str
    classes: tuple[str, ...]
    row: int | None = None
    key: str | None = None
    tune: str | None = None

    @property
    def origin(self) -> str:
        """``"trained"``, ``"embedding"``, or ``"embedding + "`` and what was tuned."""
        if self.key is None:
            return "trained"
        return "embedding" if self.tune is None else f"embedding + {self.tune}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also after a round trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: the values do not describe a task.
        """
        entry = cls(**{**values, "classes": tuple(values["classes"])})
        if not all(isinstance(text, str) for text in (entry.name, *entry.classes)):
            raise TypeError(f"names of a task and its classes must be strings, got {entry}")
        if not entry.classes or (entry.row is None) == (entry.key is None):
            raise ValueError(f"a task must have classes, and a row or a key, got {entry}")
        if entry.row is not None:
            check_integer("row", entry.row, minimum=0)
        elif not (isinstance(entry.key, str) and entry.key.isdecimal()):
            raise ValueError(f"`key` must be a number in a string, got {entry.key!r}")
        return entry


@dataclass(frozen=True)
class TaskList:
    """The tasks of a run, and the tensors of those that were added."""

    entries: tuple[TaskEntry, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path, trained: TaskInfo, digests: str) -> Self:
        """Read the tasks of a run directory, adapted or not.

        Args:
            run: the run directory.
            trained: the tasks of the original run.
            digests: ``SHA256SUMS`` of the run's best checkpoint.

        Raises:
            CheckpointError: a file is missing, damaged, or does not belong to the checkpoint.
        """
        if not is_adapted(run):
            columns = zip(trained.names, trained.classes, strict=True)
            return cls(tuple(TaskEntry(n, c, row=i) for i, (n, c) in enumerate(columns)), {})
        path = run / _TASKS
        record = read_sealed(path)
        if record.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path} has format {record.get('format')!r}, this version reads format {_FORMAT}"
            )
        if record.get("checkpoint") != _checkpoint_hash(digests):
            raise CheckpointError(f"{path} does not belong to the checkpoint of {run}")
        try:
            entries = tuple(map(TaskEntry.from_dict, record["tasks"]))
            rows = [entry.row for entry in entries if entry.row is not None]
            keys = [entry.key for entry in entries if entry.key is not None]
            names = [entry.name for entry in entries]
            if not names or any(len(set(all_)) < len(all_) for all_ in (rows, keys, names)):
                raise ValueError("`tasks` must list at least one task, and none twice")
            if max(rows, default=0) >= len(trained.names):
                raise ValueError(f"`row` must be below {len(trained.names)}, got {max(rows)}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from error
        if not (run / _TENSORS).exists():
            raise CheckpointError(f"{run / _TENSORS} is missing from the run")
        data = read_file(run / _TENSORS)
        if hashlib.sha256(data).hexdigest() != record.get("tensors"):
            raise CheckpointError(f"{run / _TENSORS} is damaged: it is not what was written")
        return cls(entries, read_tensors(data, run / _TENSORS))

    def names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(entry.name for entry in self.entries)

    def info(self, trained: TaskInfo) -> TaskInfo:
        """What a model needs to know about these tasks."""
        classes = tuple(entry.classes for entry in self.entries)
        return replace(trained, names=self.names(), classes=classes)

    def apply(self, model: nn.Module, run: Path) -> None:
        """Replace the trained tasks of a model by these tasks.

        Args:
            model: the model of the run, with the tasks it was trained on.
            run: the run directory, for errors.

        Raises:
            CheckpointError: the model is not a hypernetwork, or the tensors do not fit it.
        """
        if not isinstance(model, HyperNetwork):
            raise CheckpointError(f"{run / _TASKS} is damaged: the run holds no hypernetwork")
        self._check_tensors(model, run / _TENSORS)
        trained = model.task_names
        for row, name in enumerate(trained):  # a new task may have the old name of another
            model.rename_task(name, f"\0{row}")
        for entry in self.entries:
            if entry.key is not None:
                number = model.add_task(entry.name, self.tensors[f"{entry.key}/embedding"])
                norms, module = model.target.statistics, model.target.module
                rows = [self.tensors[f"{entry.key}/statistics/{name}"] for name in norms.names]
                norms.set_rows(module, [number], [row[None] for row in rows])
        kept = {entry.row: entry.name for entry in self.entries if entry.row is not None}
        for row in range(len(trained)):
            if row in kept:
                model.rename_task(f"\0{row}", kept[row])
            else:
                model.remove_task(f"\0{row}")

    def _check_tensors(self, model: HyperNetwork, path: Path) -> None:
        norms = model.target.statistics
        statistics = norms.row(model.target.module, 0)
        own = {
            "embedding": model.task_embedding.weight[0].detach(),
            **{f"statistics/{n}": row for n, row in zip(norms.names, statistics, strict=True)},
        }
        module = model.materialize(0)
        tuned = {f"tuned/{name}": tensor for name, tensor in module.state_dict().items()}
        for entry in self.entries:
            needed = {f"{entry.key}/{name}" for name in own} if entry.key is not None else set()
            if missing := sorted(needed - self.tensors.keys()):
                raise CheckpointError(f"{path} is damaged: it lacks the tensor {missing[0]!r}")
        for name, tensor in self.tensors.items():
            like = {**own, **tuned}.get(name.partition("/")[2])
            if like is None:
                raise CheckpointError(f"{path} is damaged: unexpected tensor {name!r}")
            check_like(name, tensor, like, path)

    def tuned(self) -> dict[str, dict[str, Tensor]]:
        """Parameters that were tuned after the embedding was fitted, by task."""
        return {
            entry.name: {
                name.removeprefix(prefix): tensor
                for name, tensor in self.tensors.items()
                if name.startswith(prefix)
            }
            for entry in self.entries
            if entry.tune is not None
            for prefix in [f"{entry.key}/tuned/"]
        }

    def add(self, entry: TaskEntry, tensors: Mapping[str, Tensor]) -> TaskList:
        """A copy with one more task at the end."""
        used = [int(e.key) for e in self.entries if e.key is not None]
        key = str(max(used, default=-1) + 1)
        named = {f"{key}/{name}": tensor for name, tensor in tensors.items()}
        return TaskList((*self.entries, replace(entry, key=key)), {**self.tensors, **named})

    def rename(self, name: str, new_name: str) -> TaskList:
        """A copy with one task renamed."""
        self.check_known(name)
        self.check_new(new_name)
        entries = [replace(e, name=new_name) if e.name == name else e for e in self.entries]
        return replace(self, entries=tuple(entries))

    def remove(self, name: str) -> TaskList:
        """A copy with one task removed."""
        self.check_known(name)
        if len(self.entries) == 1:
            raise ValueError(f"`task` {name!r} is the only task, so it cannot be removed")
        (gone,) = (e for e in self.entries if e.name == name)
        tensors = {n: t for n, t in self.tensors.items() if n.partition("/")[0] != gone.key}
        return TaskList(tuple(e for e in self.entries if e is not gone), tensors)

    def check_known(self, name: str) -> None:
        """Raise ``KeyError`` unless there is a task of this name."""
        if name not in self.names():
            raise KeyError(f"unknown task {name!r}; the tasks are: {listed(self.names())}")

    def check_new(self, name: str) -> None:
        """Raise ``ValueError`` if the name is blank or already taken."""
        if not name.strip():
            raise ValueError(f"a new task needs a name, got {name!r}")
        if name in self.names():
            raise ValueError(
                f"a new task needs a name that no task has, got {name!r}; taken are: "
                f"{listed(self.names())}"
            )


def is_adapted(run: Path) -> bool:
    """Whether a run directory was written by `adapt_run` or `change_tasks`."""
    return (run / _TASKS).exists()


def shares_weights(run: PathLike[str], out: PathLike[str]) -> bool:
    """Whether two runs share the files of their weights, rather than having copies."""
    files = (checkpoints_of(Path(path)) / "best" / DIGESTS_FILE for path in (run, out))
    try:
        return os.path.samefile(*files)
    except FileNotFoundError:  # one of them is being trained
        return False


@contextmanager
def sharing_weights(run: Path, out: Path, digests: str) -> Iterator[Path]:
    """Make a new run directory that shares the weights of ``run``.

    It becomes ``out`` at the end of the block, whole or not at all.

    Args:
        run: the run directory.
        out: the new run directory.
        digests: ``SHA256SUMS`` of the checkpoint that was loaded.

    Raises:
        FileExistsError: ``out`` exists.
        CheckpointError: the weights of ``run`` are damaged, or have changed since they were loaded.
    """
    with whole("out", out) as partial:
        try:
            best = checkpoints_of(run) / "best"
            link_checkpoint(best, partial / CHECKPOINTS / "best")
            (partial / "config.json").write_bytes(read_file(run / "config.json"))
            with open_checkpoint(partial, "best", read_id(partial)) as shared:
                same = shared.digests == digests
        except FileNotFoundError:
            same = False
        if not same:
            raise CheckpointError(
                f"the run in {run} is being trained, and has just got a better checkpoint; try "
                "again"
            )
        yield partial


def write_tasks(directory: Path, tasks: TaskList, digests: str) -> None:
    """Write the tasks of an adapted run into its directory.

    Args:
        directory: the run directory.
        tasks: the tasks.
        digests: ``SHA256SUMS`` of the checkpoint that the tasks were fitted to.
    """
    write_tensors(directory / _TENSORS, tasks.tensors)
    record = {
        "format": _FORMAT,
        "checkpoint": _checkpoint_hash(digests),
        "tensors": digest(directory / _TENSORS),
        "tasks": [dataclasses.asdict(entry) for entry in tasks.entries],
    }
    write_sealed(directory / _TASKS, record)


def _checkpoint_hash(digests: str) -> str:
    """A hash that identifies a checkpoint."""
    return hashlib.sha256(digests.encode()).hexdigest()


def fit_tasks(
    model: HyperNetwork,
    info: TaskInfo,
    tasks: TaskList,
    data: str | PathLike[str],
    *,
    task: str | None = None,
    tune: str | None = None,
    tune_steps: int = 100,
    tune_lr: float = 1e-3,
    resize: bool = False,
    **settings: Any,
) -> tuple[TaskList, list[dict[str, Any]]]:
    """Fit all tasks of a folder together.

    Args:
        model: the hypernetwork, which gets the new tasks.
        info: the known tasks.
        tasks: the known tasks, as the run lists them.
        data: the folder, as `adapt_run` takes it.
        task: name of the one task that the folder holds.
        tune: part of each new task's model to train further, as `fine_tune` takes it.
        tune_steps: number of updates of this training.
        tune_lr: its learning rate.
        resize: resize images to the size that the model takes.
        **settings: settings of `fit_embeddings`.

    Returns:
        The tasks with the new ones added, and one row per new task: ``task``, ``classes``,
        ``images``, ``accuracy`` on them, ``test_images`` and ``test_accuracy`` (None
        without ``test/``) and ``seconds``.
    """
    check_integer("tune_steps", tune_steps, minimum=1)
    check_number("tune_lr", tune_lr, above=0)
    if tune is not None:
        some = torch.zeros(2, *info.image_shape, device=model.target.moments.device)
        tuned_parameters(model.materialize(0), tune, some)  # raises before any work is lost
    if task is not None:
        tasks.check_new(task)
    labelled = load_new_tasks(data, info.image_shape, task=task, resize=resize)
    for one in labelled:
        tasks.check_new(one.name)
    device = model.task_embedding.weight.device
    samples = {
        one.name: (info.normalise(one.train.pixels).to(device), one.train.labels.to(device))
        for one in labelled
    }
    classes = {one.name: len(one.classes) for one in labelled}
    fits = fit_embeddings(model, samples, n_classes=classes, **settings)
    rows = []
    for one in labelled:
        started = time.perf_counter()
        module, number = model.materialize(one.name), model.tasks.index(one.name)
        tensors = {"embedding": fits[one.name].embedding}
        norms = model.target.statistics
        statistics = norms.row(model.target.module, number)
        tensors |= {f"statistics/{n}": row for n, row in zip(norms.names, statistics, strict=True)}
        if tune is not None:
            before = {name: p.detach().clone() for name, p in module.named_parameters()}
            fine_tune(
                module,
                samples[one.name],
                tune=tune,
                n_classes=len(one.classes),
                steps=tune_steps,
                lr=tune_lr,
                seed=settings.get("seed", 0),
            )
            for name, parameter in module.named_parameters():
                if not torch.equal(parameter, before[name]):
                    tensors[f"tuned/{name}"] = parameter.detach()
        entry = TaskEntry(one.name, one.classes, tune=tune)
        tasks = tasks.add(entry, {k: t.cpu().clone() for k, t in tensors.items()})
        seconds = fits[one.name].seconds / len(labelled) + time.perf_counter() - started
        module.eval()
        row = {
            "task": one.name,
            "classes": list(one.classes),
            "images": len(one.train.labels),
            "accuracy": accuracy(module, *samples[one.name], len(one.classes)),
            "test_images": 0,
            "test_accuracy": None,
            "seconds": seconds,
        }
        if one.test is not None:
            test = info.normalise(one.test.pixels).to(device), one.test.labels.to(device)
            row["test_images"] = len(one.test.labels)
            row["test_accuracy"] = accuracy(module, *test, len(one.classes))
        rows.append(row)
    return tasks, rows
