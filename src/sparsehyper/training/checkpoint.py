"""A checkpoint: a directory with a model and everything needed to continue its training.

========================  =========================================================================
``config.json``           written by the model's own ``save``
``model.safetensors``     the weights, written by the model's own ``save``
``training.safetensors``  the optimiser's tensors, as ``<parameter>/<name>``
``training.json``         step, accuracies so far, best evaluation; ids of run and optimiser;
                          size and digest of ``metrics.jsonl``
``SHA256SUMS``            digests of the files above, as ``sha256sum --check`` reads them
========================  =========================================================================

No pickle: reading a checkpoint runs no code from it, and opens no files but its own. Randomness in
training is a pure function of seed and step, so there is no generator state to save.

A run's checkpoints are in its directory ``checkpoints``. It is never modified, only replaced; for a
moment the old ones are in ``checkpoints.old``. A reader first opens all files of a checkpoint and
then reads, so it is not affected by what happens to the directory meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper._util.files import CheckpointError, digest, open_file, parse_json, sync
from sparsehyper.saving import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_state,
    notes_of,
    read_tensors,
    write_tensors,
)
from sparsehyper.training.evaluate import Evaluation
from sparsehyper.training.optim import moment_shapes

__all__ = ["CheckpointError"]

STATE_FILE = "training.json"
OPTIMIZER_FILE = "training.safetensors"
DIGESTS_FILE = "SHA256SUMS"
CHECKPOINTS, OLD_CHECKPOINTS = "checkpoints", "checkpoints.old"
_FORMAT = 1

# Files go missing only if the checkpoints are replaced while a reader opens them: it tries again.
_TRIES, _PAUSE = 20, 0.005


@dataclass
class TrainingState:
    """The state of training, apart from weights and optimiser.

    Attributes:
        step: number of updates made.
        accuracies: mean validation accuracy of every evaluation so far.
        best_step: number of updates made at the best evaluation.
        best: the best evaluation; ``None`` before the first.
    """

    step: int = 0
    accuracies: list[float] = field(default_factory=list)
    best_step: int = 0
    best: Evaluation | None = None

    def check_steps(self, steps: int) -> None:
        """Raise ``ValueError`` unless training can continue up to `steps` updates in total."""
        if steps < self.step:
            raise ValueError(f"`steps` is {steps}; the run has already made {self.step}")
        if steps == self.step and self.best is None:
            raise ValueError(
                f"`steps` is {steps}; the run has already made them but has no best evaluation, so "
                "give more steps"
            )


class Record(NamedTuple):
    """Size in bytes and SHA-256 of ``metrics.jsonl`` when a checkpoint was written."""

    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()

    def check(self, path: Path, data: bytes) -> None:
        """Raise ``CheckpointError`` unless the content of a file begins with the recorded bytes."""
        if hashlib.sha256(data[: self.size]).hexdigest() != self.sha256:
            raise CheckpointError(
                f"{path} is damaged: it is not what training wrote; restore it, or delete it to "
                "continue with a new record"
            )


class Checkpoint:
    """A verified checkpoint, open for reading; made by `open_checkpoint`.

    A context manager, which closes it.

    Attributes:
        directory: directory of the checkpoint.
        id: SHA-256 of its ``SHA256SUMS``, and so of all its files.
        state: the state of training.
        record: size and digest of ``metrics.jsonl``.
    """

    def __init__(self, directory: Path, opened: _OpenFiles, run: str) -> None:
        self.directory, self._files = directory, opened.files
        self.id = hashlib.sha256(opened.digests.encode()).hexdigest()
        for name, listed in opened.listed.items():
            if hashlib.file_digest(opened.files[name], "sha256").hexdigest() != listed:
                raise CheckpointError(
                    f"{directory / name} is damaged: it is not what training wrote, "
                    f"according to its {DIGESTS_FILE}"
                )
        path = directory / STATE_FILE
        record = parse_json(_read(opened.files[STATE_FILE]), path)
        try:
            if record["format"] != _FORMAT:
                raise CheckpointError(
                    f"{path} has format {record['format']!r}, this version reads format {_FORMAT}"
                )
            if record["run"] != run:
                raise CheckpointError(f"{directory} belongs to another run")
            self.state = _state(record)
            self._optimizer = record["optimizer"]
            self.record = Record(record["metrics"]["size"], record["metrics"]["sha256"])
            check_integer("size", self.record.size, minimum=0)
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from error

    def read_weights(self, model: nn.Module) -> None:
        """Load the weights into `model`.

        Raises:
            CheckpointError: the tensors, their layout or their tasks do not fit the model, or its
            frozen part is another.
        """
        path = self.directory / CONFIG_FILE
        try:
            config = parse_json(_read(self._files[CONFIG_FILE]), path)
            given, notes = dict(config.get("given", {})), notes_of(config)
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from error
        path = self.directory / WEIGHTS_FILE
        load_state(model, self._tensors(WEIGHTS_FILE), path, given, notes)

    def read(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the weights into `model`, and the optimiser's tensors into `optimizer`.

        Raises:
            CheckpointError: they belong to another optimiser or model.
        """
        self.read_weights(model)
        moments = self._moments(model, optimizer)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return read_tensors(_read(self._files[name]), self.directory / name)

    def _moments(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[int, dict[str, Tensor]]:
        """Read the optimiser's tensors, by number of the parameter.

        They are checked here, as fused optimisers do not check shapes and types.
        """
        path, kind = self.directory / OPTIMIZER_FILE, type(optimizer).__name__
        if self._optimizer != kind:
            raise CheckpointError(
                f"{path} belongs to the optimizer {self._optimizer}, this run uses {kind}"
            )
        tensors = self._tensors(OPTIMIZER_FILE)
        trained = dict(_optimized(model))
        index = {name: i for i, name in enumerate(trained)}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, moment = key.rpartition("/")
            if name not in index:
                raise CheckpointError(
                    f"{path} belongs to another model: this one trains no {name!r}"
                )
            moments.setdefault(index[name], {})[moment] = tensor
        for name, parameter in trained.items():
            found = moments.get(index[name])
            if found is not None:
                _check_moments(path, name, found, moment_shapes(optimizer, parameter))
        return moments


class _OpenFiles(NamedTuple):
    """All files of one checkpoint, open."""

    digests: str  # content of SHA256SUMS
    listed: dict[str, str]  # SHA-256 by file name, in SHA256SUMS
    files: dict[str, BufferedReader]  # by name; SHA256SUMS too


def open_checkpoint(run_directory: Path, name: str, run: str) -> Checkpoint:
    """Open a checkpoint of a run and verify all its files.

    Later reads give this checkpoint, whatever happens to its directory.

    Args:
        run_directory: directory of the run.
        name: ``"last"`` or ``"best"``.
        run: id of the run.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: a file is missing, was changed, or belongs to another run; or ``best`` is
            not the checkpoint of the best evaluation.
    """
    with ExitStack() as stack:
        directory, opened = _open_when_settled(run_directory, name, stack)
        checkpoint = Checkpoint(directory, opened, run)
        state = checkpoint.state
        if name == "best" and state.step != state.best_step:
            raise CheckpointError(
                f"{directory} is not the checkpoint of the run's best evaluation: it was written "
                f"after step {state.step}, the best was at step {state.best_step}"
            )
        stack.pop_all()
        return checkpoint


def checkpoints_of(run_directory: Path) -> Path:
    """The directory that holds a run's checkpoints at this moment."""
    place = run_directory / CHECKPOINTS
    return place if place.is_dir() else run_directory / OLD_CHECKPOINTS


def write_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    *,
    run: str,
    record: Record,
) -> None:
    """Write a checkpoint to a new directory, and return once it is on the disk.

    Args:
        directory: directory of the checkpoint.
        model: model with a method ``save(directory)``.
        optimizer: optimiser of the model's parameters.
        state: the state of training.
        run: id of the run.
        record: size and digest of ``metrics.jsonl``.
    """
    model.save(directory)  # type: ignore[operator]
    write_tensors(directory / OPTIMIZER_FILE, _optimizer_tensors(model, optimizer))
    (directory / OPTIMIZER_FILE).chmod(0o644)
    about = {
        "format": _FORMAT,
        "run": run,
        "optimizer": type(optimizer).__name__,
        "step": state.step,
        "accuracies": state.accuracies,
        "best_step": state.best_step,
        "best": state.best and state.best.to_dict(),
        "metrics": record._asdict(),
    }
    text = json.dumps(about, indent=1, allow_nan=False) + "\n"
    (directory / STATE_FILE).write_bytes(text.encode())
    files = sorted(directory.iterdir())
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in files)
    (directory / DIGESTS_FILE).write_bytes(sums.encode())
    for path in (*files, directory / DIGESTS_FILE, directory):
        sync(path)


def link_checkpoint(source: Path, destination: Path) -> None:
    """Make a directory of hard links to a checkpoint's files, and return once it is on the disk.

    Only files that ``SHA256SUMS`` lists are linked. They are copied if the file system has no hard
    links.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is a link or a special file, or the list is damaged.
    """
    destination.mkdir(parents=True)
    with ExitStack() as stack:
        for name, file in _open_files(source, stack).files.items():
            new = destination / name
            try:
                os.link(source / name, new, follow_symlinks=False)
            except (OSError, NotImplementedError):  # a system without hard links, or such ones
                file.seek(0)
                with new.open("xb") as copy:
                    shutil.copyfileobj(file, copy)
                sync(new)
    sync(destination)


def _open_when_settled(run_directory: Path, name: str, stack: ExitStack) -> tuple[Path, _OpenFiles]:
    """Open all files of one checkpoint; tries again if it is replaced meanwhile."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        directory = checkpoints_of(run_directory) / name
        try:
            return directory, _open_files(directory, stack)
        except FileNotFoundError as error:
            missing = error
    if directory.is_dir():
        raise CheckpointError(
            f"{directory / Path(missing.filename).name} is missing from the checkpoint, according "
            f"to its {DIGESTS_FILE}"
        )
    raise FileNotFoundError(f"{run_directory / CHECKPOINTS / name} is missing from the run")


def _open_files(directory: Path, stack: ExitStack) -> _OpenFiles:
    """Open all files of a checkpoint; none is left open if one is missing."""
    # Windows opens no directory; there the first file that is open keeps it where it is.
    is_directory = getattr(os, "O_DIRECTORY", None)
    folder = None if is_directory is None else os.open(directory, os.O_RDONLY | is_directory)
    try:
        with ExitStack() as opened:

            def open_here(name: str) -> BufferedReader:
                return opened.enter_context(open_file(directory / name, folder))

            sums = open_here(DIGESTS_FILE)
            text = _read(sums).decode(errors="replace")
            listed = _listed(directory / DIGESTS_FILE, text)
            files = {DIGESTS_FILE: sums, **{name: open_here(name) for name in listed}}
            stack.push(opened.pop_all())
            return _OpenFiles(text, listed, files)
    finally:
        if folder is not None:
            os.close(folder)


def _listed(path: Path, text: str) -> dict[str, str]:
    """Parse a ``SHA256SUMS``: digests by file name."""
    lines = re.findall(r"^([0-9a-f]{64})  (\w[\w.-]*)$", text, re.MULTILINE | re.ASCII)
    listed = {name: sha256 for sha256, name in lines}
    if text != "".join(f"{sha256}  {name}\n" for name, sha256 in listed.items()):
        raise CheckpointError(
            f"{path} is damaged: each line must be a SHA-256 and the name of a file beside it"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, OPTIMIZER_FILE):
        if name not in listed:
            raise CheckpointError(f"{path} is damaged: it does not list {name}")
    return listed


def _read(file: BufferedReader) -> bytes:
    file.seek(0)
    return file.read()


def _state(record: Mapping[str, Any]) -> TrainingState:
    best = record["best"]
    state = TrainingState(
        step=record["step"],
        accuracies=[*record["accuracies"]],
        best_step=record["best_step"],
        best=None if best is None else Evaluation.from_dict(best),
    )
    check_integer("step", state.step, minimum=0)
    check_integer("best_step", state.best_step, minimum=0)
    found = state.best
    measured = [] if found is None else [*found.accuracies, *found.losses, *(found.entropies or ())]
    for number in (*state.accuracies, *measured):
        check_number("accuracies", number)
    return state


def _check_moments(
    path: Path,
    name: str,
    found: dict[str, Tensor],
    expected: dict[str, tuple[list[int], torch.dtype]],
) -> None:
    if found.keys() != expected.keys():
        raise CheckpointError(
            f"{path} is damaged: for {name!r} it has {sorted(found)}, not {sorted(expected)}"
        )
    for key, (shape, dtype) in expected.items():
        tensor = found[key]
        if list(tensor.shape) != shape or tensor.dtype != dtype:
            raise CheckpointError(
                f"{path} is damaged: {key!r} of {name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"not {dtype} {shape}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {key!r} of {name!r} is not finite")


def _optimized(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    # An optimiser has no tensors for a parameter before that parameter's first gradient.
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in _optimized(model)
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
