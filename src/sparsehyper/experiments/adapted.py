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
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsehyper._checks import check_integer, check_number
from sparsehyper._files import whole
from sparsehyper._text import listed
from sparsehyper.adaptation import fine_tune, fit_embeddings
from sparsehyper.adaptation.tune import tuned_parameters
from sparsehyper.data import LabelledTask, load_new_tasks
from sparsehyper.experiments.setup import TaskInfo
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.training.checkpoint import DIGESTS_FILE, CheckpointError, digest, read_state
from sparsehyper.training.run import link, write_json

FORMAT = 1
_TASKS, _TENSORS = "tasks.json", "tasks.safetensors"
_ROWS = 1000  # embeddings compared with all at a time


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
        """The inverse of ``dataclasses.asdict``, also after a round trip through JSON."""
        return cls(**{**values, "classes": tuple(values["classes"])})


@dataclass(frozen=True)
class TaskList:
    """The tasks of a run, and what was fitted for those that were added."""

    entries: tuple[TaskEntry, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path, trained: TaskInfo) -> Self:
        """Those of a run directory, adapted or not.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        if not is_adapted(run):
            columns = zip(trained.names, trained.classes, strict=True)
            return cls(tuple(TaskEntry(n, c, row=i) for i, (n, c) in enumerate(columns)), {})
        try:
            record = json.loads((run / _TASKS).read_text(encoding="utf-8"))
            entries = tuple(map(TaskEntry.from_dict, record["tasks"]))
            version, expected = record["format"], record["sha256"]
        except KeyError as error:
            raise CheckpointError(f"{run / _TASKS} is damaged: it lacks {error}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{run / _TASKS} is damaged: {error}") from error
        if version != FORMAT:
            raise CheckpointError(
                f"{run / _TASKS} has format {version}, this version reads format {FORMAT}"
            )
        if not (run / _TENSORS).is_file() or digest(run / _TENSORS) != expected:
            raise CheckpointError(f"{run / _TENSORS} is missing, or not what was written")
        return cls(entries, load_file(run / _TENSORS))

    def names(self) -> tuple[str, ...]:
        """Of the tasks."""
        return tuple(entry.name for entry in self.entries)

    def info(self, trained: TaskInfo) -> TaskInfo:
        """What a model needs to know of these tasks."""
        classes = tuple(entry.classes for entry in self.entries)
        return replace(trained, names=self.names(), classes=classes)

    def apply(self, model: HyperNetwork) -> None:
        """Make these the tasks of a model that has those it was trained on."""
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
        """With one more task."""
        used = [int(e.key) for e in self.entries if e.key is not None]
        key = str(max(used, default=-1) + 1)
        named = {f"{key}/{name}": tensor for name, tensor in tensors.items()}
        return TaskList((*self.entries, replace(entry, key=key)), {**self.tensors, **named})

    def rename(self, name: str, new_name: str) -> TaskList:
        """With another name for a task."""
        self.check_known(name)
        self.check_new(new_name)
        entries = [replace(e, name=new_name) if e.name == name else e for e in self.entries]
        return replace(self, entries=tuple(entries))

    def remove(self, name: str) -> TaskList:
        """Without a task."""
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
    files = (Path(path) / "checkpoints" / "best" / DIGESTS_FILE for path in (run, out))
    return os.path.samefile(*files)


def write_tasks(run: Path, out: Path, tasks: TaskList, digests: str) -> None:
    """Write a new run directory with other tasks and the weights of ``run``, whole or not at all.

    Args:
        run: the run.
        out: the new one.
        tasks: what it knows.
        digests: of the checkpoint's files that the tasks were fitted to.

    Raises:
        FileExistsError: ``out`` exists.
        CheckpointError: the weights of ``run`` are damaged, or no longer the same.
    """
    with whole("out", out) as partial:
        best = partial / "checkpoints" / "best"
        shutil.copytree(run / "checkpoints" / "best", best, copy_function=link)
        read_state(best)  # whole
        if (best / DIGESTS_FILE).read_text("utf-8") != digests:
            raise CheckpointError(
                f"the run in {run} was trained further meanwhile; wait until it has ended"
            )
        shutil.copy2(run / "config.json", partial / "config.json")
        save_file(tasks.tensors, partial / _TENSORS)
        record = {
            "format": FORMAT,
            "sha256": digest(partial / _TENSORS),
            "tasks": [dataclasses.asdict(entry) for entry in tasks.entries],
        }
        write_json(partial / _TASKS, record)


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
        measured = _measure(module.eval(), info, one)
        rows.append({**measured, "seconds": seconds})
    return tasks, rows


@torch.no_grad()
def _measure(module: nn.Module, info: TaskInfo, task: LabelledTask) -> dict[str, Any]:
    def accuracy(pixels: Tensor, labels: Tensor) -> float:
        device = next(module.parameters()).device
        right = 0
        for some in torch.arange(len(labels)).split(500):
            logits = module(info.normalise(pixels[some]).to(device))[:, : len(task.classes)]
            right += int((logits.argmax(1).cpu() == labels[some]).sum())
        return right / len(labels)

    return {
        "task": task.name,
        "classes": list(task.classes),
        "images": len(task.train.labels),
        "accuracy": accuracy(*task.train),
        "test_images": len(task.test.labels) if task.test else 0,
        "test_accuracy": accuracy(*task.test) if task.test else None,
    }


def neighbours(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """For each embedding ``[tasks, dim]`` the nearest other and the cosine of their angle.

    What counts is what the generator sees, embeddings normalised to mean 0 and unit second moment.
    """
    unit = nn.functional.normalize(embeddings - embeddings.mean(-1, keepdim=True), dim=-1)
    nearest, cosines = [], []
    for rows in torch.arange(len(unit)).split(_ROWS):  # of a table that would be too large whole
        between = unit[rows] @ unit.T
        between[torch.arange(len(rows)), rows] = -torch.inf
        greatest = between.max(1)
        nearest.append(greatest.indices)
        cosines.append(greatest.values)
    return torch.cat(nearest), torch.cat(cosines)
