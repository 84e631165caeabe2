"""The run directory: everything that a training run writes, and everything needed to resume it.

====================  ==========================================================================
``config.json``       the run's id, the resolved configuration, and the versions it ran with
``metrics.jsonl``     the metrics of training, one JSON object per line
``checkpoints/last``  the current state of training
``checkpoints/best``  the state at the best evaluation so far
``result.json``       the result, once there is one
``.lock``             held while a process writes here
====================  ==========================================================================

A checkpoint is written after every evaluation, and when training is interrupted. It is never
modified, only replaced: a new ``checkpoints`` is written next to the old one and takes its place
by renaming. So a crash at any point leaves one complete pair, and ``last`` and ``best`` always
belong together. The best checkpoint is carried over by hard links.

Damage is detected: ``config.json`` and ``result.json`` end with their own digests, and a checkpoint
holds the digests of its files and of ``metrics.jsonl`` at that time. All of them contain the run's
random id, so that no file of another run is accepted.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from sparsehyper._util.files import (
    CheckpointError,
    parse_json,
    read_file,
    read_sealed,
    rename,
    sync,
    write_sealed,
)
from sparsehyper.training.checkpoint import (
    CHECKPOINTS,
    OLD_CHECKPOINTS,
    Record,
    TrainingState,
    link_checkpoint,
    open_checkpoint,
    write_checkpoint,
)
from sparsehyper.training.directory import check_same, json_ready, lock, read_config, read_id
from sparsehyper.training.processes import is_main_process

if TYPE_CHECKING:
    from filelock import FileLock


class Run:
    r"""A run directory, locked while it is open.

    Made by `Run.create` and `Run.open`; a context manager, which closes it. When several processes
    train together, each opens the same path, and only the main process writes.

    Attributes:
        path: path of the directory.
        config: configuration of the run.

    >>> import tempfile
    >>> with Run.create(Path(tempfile.mkdtemp()) / "run", {"seed": 0}) as run:
    ...     run.write_metrics({"step": 1, "loss": 0.5})
    ...     run.path.joinpath("metrics.jsonl").read_text()
    '{"step": 1, "loss": 0.5}\n'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = {}
        self._config_path = self.path / "config.json"
        self._metrics_path = self.path / "metrics.jsonl"
        self._checkpoints = self.path / CHECKPOINTS
        self._checkpoints_new = self.path / "checkpoints.new"
        self._checkpoints_old = self.path / OLD_CHECKPOINTS
        self._writes = is_main_process()
        self._lock: FileLock | None = None
        self._metrics_hash = hashlib.sha256()  # of metrics.jsonl
        self._metrics_size = 0  # in bytes

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> Self:
        """Start a new run.

        Args:
            path: a directory that is new or empty.
            config: a JSON-ready dict of everything that determines the run.

        Raises:
            FileExistsError: the directory is not empty.
            NotADirectoryError: `path` is a file.
            RunInUseError: another process is starting a run there.
            TypeError: `config` cannot be written as JSON.
        """
        run = cls(path)
        run.config = json_ready(config)
        if not run._writes:
            return run
        run._check_free()
        run.path.mkdir(parents=True, exist_ok=True)
        run._lock = lock(run.path)
        try:
            run._check_free()  # another process may have started a run meanwhile
            run._write_config(secrets.token_hex(16))
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        may_differ: Collection[str] = ("training.steps",),
        update: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Self:
        """Open a run to continue it.

        Args:
            path: path of the directory.
            config: if given, it must equal the run's own configuration.
            may_differ: dotted keys that may differ; `record_config` records the new values.
            update: applied to the run's own configuration first, for one of an earlier version.

        Raises:
            FileNotFoundError: there is no run at `path`.
            RunInUseError: another process is writing to it.
            CheckpointError: ``config.json`` is damaged, or a file of the run is a link.
            ValueError: `config` is another one; the message names the first key that differs.
        """
        run = cls(path)
        if not run._config_path.is_file():
            raise FileNotFoundError(f"`path` {run.path} holds no run: it has no config.json")
        if run._writes:
            run._lock = lock(run.path)
        try:
            run._resume(config, may_differ, update)
        except BaseException:
            run.close()
            raise
        return run

    @property
    def last(self) -> Path:
        """Directory of the latest checkpoint; it does not exist before the first evaluation."""
        return self._checkpoints / "last"

    @property
    def best(self) -> Path:
        """Directory of the best checkpoint so far, which the model's own ``load`` can read."""
        return self._checkpoints / "best"

    def record_config(self) -> None:
        """Write the current configuration and versions to ``config.json``."""
        if self._writes:
            self._write_config(read_id(self.path))

    def write_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; it survives a crash of this process."""
        if self._writes:
            text = (json.dumps(line, allow_nan=False) + "\n").encode()
            with self._metrics_path.open("ab") as file:
                if file.tell() > self._metrics_size:  # a full disk left part of a line
                    file.truncate(self._metrics_size)
                file.write(text)
            self._metrics_size += len(text)
            self._metrics_hash.update(text)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of ``metrics.jsonl``, without one that a crash cut short.

        Raises:
            CheckpointError: lines written before the last checkpoint have changed.
        """
        record, run = Record(), read_id(self.path)
        with suppress(FileNotFoundError), open_checkpoint(self.path, "last", run) as last:
            record = last.record
        data = read_file(self._metrics_path) if self._metrics_path.exists() else b""
        record.check(self._metrics_path, data)
        lines = [parse_json(line, self._metrics_path) for line in data.split(b"\n")[:-1]]
        if not all(isinstance(line, dict) for line in lines):
            raise CheckpointError(f"{self._metrics_path} is damaged: a line is not a JSON object")
        return lines

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, whole or not at all."""
        if self._writes:
            write_sealed(self.path / "result.json", {"run": read_id(self.path), **result})

    def read_result(self) -> dict[str, Any] | None:
        """Read the result; None if there is none yet.

        Raises:
            CheckpointError: it is damaged or belongs to another run.
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        result = read_sealed(path)
        if result.pop("run", None) != read_id(self.path):
            raise CheckpointError(f"{path} belongs to another run")
        return result

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        *,
        best: bool,
    ) -> None:
        """Replace the checkpoint ``last``, and with ``best`` also the best one."""
        if not self._writes:
            return
        self._recover()
        new, old = self._checkpoints_new, self._checkpoints_old
        try:
            new.mkdir()
            record = Record(self._metrics_size, self._metrics_hash.hexdigest())
            if self._metrics_path.exists():
                sync(self._metrics_path)
            last = new / "last"
            write_checkpoint(last, model, optimizer, state, run=read_id(self.path), record=record)
            source = last if best else self.best
            if source.exists():
                link_checkpoint(source, new / "best")
            sync(new)
            if self._checkpoints.exists():
                rename(self._checkpoints, old)
            rename(new, self._checkpoints)
        except BaseException:
            self._recover()  # frees space at once: the disk may be full
            raise
        sync(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Load the checkpoint ``last`` and drop the metrics written after it.

        If it is damaged, ``best`` is loaded instead, with a warning.

        Returns:
            The state of training; the initial one, with nothing loaded, if there is no checkpoint.

        Raises:
            CheckpointError: both checkpoints are damaged or belong to another model, or the metrics
                are damaged.
        """
        state, record = TrainingState(), Record()
        if self._checkpoints.exists():
            state, record = self._restore_newest(model, optimizer)
        if self._writes:
            self._restore_metrics(record)
        return state

    def restore_best(self, model: nn.Module) -> None:
        """Load the weights of the checkpoint ``best``.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it is damaged or belongs to another model.
        """
        with open_checkpoint(self.path, "best", read_id(self.path)) as best:
            best.read_weights(model)

    def close(self) -> None:
        """Release the lock, so that other processes can write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restore_newest(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainingState, Record]:
        run = read_id(self.path)
        damage = None
        try:
            newest = open_checkpoint(self.path, "last", run)
        except (CheckpointError, FileNotFoundError) as error:
            damage = CheckpointError(str(error))
            try:
                newest = open_checkpoint(self.path, "best", run)
            except (CheckpointError, FileNotFoundError):
                raise damage from error
        with newest:
            newest.read(model, optimizer)
            step = newest.state.step
            if damage is not None:
                self._warn(f"{damage}; continuing from the best checkpoint, of step {step}")
            return self._without_damaged_best(newest.state, run), newest.record

    def _without_damaged_best(self, state: TrainingState, run: str) -> TrainingState:
        """Forget the best evaluation if its checkpoint is damaged."""
        if state.best is None:
            return state
        try:
            with open_checkpoint(self.path, "best", run):
                return state
        except (CheckpointError, FileNotFoundError) as error:
            self._warn(f"{error}; the next evaluation counts as the best so far")
            return replace(state, best=None, best_step=0)

    def _restore_metrics(self, record: Record) -> None:
        """Truncate the metrics to their length at a checkpoint."""
        path = self._metrics_path
        if not path.exists():
            self._count_metrics(b"")
            if record.size:
                self._warn(f"{path} is missing; a new record begins")
            return
        data = read_file(path)
        record.check(path, data)
        os.truncate(path, record.size)
        self._count_metrics(data[: record.size])

    def _count_metrics(self, data: bytes) -> None:
        self._metrics_size, self._metrics_hash = len(data), hashlib.sha256(data)

    def _warn(self, message: str) -> None:
        if self._writes:
            warnings.warn(message, stacklevel=2)

    def _check_free(self) -> None:
        """Raise ``FileExistsError`` unless a run may start here."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"`path` must be a directory for the run, got {self.path}")
        # A process that dies while it starts a run leaves these.
        left = (".lock", "config.json.new")
        if self.path.is_dir() and any(entry.name not in left for entry in self.path.iterdir()):
            found = "files of something else; choose another place"
            if self._config_path.exists():
                found = "a run; `resume` it, or choose another place"
            raise FileExistsError(f"`path` {self.path} already holds {found}")

    def _write_config(self, run: str) -> None:
        about = {"run": run, "config": self.config, "versions": _versions()}
        write_sealed(self._config_path, about)

    def _resume(
        self,
        config: Mapping[str, Any] | None,
        may_differ: Collection[str],
        update: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.config = update(read_config(self.path)["config"])
        if config is not None:
            given = json_ready(config)
            check_same(f"the run in {self.path}", self.config, given, may_differ)
            self.config = given
        if self._writes:
            self._recover()
            if self._metrics_path.exists():
                lines = read_file(self._metrics_path)
                self._count_metrics(lines[: lines.rfind(b"\n") + 1])

    def _recover(self) -> None:
        """Undo what a crash left unfinished."""
        if self._checkpoints_old.exists() and not self._checkpoints.exists():
            rename(self._checkpoints_old, self._checkpoints)
        for left in (self._checkpoints_old, self._checkpoints_new):
            if left.exists():
                shutil.rmtree(left, ignore_errors=True)


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "safetensors", "accelerate", "sparsehyper")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
