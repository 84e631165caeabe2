"""Memory for large arrays on the CPU, kept from one step to the next.

The C library gives blocks of 32 MiB and more back to the system as soon as they are freed, and the
system hands them out again page by page, zeroed: writing to a fresh block takes two to three times
as long as writing to a used one. Blocks of that size are therefore kept here, and used again once
no tensor needs them. They are freed with the last layer that holds this memory.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LARGE = 32 << 20  # bytes; the C library keeps smaller blocks by itself
MOST_IDLE = 512 << 20  # bytes kept though no tensor uses them


class _Block(NamedTuple):
    array: np.ndarray
    user: Callable[[], Any]  # returns None once no tensor is left that uses the array


class Memory:
    """Large blocks in use, and blocks that may be used again."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []  # the last one lent is the last
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A float32 tensor with arbitrary contents."""
        size = 4 * math.prod(shape)
        if size < LARGE:
            return torch.empty(shape)
        if size > MOST_IDLE:
            return torch.from_numpy(_fresh(size).reshape(shape))
        with self._lock:
            array = self._take(size)
            lent = array.reshape(shape)
            self._blocks.append(_Block(array, weakref.ref(lent)))
        return torch.from_numpy(lent)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_memory, ()

    def _take(self, size: int) -> np.ndarray:
        """An idle block of this size, removed from the list, or a fresh one."""
        idle = [block for block in self._blocks if block.user() is None]
        fitting = [block for block in idle if block.array.nbytes == size]
        excess = sum(block.array.nbytes for block in idle) + size - MOST_IDLE
        gone = fitting[-1:]
        while not fitting and idle and excess > 0:
            gone.append(idle.pop(0))
            excess -= gone[-1].array.nbytes
        self._blocks = [block for block in self._blocks if not any(block is old for old in gone)]
        return fitting[-1].array if fitting else _fresh(size)


def shared_memory() -> Memory:
    """The memory that all layers share, for as long as one of them holds it."""
    global _shared
    memory = _shared()
    if memory is None:
        memory = Memory()
        _shared = weakref.ref(memory)
    return memory


_shared: weakref.ReferenceType[Memory] = weakref.ref(Memory())


def _fresh(size: int) -> np.ndarray:
    return np.empty(size // 4, np.float32)  # NumPy asks for huge pages, which come faster
