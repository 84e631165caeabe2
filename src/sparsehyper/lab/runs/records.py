"""Sealed records with tensors: ``NAME.json``, and ``NAME.safetensors`` whose digest it contains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from sparsehyper._util.files import (
    CheckpointError,
    digest,
    read_file,
    read_sealed,
    replaced,
    write_sealed,
)
from sparsehyper.saving import read_tensors

_SUFFIX = ".safetensors"


def write_record(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a record and its tensors, in place of older ones.

    Args:
        path: the record's file.
        record: JSON-ready values, with their ``format``.
        tensors: the tensors.
    """
    with replaced(path.with_suffix(_SUFFIX)) as file:
        file.write(safetensors.torch.save(dict(tensors)))
    write_sealed(path, {**record, "tensors": digest(path.with_suffix(_SUFFIX))})


def read_record(path: Path, formats: tuple[int, ...]) -> dict[str, Any]:
    """Read a record without its tensors.

    Args:
        path: the record's file.
        formats: the formats that are known; the last is the current one.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is damaged, or of another format.
    """
    record = read_sealed(path)
    if record.get("format") not in formats:
        raise CheckpointError(
            f"{path} has format {record.get('format')!r}, this version reads format {formats[-1]}"
        )
    return record


def tensors_of(record: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a record, which is in the file ``path``, sorted by name.

    Raises:
        CheckpointError: their file is missing or damaged, or of another record.
    """
    file = path.with_suffix(_SUFFIX)
    if not file.exists():
        raise CheckpointError(f"{file} is missing from the run")
    data = read_file(file)
    if hashlib.sha256(data).hexdigest() != record.get("tensors"):
        raise CheckpointError(f"{file} is damaged: it is not what was written")
    return read_tensors(data, file)
