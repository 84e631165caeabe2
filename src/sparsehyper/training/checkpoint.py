"""One checkpoint: a directory that holds a model and everything its training needs to go on.

========================  ==================================================================
``config.json``           written by the model's own ``save``, as is the next
``model.safetensors``     the weights
``training.safetensors``  the optimiser's tensors, as ``<parameter>/<name>``
``training.json``         step, accuracies so far, best evaluation
``SHA256SUMS``            digests of the files above, as ``sha256sum --check`` reads them
========================  ==================================================================

No pickle: reading a checkpoint runs no code from it. What is random in training is a pure function
of seed and step, so there is no generator state to keep.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsehyper._files import sync
from sparsehyper._persistence import load_state
from sparsehyper.training.evaluate import Evaluation

STATE_FILE = "training.json"
WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "training.safetensors"
DIGESTS_FILE = "SHA256SUMS"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another model; the message names the file."""


@dataclass
class TrainingState:
    """Where training stands, apart from weights and optimiser.

    Attributes:
        step: updates made.
        accuracies: mean validation accuracy of every evaluation so far.
        best_step: updates made when the best of them was reached.
        best: that evaluation; ``None`` before the first.
    """

    step: int = 0
    accuracies: list[float] = field(default_factory=list)
    best_step: int = 0
    best: Evaluation | None = None

    def check_steps(self, steps: int) -> None:
        """Raise ``ValueError`` unless training from here can end after `steps` updates in all."""
        if steps < self.step:
            raise ValueError(f"`steps` is {steps}; the run has already made {self.step}")
        if steps == self.step and self.best is None:
            raise ValueError(
                f"`steps` is {steps}; the run has already made them and stopped before its first "
                "evaluation, so it needs more"
            )


def write_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState
) -> None:
    """Write a new directory, and return once it is on the disk."""
    model.save(directory)  # type: ignore[operator]
    kind = {"optimizer": type(optimizer).__name__}
    save_file(_optimizer_tensors(model, optimizer), directory / OPTIMIZER_FILE, metadata=kind)
    (directory / OPTIMIZER_FILE).chmod(0o644)
    record = {
        "format": FORMAT,
        "step": state.step,
        "accuracies": state.accuracies,
        "best_step": state.best_step,
        "best": state.best and state.best.to_dict(),
    }
    (directory / STATE_FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    digests = [f"{digest(path)}  {path.relative_to(directory).as_posix()}\n" for path in files]
    (directory / DIGESTS_FILE).write_text("".join(digests), encoding="utf-8")
    for path in (*files, directory / DIGESTS_FILE, directory):
        sync(path)


def read_state(directory: Path) -> TrainingState:
    """Where training stood, after a check that every file is as it was written.

    Raises:
        CheckpointError: a file is missing, or not what was written.
    """
    _check_digests(directory)
    path = directory / STATE_FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {record['format']}, this version reads format {FORMAT}"
        )
    return TrainingState(
        step=record["step"],
        accuracies=record["accuracies"],
        best_step=record["best_step"],
        best=record["best"] and Evaluation.from_dict(record["best"]),
    )


def read_weights(directory: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint, whole by `read_state`, into `model`.

    Raises:
        CheckpointError: its tensors are not the model's.
    """
    path = directory / WEIGHTS_FILE
    tensors = load_file(path)
    try:
        load_state(model, tensors, str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def read_optimizer(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimiser's tensors of a checkpoint, whole by `read_state`.

    Raises:
        CheckpointError: they are of another optimiser or model.
    """
    path = directory / OPTIMIZER_FILE
    tensors, kind = load_file(path), type(optimizer).__name__
    with safe_open(path, "pt") as file:
        written = (file.metadata() or {}).get("optimizer")
    if written != kind:
        raise CheckpointError(f"{path} is of the optimizer {written}, this run uses {kind}")
    index = {name: i for i, (name, _) in enumerate(_optimized(model))}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        if name not in index:
            raise CheckpointError(f"{path} is of another model: this one trains no {name!r}")
        moments.setdefault(index[name], {})[moment] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _optimized(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    # An optimiser starts its record of a parameter at that parameter's first gradient.
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in _optimized(model)
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _check_digests(directory: Path) -> None:
    listed = {STATE_FILE, WEIGHTS_FILE, OPTIMIZER_FILE}
    try:
        lines = (directory / DIGESTS_FILE).read_text(encoding="utf-8").splitlines()
        digests = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / DIGESTS_FILE} cannot be read: {error}") from error
    for name in sorted(listed | digests.keys()):
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the checkpoint")
        if digest(file) != digests.get(name):
            raise CheckpointError(f"{file} is damaged: it is not what training wrote")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
