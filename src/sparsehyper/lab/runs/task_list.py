"""The tasks of a run, and the files of a run that has more tasks than it was trained on.

=====================  =========================================================================
``tasks.json``         the tasks, in order: their classes, what their models are, what was measured
``tasks.safetensors``  the fitted values: embeddings, batch-norm statistics, heads in closed form,
                       tuned parameters, models of tasks' own
=====================  =========================================================================

An added task has an embedding, and possibly parameters that were tuned after it; or a model of its
own (`ordinary`), which any route may have found; or both, where the model is that of the task, and
the embedding tells which tasks are like it. Runs of every method can have models of tasks' own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from sparsehyper._util.checks import check_integer, check_number, check_type
from sparsehyper._util.files import CheckpointError
from sparsehyper._util.text import listed
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskInfo
from sparsehyper.lab.runs.config import Experiment
from sparsehyper.lab.runs.fitted import add_fitted, fitted_like, tuned_like
from sparsehyper.lab.runs.ordinary import Form, Leaf, build_leaf, form_from_dict, tensors_of_leaf
from sparsehyper.lab.runs.records import read_record, tensors_of, write_record
from sparsehyper.lab.runs.setup import build_ordinary
from sparsehyper.saving import check_like

_FORMAT = 1
HEAD = "head"  # the method of a task of which a head alone was learned, with the mean embedding
_TASKS, _TENSORS = "tasks.json", "tasks.safetensors"


@dataclass(frozen=True)
class Measured:
    """What was measured when a task was learned.

    Attributes:
        images: number of images that it was learned from.
        accuracy: accuracy on them; of numbers R², as for ``test_accuracy``, None where no two of
            them differ.
        test_images: number of images of its own that were only tested on.
        test_accuracy: accuracy on these; None if there were none.
        expected: accuracy or R² to expect on new images; None where nothing was held out, or too
            little to tell.
        interval: its 95% interval.
        more: accuracies to expect of 2 and of 4 times as many images.
        why: what was chosen and why, in words.
        warnings: what to mind, in words.
        error, expected_error: of numbers, the root mean squared errors that go with ``accuracy``
            and ``expected``, in the target's own unit.
    """

    images: int
    accuracy: float | None
    test_images: int = 0
    test_accuracy: float | None = None
    expected: float | None = None
    interval: tuple[float, float] | None = None
    more: tuple[float, float] | None = None
    why: str | None = None
    warnings: tuple[str, ...] = ()
    error: float | None = None
    expected_error: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``; raises as `TaskEntry.from_dict`."""
        lists = {name: values.get(name) for name in ("interval", "more", "warnings")}
        found = cls(**{**values, **{name: tuple(v) for name, v in lists.items() if v is not None}})
        for name in ("images", "test_images"):
            check_integer(name, getattr(found, name), minimum=0)
        scores = dict.fromkeys(("accuracy", "test_accuracy", "expected"), (None, 1))
        errors = dict.fromkeys(("error", "expected_error"), (0, None))
        for name, (least, most) in {**scores, **errors}.items():
            if (value := getattr(found, name)) is not None:
                check_number(name, value, minimum=least, maximum=most)
        for name in ("interval", "more"):
            if (pair := getattr(found, name)) is None:
                continue
            if len(pair) != 2:
                raise ValueError(f"`{name}` must be two numbers, got {pair}")
            for value in pair:
                check_number(name, value, maximum=1)
        check_type("why", found.why, (str, type(None)), "a string")
        check_type("warnings", found.warnings, tuple, "a list of strings")
        for text in found.warnings:
            check_type("warnings", text, str, "a string")
        return found


@dataclass(frozen=True)
class TaskEntry:
    """A task of an adapted run.

    Attributes:
        name: task name.
        classes: class names.
        row: number of the task in the original run; None for an added task.
        key: prefix of its tensors' names; None for a trained task.
        tune: the part of the model that was tuned afterwards, if any.
        method: how it was learned, in words; None for a trained task, or an embedding.
        model: the form of a model of its own; None if its embedding generates it.
        measured: what was measured when it was learned; None for a trained task, and for tasks
            that were learned before this was kept.
    """

    name: str
    classes: tuple[str, ...]
    row: int | None = None
    key: str | None = None
    tune: str | None = None
    method: str | None = None
    model: Form | None = None
    measured: Measured | None = None

    @property
    def origin(self) -> str:
        """``"trained"``, or the method, by default ``"embedding"``, ``" + "`` what was tuned."""
        if self.key is None:
            return "trained"
        method = self.method or "embedding"
        return method if self.tune is None else f"{method} + {self.tune}"

    @property
    def has_embedding(self) -> bool:
        """Whether an embedding was learned for it, rather than a head with the mean one."""
        return self.model is not None or self.method != HEAD

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also after a round trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: the values do not describe a task.
        """
        model, measured = values.get("model"), values.get("measured")
        entry = cls(
            **{
                **values,
                "classes": tuple(values["classes"]),
                "model": None if model is None else form_from_dict(model),
                "measured": None if measured is None else Measured.from_dict(measured),
            }
        )
        for text in (entry.method, entry.tune):
            check_type("method", text, (str, type(None)), "a string")
        if not all(isinstance(text, str) for text in (entry.name, *entry.classes)):
            raise TypeError(f"names of a task and its classes must be strings, got {entry}")
        if not entry.classes or (entry.row is None) == (entry.key is None):
            raise ValueError(f"a task must have classes, and a row or a key, got {entry}")
        if entry.row is not None:
            check_integer("row", entry.row, minimum=0)
        elif not (isinstance(entry.key, str) and entry.key.isdecimal()):
            raise ValueError(f"`key` must be a number in a string, got {entry.key!r}")
        if entry.model is not None and entry.model.outputs < len(entry.classes):
            raise ValueError(
                f"`outputs` must be at least {len(entry.classes)}, got {entry.model.outputs}"
            )
        return entry

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict, without what is None and was not always kept."""
        values = dataclasses.asdict(self)
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in ("method", "model", "measured")
        }


@dataclass(frozen=True)
class TaskList:
    """The tasks of a run, and the tensors of those that were added."""

    entries: tuple[TaskEntry, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path, trained: TaskInfo, checkpoint: str) -> Self:
        """Read the tasks of a run directory, adapted or not.

        Args:
            run: the run directory.
            trained: the tasks of the original run.
            checkpoint: `Checkpoint.id` of the run's best checkpoint.

        Raises:
            CheckpointError: a file is missing, damaged, or does not belong to the checkpoint.
        """
        if not is_adapted(run):
            columns = zip(trained.names, trained.classes, strict=True)
            return cls(tuple(TaskEntry(n, c, row=i) for i, (n, c) in enumerate(columns)), {})
        path = run / _TASKS
        record = read_record(path, (_FORMAT,))
        if record.get("checkpoint") != checkpoint:
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
        return cls(entries, tensors_of(record, path))

    def names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(entry.name for entry in self.entries)

    def entry(self, name: str) -> TaskEntry:
        """The task of this name; raises ``KeyError`` if there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(
            f"unknown task {name!r}; the tasks are: {listed(self.names())}; `adapt` learns new ones"
        )

    def info(self, trained: TaskInfo) -> TaskInfo:
        """What a model needs to know about these tasks."""
        classes = tuple(entry.classes for entry in self.entries)
        return replace(trained, names=self.names(), classes=classes)

    def apply(self, model: nn.Module, experiment: Experiment, info: TaskInfo, run: Path) -> None:
        """Give a model the tasks of this list: add, rename and remove tasks as needed.

        Tasks that have a model of their own and no embedding are left out.

        Args:
            model: the model of the run, with the tasks it was trained on; a baseline keeps them.
            experiment, info: those of the run.
            run: the run directory, for errors.

        Raises:
            CheckpointError: the tensors do not fit the model, or a task has an embedding and the
                model is not a hypernetwork.
        """
        self._check_tensors(model, experiment, info, run / _TENSORS)
        if not isinstance(model, HyperNetwork):
            if any(entry.key is not None and entry.model is None for entry in self.entries):
                raise CheckpointError(
                    f"{run / _TASKS} is damaged: the run's model is not a hypernetwork"
                )
            return
        trained = model.task_names
        for row, name in enumerate(trained):  # a new task may have the old name of another
            model.rename_task(name, f"\0{row}")
        for entry in self.entries:
            if f"{entry.key}/embedding" in self.tensors:
                add_fitted(model, entry.name, self._of(entry))
        kept = {entry.row: entry.name for entry in self.entries if entry.row is not None}
        for row in range(len(trained)):
            if row in kept:
                model.rename_task(f"\0{row}", kept[row])
            else:
                model.remove_task(f"\0{row}")

    def _of(self, entry: TaskEntry) -> dict[str, Tensor]:
        """The tensors of an added task, by the names that it gave them."""
        prefix = f"{entry.key}/"
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    def _check_tensors(
        self, model: nn.Module, experiment: Experiment, info: TaskInfo, path: Path
    ) -> None:
        known: set[str] = set()
        for entry in self.entries:
            if entry.key is None:
                continue
            tensors = self._of(entry)
            needed: dict[str, Tensor] = {}
            allowed: dict[str, Tensor] = {}
            if isinstance(model, HyperNetwork) and (entry.model is None or "embedding" in tensors):
                needed = fitted_like(model, len(entry.classes))
                if entry.model is None:
                    allowed = tuned_like(model, len(entry.classes))
            _check_like(f"{entry.key}/", tensors, needed, allowed, path)
            known |= {f"{entry.key}/{name}" for name in (*needed, *allowed)}
            built: dict[tuple[Leaf, frozenset[str]], dict[str, Tensor]] = {}
            for i, leaf in enumerate(entry.model.leaves if entry.model is not None else ()):
                own, prefix = tensors_of_leaf(tensors, i), f"{entry.key}/model/{i}/"
                # Before anything of its size is built.
                if not any(tensor.shape[:1] == (leaf.outputs,) for tensor in own.values()):
                    raise CheckpointError(
                        f"{path} is damaged: it has no tensor {prefix}… of {leaf.outputs} outputs"
                    )
                kind = (leaf, frozenset(own))
                if kind not in built:
                    built[kind] = _build(leaf, experiment, info, own).state_dict()
                _check_like(prefix, own, built[kind], {}, path)
                known |= {prefix + name for name in built[kind]}
        if unknown := self.tensors.keys() - known:
            raise CheckpointError(f"{path} is damaged: unexpected tensor {min(unknown)!r}")

    def tuned(self) -> dict[str, dict[str, Tensor]]:
        """Parameters that were tuned after the embedding was fitted, by task."""
        return {
            entry.name: {
                name.removeprefix(prefix): tensor
                for name, tensor in self.tensors.items()
                if name.startswith(prefix)
            }
            for entry in self.entries
            if entry.tune is not None and entry.model is None
            for prefix in [f"{entry.key}/tuned/"]
        }

    def own_model(self, name: str, experiment: Experiment, info: TaskInfo) -> nn.Module | None:
        """The model of a task that has one of its own, in evaluation mode; else None."""
        entry = self.entry(name)
        if entry.model is None:
            return None
        tensors, leaves = self._of(entry), []
        for i, leaf in enumerate(entry.model.leaves):
            own = tensors_of_leaf(tensors, i)
            module = _build(leaf, experiment, info, own)
            module.load_state_dict(own)
            leaves.append(module)
        return entry.model.build(iter(leaves)).eval()

    def add(self, entry: TaskEntry, tensors: Mapping[str, Tensor]) -> TaskList:
        """A copy with one more task at the end."""
        used = [int(e.key) for e in self.entries if e.key is not None]
        key = str(max(used, default=-1) + 1)
        named = {f"{key}/{name}": tensor for name, tensor in tensors.items()}
        return TaskList((*self.entries, replace(entry, key=key)), {**self.tensors, **named})

    def rename(self, name: str, new_name: str) -> TaskList:
        """A copy with one task renamed."""
        known = self.entry(name)
        self.check_new(new_name)
        entries = [replace(e, name=new_name) if e is known else e for e in self.entries]
        return replace(self, entries=tuple(entries))

    def remove(self, name: str) -> TaskList:
        """A copy with one task removed."""
        gone = self.entry(name)
        if len(self.entries) == 1:
            raise ValueError(f"`task` {name!r} is the only task, so it cannot be removed")
        tensors = {n: t for n, t in self.tensors.items() if n.partition("/")[0] != gone.key}
        return TaskList(tuple(e for e in self.entries if e is not gone), tensors)

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


def _check_like(
    prefix: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    path: Path,
) -> None:
    """Raise ``CheckpointError`` unless the needed tensors are there, and all fit."""
    for name in needed:
        if name not in tensors:
            raise CheckpointError(f"{path} is damaged: it lacks the tensor {prefix + name!r}")
    for name, like in {**needed, **allowed}.items():
        if name in tensors:
            check_like(prefix + name, tensors[name], like, path)


def _build(
    leaf: Leaf, experiment: Experiment, info: TaskInfo, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The module of a leaf, before it gets its tensors."""
    target = partial(build_ordinary, experiment, info)
    return build_leaf(leaf, target, info.image_shape, list(tensors))


def write_tasks(directory: Path, tasks: TaskList, checkpoint: str) -> None:
    """Write the tasks of an adapted run into its directory.

    Args:
        directory: the run directory.
        tasks: the tasks.
        checkpoint: `Checkpoint.id` of the one that the tasks were fitted to.
    """
    record = {
        "format": _FORMAT,
        "checkpoint": checkpoint,
        "tasks": [entry.to_dict() for entry in tasks.entries],
    }
    write_record(directory / _TASKS, record, tasks.tensors)
