"""The run directory: everything a training run leaves behind, and all it needs to go on.

====================  ==========================================================================
``config.json``       the resolved configuration, and the versions it ran with
``metrics.jsonl``     one JSON object a line: the record of training
``checkpoints/last``  where training stands
``checkpoints/best``  the best evaluation so far
``result.json``       the outcome, once there is one
``.lock``             held while a process writes here
====================  ==========================================================================

A checkpoint is never changed. The whole of ``checkpoints`` is written anew next to the old one and
put in its place by renaming, so that a crash at any point leaves one whole pair of them, and
``last`` and ``best`` always belong together. The best one is carried over by hard link.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from sparsehyper._extras import require
from sparsehyper._files import sync
from sparsehyper.training.checkpoint import (
    CheckpointError,
    TrainingState,
    read_optimizer,
    read_state,
    read_weights,
    write_checkpoint,
)
from sparsehyper.training.processes import is_main_process

if TYPE_CHECKING:
    from filelock import FileLock


class RunInUseError(ValueError):
    """Another process is writing to the run directory."""


class Run:
    r"""A run directory, locked for as long as it is open.

    Made by `Run.create` and `Run.open`; a context manager, which closes it. When several processes
    train together, each makes one for the same path and only the main one's writes.

    Attributes:
        path: of the directory.
        config: the configuration it was created with.

    >>> import tempfile
    >>> with Run.create(Path(tempfile.mkdtemp()) / "run", {"seed": 0}) as run:
    ...     run.write_metrics({"step": 1, "loss": 0.5})
    ...     run.path.joinpath("metrics.jsonl").read_text()
    '{"step": 1, "loss": 0.5}\n'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = {}
        self._writes = is_main_process()
        self._lock: FileLock | None = None

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> Self:
        """Start a new run.

        Args:
            path: a directory that does not exist yet, or is empty.
            config: a JSON-ready dict of everything that determines the run.

        Raises:
            FileExistsError: the directory has something in it.
            NotADirectoryError: `path` is a file.
            RunInUseError: another process is starting a run there.
            TypeError: `config` cannot be written as JSON.
        """
        run = cls(path)
        run.config = json_ready(config)
        if not run._writes:
            return run
        if run.path.exists() and not run.path.is_dir():
            raise NotADirectoryError(f"`path` must be a directory for the run, got {run.path}")
        if run.path.is_dir() and any(entry.name != ".lock" for entry in run.path.iterdir()):
            found = "files that are not a run's; choose another place"
            if run._config_path.exists():
                found = "a run; `resume` it, or choose another place"
            raise FileExistsError(f"`path` {run.path} already holds {found}")
        run.path.mkdir(parents=True, exist_ok=True)
        run._lock = lock(run.path)
        run.record_config()
        return run

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        may_differ: Collection[str] = ("training.steps",),
    ) -> Self:
        """Open a run to go on with it.

        Args:
            path: of the run.
            config: if given, it must be the run's own, so that what goes on is what was started.
            may_differ: dotted keys in which the two may differ; `record_config` records the new
                values.

        Raises:
            FileNotFoundError: there is no run at `path`.
            RunInUseError: another process is writing to it.
            ValueError: `config` is not the run's; the message names the first key that differs.
        """
        run = cls(path)
        if not run._config_path.is_file():
            raise FileNotFoundError(f"`path` {run.path} holds no run: it has no config.json")
        if run._writes:
            run._lock = lock(run.path)
        try:
            run._resume(config, may_differ)
        except BaseException:
            run.close()
            raise
        return run

    @property
    def last(self) -> Path:
        """The checkpoint where training stands; there is none before the first evaluation."""
        return self._checkpoints / "last"

    @property
    def best(self) -> Path:
        """The checkpoint of the best evaluation so far, for the model's own ``load``."""
        return self._checkpoints / "best"

    def record_config(self) -> None:
        """Write ``config.json``: the configuration at hand, and the versions it runs with."""
        if self._writes:
            write_json(self._config_path, {"config": self.config, "versions": _versions()})

    def write_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; it survives a crash of this process."""
        if self._writes:
            with self._metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; one that a crash cut short is left out."""
        if not self._metrics_path.exists():
            return []
        lines = self._metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise CheckpointError(f"{self._metrics_path} is damaged: {error}") from error

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, whole or not at all."""
        if self._writes:
            write_json(self.path / "result.json", result)

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        *,
        best: bool,
    ) -> None:
        """Replace the checkpoint ``last``, and ``best`` too if so told."""
        if not self._writes:
            return
        new, old = self._checkpoints_new, self._checkpoints_old
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write_checkpoint(new / "last", model, optimizer, state)
        source = new / "last" if best else self.best
        if source.exists():
            shutil.copytree(source, new / "best", copy_function=link)
            sync(new / "best")
        sync(new)
        if self._checkpoints.exists():
            self._checkpoints.rename(old)
        new.rename(self._checkpoints)
        sync(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Load the checkpoint ``last`` and drop the metrics written after it.

        Returns:
            where training stood; the start, with nothing loaded, before the first checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another model.
        """
        state = TrainingState()
        if self.last.exists():
            state = read_state(self.last)
            read_weights(self.last, model)
            read_optimizer(self.last, model, optimizer)
        elif self._checkpoints.exists():
            raise CheckpointError(f"{self.last} is missing from the run")
        if self._writes and self._metrics_path.exists():
            kept = [line for line in self.read_metrics() if line["step"] <= state.step]
            _write(self._metrics_path, "".join(json.dumps(line) + "\n" for line in kept))
        return state

    def restore_best(self, model: nn.Module) -> None:
        """Load the weights of the checkpoint ``best``.

        Raises:
            CheckpointError: it is damaged, or of another model.
        """
        read_state(self.best)
        read_weights(self.best, model)

    def close(self) -> None:
        """Let other processes write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _checkpoints_new(self) -> Path:
        return self.path / "checkpoints.new"

    @property
    def _checkpoints_old(self) -> Path:
        return self.path / "checkpoints.old"

    def _resume(self, config: Mapping[str, Any] | None, may_differ: Collection[str]) -> None:
        try:
            recorded = json.loads(self._config_path.read_text(encoding="utf-8"))
            self.config = dict(recorded["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._config_path} is damaged: {error!r}") from error
        if config is not None:
            given = json_ready(config)
            check_same(f"the run in {self.path}", self.config, given, may_differ)
            self.config = given
        if self._writes:
            self._recover()

    def _recover(self) -> None:
        """Undo what a crash left half done."""
        if self._checkpoints_old.exists() and not self._checkpoints.exists():
            self._checkpoints_old.rename(self._checkpoints)
        shutil.rmtree(self._checkpoints_old, ignore_errors=True)
        shutil.rmtree(self._checkpoints_new, ignore_errors=True)


def lock(directory: Path) -> FileLock:
    """Lock a directory for this process; the lock is held, and to be released.

    Raises:
        RunInUseError: another process holds it.
    """
    filelock = require("filelock", "train")
    held = filelock.FileLock(directory / ".lock", timeout=0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise RunInUseError(
            f"the run directory {directory} is in use by another process; "
            "wait for it, stop it, or choose another path"
        ) from error
    return held


def check_same(
    what: str, recorded: Mapping[str, Any], given: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    """Check that two JSON-ready configurations agree.

    Args:
        what: whose configuration was recorded, for the error.
        recorded, given: the two.
        may_differ: dotted keys that need not be the same.

    Raises:
        ValueError: they differ; the message names the first setting that does.
    """
    before, now = dict(_flatten(recorded)), dict(_flatten(given))
    for key in before | now:
        was, value = before.get(key, "nothing"), now.get(key, "nothing")
        if was != value and key not in may_differ:
            raise ValueError(
                f"{what} has other settings: its `{key}` is {was!r}, got {value!r}; give its own "
                "settings or another directory"
            )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def json_ready(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it would be read back from a file: tuples as lists."""
    return json.loads(json.dumps(dict(config), allow_nan=False))


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "safetensors", "accelerate", "sparsehyper")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def link(source: str, destination: str) -> None:
    """A hard link, or a copy where the file system has no links."""
    try:
        os.link(source, destination)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file's contents by a JSON document, whole or not at all."""
    _write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Replace a file's contents, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
