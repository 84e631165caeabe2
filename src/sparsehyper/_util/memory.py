"""A pool of memory for large arrays on the CPU, which are used again from step to step.

The C library returns large blocks to the system when they are freed (blocks of 32 MiB and more
always, smaller ones depending on the heap). The system then hands out zeroed pages, one by one, so
writing to a fresh block takes two to three times as long as writing to a used one. The pool keeps
large blocks and uses them again once no tensor needs them. It is freed with the last layer or
target that holds a reference to it.

There is no lock, because a thread may be stopped anywhere: by a signal whose handler computes too,
or by a fork that leaves it behind. To take a block is to delete it from a dict, which is a single
operation of the interpreter; only one thread succeeds.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_POOLED_BYTES = 8 << 20  # smaller tensors do not use the pool

_CPU = torch.device("cpu")


class _Block:
    """An array that was lent; it compares by identity."""

    def __init__(self, array: np.ndarray, lent: np.ndarray) -> None:
        self.array = array
        self.user = weakref.ref(lent)  # returns None once no tensor uses the array


class Memory:
    """Large blocks that are in use, and idle ones that may be used again.

    Their total size never exceeds the largest size that was in use at one time.
    """

    def __init__(self) -> None:
        self._blocks: dict[_Block, None] = {}  # in the order of lending
        self._peak = 0  # largest number of bytes in use at one time

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A float32 tensor with arbitrary contents."""
        numel = math.prod(shape)
        if 4 * numel < MIN_POOLED_BYTES:
            return torch.empty(shape, dtype=torch.float32, device=_CPU)
        array = self._take(numel)
        lent = array[:numel].reshape(shape)
        self._blocks[_Block(array, lent)] = None
        return torch.from_numpy(lent)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_memory, ()

    def _take(self, numel: int) -> np.ndarray:
        """Take the smallest idle block of up to twice the size, or a new one."""
        blocks = list(self._blocks)
        idle = [block for block in blocks if block.user() is None]
        fitting = [block for block in idle if numel <= block.array.size <= 2 * numel]
        for block in sorted(fitting, key=lambda block: block.array.size):
            if self._claim(block):
                return block.array
        held = sum(block.array.nbytes for block in blocks) + 4 * numel
        self._peak = max(self._peak, held - sum(block.array.nbytes for block in idle))
        for block in idle:
            if held <= self._peak:
                break
            self._claim(block)
            held -= block.array.nbytes
        return np.empty(numel, np.float32)  # NumPy asks for huge pages, which are faster to get

    def _claim(self, block: _Block) -> bool:
        """Remove a block from the pool; return False if another thread was faster."""
        try:
            del self._blocks[block]
        except KeyError:
            return False
        return True


def empty_as(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor with arbitrary contents and the device and dtype of another."""
    if tensor.is_cpu and tensor.dtype == torch.float32:
        return shared_memory().empty(shape)
    return tensor.new_empty(shape)


def shared_memory() -> Memory:
    """The pool that all layers and targets share; a new one if nobody holds a reference."""
    global _shared
    memory = _shared()
    if memory is None:
        memory = Memory()
        _shared = weakref.ref(memory)
    return memory


_shared: weakref.ReferenceType[Memory] = weakref.ref(Memory())
