"""Memory for large arrays on the CPU, kept from one step to the next.

The C library gives large blocks back to the system when they are freed (those of 32 MiB and more
always, smaller ones as its heap happens to lie), and the system hands them out again page by page,
zeroed: writing to a fresh block takes two to three times as long as writing to a used one. Large
blocks are therefore kept here, and used again once no tensor needs them. They are freed with the
last layer that holds this memory.
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

LARGE = 8 << 20  # bytes


class _Block(NamedTuple):
    array: np.ndarray
    user: Callable[[], Any]  # returns None once no tensor is left that uses the array


class Memory:
    """Large blocks in use, and blocks that may be used again.

    In all they never take more than was in use at the busiest moment.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []  # the last one lent is the last
        self._most = 0  # bytes in use at the busiest moment
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A float32 tensor with arbitrary contents."""
        numel = math.prod(shape)
        if 4 * numel < LARGE:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        with self._lock:
            array = self._take(numel)
            lent = array[:numel].reshape(shape)
            self._blocks.append(_Block(array, weakref.ref(lent)))
        return torch.from_numpy(lent)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_memory, ()

    def _take(self, numel: int) -> np.ndarray:
        """The smallest idle block of up to twice the size, taken off the list, or a new one."""
        idle = [block for block in self._blocks if block.user() is None]
        fitting = [block for block in idle if numel <= block.array.size <= 2 * numel]
        if fitting:
            gone = [min(fitting, key=lambda block: block.array.size)]
            array = gone[0].array
        else:
            held = sum(block.array.nbytes for block in self._blocks) + 4 * numel
            self._most = max(self._most, held - sum(block.array.nbytes for block in idle))
            gone = []
            while held > self._most:
                gone.append(idle.pop(0))
                held -= gone[-1].array.nbytes
            array = np.empty(numel, np.float32)  # NumPy asks for huge pages, which come faster
        self._blocks = [block for block in self._blocks if not any(block is old for old in gone)]
        return array


def empty_as(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor with arbitrary contents, on the device and of the dtype of another."""
    if tensor.is_cpu and tensor.dtype == torch.float32:
        return shared_memory().empty(shape)
    return tensor.new_empty(shape)


def shared_memory() -> Memory:
    """The memory that all layers share, for as long as one of them holds it."""
    global _shared
    memory = _shared()
    if memory is None:
        memory = Memory()
        _shared = weakref.ref(memory)
    return memory


_shared: weakref.ReferenceType[Memory] = weakref.ref(Memory())
