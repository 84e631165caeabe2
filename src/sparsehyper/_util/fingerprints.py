"""Fingerprints of tensors, by which a file refers to values that it does not hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_PIECE = 1 << 24  # elements to bring to the CPU at a time


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor's type, shape and bytes, in hex; equal on every device.

    >>> one, same, other = fingerprints({"a": torch.zeros(2), "b": torch.zeros(2),
    ...                                  "c": torch.zeros(2, 1)}).values()
    >>> one == same, one == other
    (True, False)
    """
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return dict(zip(tensors, pool.map(_fingerprint, tensors.values()), strict=True))


def _fingerprint(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for part in _parts(tensor.detach()):
        digest.update(f"{part.dtype} {list(part.shape)}".encode())
        # In pieces: a large tensor on a GPU is never on the CPU as a whole.
        for piece in part.reshape(-1).split(_PIECE):
            digest.update(memoryview(piece.cpu().contiguous().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a subclass, such as a quantised weight, consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))
