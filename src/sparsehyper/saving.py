"""Models on disk: a directory with ``config.json`` and ``model.safetensors``, no pickle.

``config.json`` contains the digest of the weights, and ends with its own digest. A directory is
written over in three steps, and is that of the old or of the new model after each: the new weights
as ``model.safetensors.new``, ``config.json``, and the weights get their name. Tensors that the
caller supplied and training has not changed, such as the frozen part of a target, need not be
stored; ``config.json`` then lists their SHA-256 under ``given``. Tied tensors are written once, by
their first name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_type
from sparsehyper._util.files import (
    CheckpointError,
    digest,
    read_file,
    read_sealed,
    rename,
    sealed,
    sync,
    whole,
    write_sealed,
)
from sparsehyper._util.fingerprints import fingerprints
from sparsehyper._util.notes import KEYS, NOTES, as_bytes, from_bytes
from sparsehyper._util.text import listed
from sparsehyper.conditioning import Conditioner

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_NEW_WEIGHTS = f"{WEIGHTS_FILE}.new"


def save(
    directory: str | os.PathLike[str],
    config: dict[str, Any],
    model: nn.Module,
    given: Mapping[str, str] = MappingProxyType({}),
    *,
    overwrite: bool = False,
) -> None:
    """Write a model's directory, which appears, or changes, complete or not at all.

    Args:
        directory: a new directory.
        config: JSON-ready description of the model.
        model: the model.
        given: fingerprints of tensors that the model was given, by name. Those that still have
            them and are frozen are not written.
        overwrite: the directory may hold another model, which is replaced.

    Raises:
        FileExistsError: ``directory`` exists; with ``overwrite``, if it holds other files than
            those of a model.
    """
    path = Path(directory)
    replacing = overwrite and os.path.lexists(path)
    if replacing:
        _check_own(path)
    state, notes = _parts(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    first = _first_names(state)
    state = {name: tensor for name, tensor in state.items() if first[name] == name}
    frozen = {name: state[name] for name in given if name in state and name not in trained}
    now = fingerprints(frozen)
    given = {name: found for name, found in now.items() if given[name] == found}
    held = _without_sharing({name: t for name, t in state.items() if name not in given})
    record = {
        "format": FORMAT,
        "torch": torch.__version__,
        **config,
        **notes,
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "given": given,
    }
    if replacing:
        _replace(path, record, held)
        return
    with whole("directory", path) as new:
        new.mkdir()
        write_tensors(new / WEIGHTS_FILE, held)
        record["weights"] = digest(new / WEIGHTS_FILE)
        (new / CONFIG_FILE).write_bytes(sealed(record).encode())


def read(
    directory: str | os.PathLike[str], *, follow_links: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model's directory: its configuration and its tensors.

    Args:
        directory: the directory.
        follow_links: accept links to files, of which the hub's cache consists.

    Raises:
        FileNotFoundError: no such directory, or it lacks a file.
        CheckpointError: a damaged file or a format this version does not know.
    """
    path = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).exists():
            raise FileNotFoundError(f"{str(path)!r} is not a saved model: it has no {name}")
    config = read_sealed(path / CONFIG_FILE, follow_links=follow_links)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG_FILE} has format {config.get('format')!r}, this version reads format "
            f"{FORMAT}"
        )
    for name in (WEIGHTS_FILE, _NEW_WEIGHTS):  # the second, if writing over the first stopped
        if (path / name).exists():
            data = read_file(path / name, follow_links=follow_links)
            if hashlib.sha256(data).hexdigest() == config.get("weights"):
                return config, read_tensors(data, path / name)
    raise CheckpointError(f"{path / WEIGHTS_FILE} is damaged: it is not what was saved")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the file cannot be written, as on a full disk.
    """
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata)
    except safetensors.SafetensorError as error:  # the text has the system's error number
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from error


def read_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, sorted by name.

    Args:
        data: content of the file.
        path: path of the file, for errors.

    Raises:
        CheckpointError: a damaged file.
    """
    try:
        return dict(sorted(safetensors.torch.load(data).items()))
    # Valid files with tensors that PyTorch cannot hold raise errors of other types.
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load_state(
    model: nn.Module,
    state: dict[str, Tensor],
    path: Path,
    given: Mapping[str, str] = MappingProxyType({}),
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """``load_state_dict`` with errors that name the file and the first tensor that does not fit.

    Args:
        model: the model; it already has the tensors that the file does not hold.
        state: the tensors of the file.
        path: path of the file, for errors.
        given: fingerprints of the tensors that the file does not hold, by name.
        notes: what `notes_of` finds in the configuration.

    Raises:
        CheckpointError: a missing or unexpected tensor, a tensor of another shape or dtype, one
            with NaN or infinity where the model's is finite, other tensors than those that
            ``given`` describes, or tasks of other names or another layout. Nothing is loaded then.
    """
    expected, own = _parts(model)
    later = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, Conditioner)
        for name in module.later
    }
    firsts = _first_names(expected)
    # A tied tensor is there by any of its names: which is the first depends on the target.
    there = {first for name, first in firsts.items() if name in state or name in given}
    for name, first in firsts.items():
        if name in state:
            check_like(name, state[name], expected[name], path)
        elif first not in there and name not in later:
            raise CheckpointError(f"{path} does not fit this model: it lacks the tensor {name!r}")
    for name in (*state, *given):
        if name not in expected:
            raise CheckpointError(f"{path} does not fit this model: unexpected tensor {name!r}")
    _check_given(given, fingerprints({name: expected[name] for name in given}), path)
    # Files lack the version numbers of modules, without which some modules expect an older format.
    state = OrderedDict(state)
    state._metadata = expected._metadata  # type: ignore[attr-defined]
    if notes:
        # Whoever made the model may have numbered its tasks, so it does not take other names.
        names = own.get("task_names")
        if notes.get("task_names", names) != names:
            raise CheckpointError(
                f"{path} does not fit this model: its tasks are {listed(notes['task_names'])}, the "
                f"model's are {listed(names or [])}; give a model of the same tasks in their order"
            )
        state[NOTES] = as_bytes(dict(notes))
    try:
        model.load_state_dict(state, strict=False)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this model: {error}") from error


def _check_given(given: Mapping[str, str], found: Mapping[str, str], path: Path) -> None:
    other = [name for name in given if found[name] != given[name]]
    if other:
        raise CheckpointError(
            f"{path} was trained over another frozen module: {len(other)} of {len(given)} frozen "
            f"tensors differ, the first is {other[0]!r}; give the module that it was trained "
            'over, with the same values and type (a file saved with `frozen="store"` holds them)'
        )


def check_like(name: str, tensor: Tensor, own: Tensor, path: Path) -> None:
    """Raise ``CheckpointError`` unless a file's tensor can replace a model's own."""
    for what, found, expected in (
        ("shape", list(tensor.shape), list(own.shape)),
        ("dtype", tensor.dtype, own.dtype),
    ):
        if found != expected:
            raise CheckpointError(
                f"{path} does not fit this model: tensor {name!r} has {what} {found}, the model's "
                f"is {expected}"
            )
    # Masks may contain infinities from the start.
    if not tensor.isfinite().all() and own.isfinite().all():
        raise CheckpointError(f"{path} is damaged: tensor {name!r} holds NaN or infinity")


def notes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The notes on a state in files, which ``config.json`` holds.

    Raises:
        TypeError: they are damaged.
    """
    notes = {key: config[key] for key in KEYS if key in config}  # older files have fewer
    check_type("task_names", notes.get("task_names", []), list, "a list")
    return notes


def _parts(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's tensors and notes."""
    state = model.state_dict()
    notes = state.pop(NOTES, None)
    return state, {} if notes is None else from_bytes(notes)


def _check_own(path: Path) -> None:
    """Raise ``FileExistsError`` unless a directory holds a model and nothing else."""
    own = {CONFIG_FILE, WEIGHTS_FILE, _NEW_WEIGHTS, CARD_FILE}
    others = [f.name for f in path.iterdir() if f.name not in own and not f.name.startswith(".")]
    empty = not any(path.iterdir())
    if path.is_symlink() or others or not (empty or (path / CONFIG_FILE).exists()):
        found = f"it holds {others[0]!r}" if others else "it is not the directory of a model"
        raise FileExistsError(f"`directory` {str(path)!r} is not written over: {found}")


def _replace(path: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    new = path / _NEW_WEIGHTS
    _settle(path)
    try:
        write_tensors(new, tensors)
        new.chmod(0o644)
        sync(new)
        write_sealed(path / CONFIG_FILE, {**record, "weights": digest(new)})
    finally:
        _settle(path)


def _settle(path: Path) -> None:
    """Give new weights their name if ``config.json`` is already theirs; otherwise delete them."""
    new = path / _NEW_WEIGHTS
    if not os.path.lexists(new):
        return
    if not new.is_symlink() and digest(new) == read_sealed(path / CONFIG_FILE).get("weights"):
        rename(new, path / WEIGHTS_FILE, replace=True)
    else:
        new.unlink()
    sync(path)


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor, which differs if it is tied."""
    first: dict[Any, str] = {}
    return {
        name: first.setdefault(
            (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if _is_dense(tensor) and tensor.numel()
            else name,
            name,
        )
        for name, tensor in state.items()
    }


def _is_dense(tensor: Any) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided


def _without_sharing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without shared memory (of overlapping views), which safetensors refuses."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not _is_dense(tensor):
            found = tensor.layout if type(tensor) is Tensor else type(tensor).__name__
            raise ValueError(
                f"{name!r} cannot be saved: it must be a dense tensor, got {found}; if the target "
                "can compute this buffer again, register it with persistent=False"
            )
        dense = tensor.detach().contiguous()
        storage = dense.untyped_storage().data_ptr()
        separate[name] = dense.clone() if storage in storages else dense
        storages.add(storage)
    return separate
