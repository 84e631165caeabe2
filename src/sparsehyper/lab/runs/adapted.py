"""Runs that know more tasks than they were trained on.

`adapt_run` fits new tasks and writes a new run directory, which shares its weights with the run it
came from and leaves that as it was:

=====================  =========================================================================
``config.json``        the run's
``checkpoints/best``   the run's, by hard link (copied where the file system has none)
``tasks.json``         the tasks, in order: their classes, and where each one's embedding is
``tasks.safetensors``  what was fitted: embeddings, batch-norm statistics, tuned parameters
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
from torch import Tensor

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

FORMAT = 1
_TASKS, _TENSORS = "tasks.json", "tasks.safetensors"


@dataclass(frozen=True)
class TaskEntry:
    """A task of an adapted run.

    Attributes:
        name: of the task.
        classes: its class names.
        row: its number among the tasks that were trained; None if it was added.
        key: what its tensors' names begin with, if it was added.
        tune: what was tuned after its embedding was fitted, if anything.
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
            KeyError, TypeError, ValueError: the values are not those of a task.
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
    """The tasks of a run, and what was fitted for those that were added."""

    entries: tuple[TaskEntry, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path, trained: TaskInfo, digests: str) -> Self:
        """Those of a run directory, adapted or not.

        Args:
            run: the directory.
            trained: the tasks that were trained.
            digests: of the files of the run's best checkpoint.

        Raises:
            CheckpointError: a file is missing, damaged, or does not belong to the checkpoint.
        """
        if not is_adapted(run):
            columns = zip(trained.names, trained.classes, strict=True)
            return cls(tuple(TaskEntry(n, c, row=i) for i, (n, c) in enumerate(columns)), {})
        path = run / _TASKS
        record = read_sealed(path)
        if record.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {record.get('format')!r}, this version reads format {FORMAT}"
            )
        if record.get("checkpoint") != _digest(digests):
            raise CheckpointError(f"{path} belongs to another checkpoint than that of {run}")
        try:
            entries = tuple(map(TaskEntry.from_dict, record["tasks"]))
            rows = [entry.row for entry in entries if entry.row is not None]
            keys = [entry.key for entry in entries if entry.key is not None]
            names = [entry.name for entry in entries]
            if not names or any(len(set(all_)) < len(all_) for all_ in (rows, keys, names)):
                raise ValueError("`tasks` must be some, each once")
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
        """The names of the tasks, in order."""
        return tuple(entry.name for entry in self.entries)

    def info(self, trained: TaskInfo) -> TaskInfo:
        """What a model needs to know of these tasks."""
        classes = tuple(entry.classes for entry in self.entries)
        return replace(trained, names=self.names(), classes=classes)

    def apply(self, model: nn.Module, run: Path) -> None:
        """Make these the tasks of a model that has those it was trained on.

        Args:
            model: the model of the run.
            run: the directory, for errors.

        Raises:
            CheckpointError: the model is no hypernetwork, or the tensors are not such a model's.
        """
        if not isinstance(model, HyperNetwork):
            raise CheckpointError(f"{run / _TASKS} is damaged: the run holds no hypernetwork")
        self._check_tensors(model, run / _TENSORS)
        trained = model.task_names
        for row, name in enumerate(trained):  # out of the way of the new names
            model.rename_task(name, f"\0{row}")
        for entry in self.entries:
            if entry.key is not None:
                number = model.add_task(entry.name, self.tensors[f"{entry.key}/embedding"])
                norms, module = model.target.statistics, model.target.module
                rows = [self.tensors[f"{entry.key}/statistics/{name}"] for name in norms.names]
                norms.put(module, [number], [row[None] for row in rows])
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
        """By task, the parameters that were tuned after its embedding was fitted."""
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
        """The list with one more task at its end."""
        used = [int(e.key) for e in self.entries if e.key is not None]
        key = str(max(used, default=-1) + 1)
        named = {f"{key}/{name}": tensor for name, tensor in tensors.items()}
        return TaskList((*self.entries, replace(entry, key=key)), {**self.tensors, **named})

    def rename(self, name: str, new_name: str) -> TaskList:
        """The list with another name for one of its tasks."""
        self.check_known(name)
        self.check_new(new_name)
        entries = [replace(e, name=new_name) if e.name == name else e for e in self.entries]
        return replace(self, entries=tuple(entries))

    def remove(self, name: str) -> TaskList:
        """The list without one of its tasks."""
        self.check_known(name)
        if len(self.entries) == 1:
            raise ValueError(f"`task` {name!r} is the only one, and cannot be removed")
        (gone,) = (e for e in self.entries if e.name == name)
        tensors = {n: t for n, t in self.tensors.items() if n.partition("/")[0] != gone.key}
        return TaskList(tuple(e for e in self.entries if e is not gone), tensors)

    def check_known(self, name: str) -> None:
        """Raise ``KeyError`` unless it is a task."""
        if name not in self.names():
            raise KeyError(f"unknown task {name!r}; the tasks are: {listed(self.names())}")

    def check_new(self, name: str) -> None:
        """Raise ``ValueError`` if it is a task, or no name."""
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
    """Whether a run has the very files of another's weights, and not copies of them."""
    files = (checkpoints_of(Path(path)) / "best" / DIGESTS_FILE for path in (run, out))
    try:
        return os.path.samefile(*files)
    except FileNotFoundError:  # one of them is being trained
        return False


@contextmanager
def sharing_weights(run: Path, out: Path, digests: str) -> Iterator[Path]:
    """A new run directory with the weights of ``run``, which appears as ``out`` at the end, whole,
    or not at all.

    Args:
        run: the run.
        out: the new one.
        digests: of the files of the checkpoint that was loaded.

    Raises:
        FileExistsError: ``out`` exists.
        CheckpointError: the weights of ``run`` are damaged, or no longer the same.
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
                f"the run in {run} is being trained, and got a better checkpoint at this very "
                "moment; do it again"
            )
        yield partial


def write_tasks(directory: Path, tasks: TaskList, digests: str) -> None:
    """Write what an adapted run knows into its directory.

    Args:
        directory: of the run.
        tasks: what it knows.
        digests: of the files of the checkpoint that the tasks were fitted to.
    """
    write_tensors(directory / _TENSORS, tasks.tensors)
    record = {
        "format": FORMAT,
        "checkpoint": _digest(digests),
        "tensors": digest(directory / _TENSORS),
        "tasks": [dataclasses.asdict(entry) for entry in tasks.entries],
    }
    write_sealed(directory / _TASKS, record)


def _digest(digests: str) -> str:
    """What tells a checkpoint from all others."""
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
    """Fit the tasks of a folder, all together.

    Returns:
        The tasks with the new ones among them, and a row for each new one: ``task``, ``classes``,
        ``images``, ``accuracy`` on them, ``test_images`` and ``test_accuracy`` (None
        without ``test/``) and ``seconds``.
    """
    check_integer("tune_steps", tune_steps, minimum=1)
    check_number("tune_lr", tune_lr, above=0)
    if tune is not None:
        some = torch.zeros(2, *info.image_shape, device=model.target.moments.device)
        tuned_parameters(model.materialize(0), tune, some)  # before any work is lost
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
