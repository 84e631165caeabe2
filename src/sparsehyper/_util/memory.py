"""Memory for large arrays on the CPU, kept from one step to the next.

The C library gives large blocks back to the system when they are freed (those of 32 MiB and more
always, smaller ones as its heap happens to lie), and the system hands them out again page by page,
zeroed: writing to a fresh block takes two to three times as long as writing to a used one. Large
blocks are therefore kept here, and used again once no tensor needs them. They are freed with the
last layer that holds this memory.

There is no lock: a thread may be stopped anywhere, by a signal whose handler computes as well, or
by a fork after which it does not exist. Whoever takes a block off the list, which is one operation
of the interpreter, has it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 8 << 20  # bytes

_CPU = torch.device("cpu")


class _Block:
    """An array that was lent; equal to itself alone."""

    def __init__(self, array: np.ndarray, lent: np.ndarray) -> None:
        self.array = array
        self.user = weakref.ref(lent)  # returns None once no tensor is left that uses the array


class Memory:
    """Large blocks in use, and blocks that may be used again.

    In all they never take more than was in use at the busiest moment.
    """

    def __init__(self) -> None:
        self._blocks: dict[_Block, None] = {}  # the last one lent is the last
        self._most = 0  # bytes in use at the busiest moment

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A float32 tensor with arbitrary contents."""
        numel = math.prod(shape)
        if 4 * numel < LARGE:
            return torch.empty(shape, dtype=torch.float32, device=_CPU)
        array = self._take(numel)
        lent = array[:numel].reshape(shape)
        self._blocks[_Block(array, lent)] = None
        return torch.from_numpy(lent)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_memory, ()

    def _take(self, numel: int) -> np.ndarray:
        """The smallest idle block of up to twice the size, taken off the list, or a new one."""
        blocks = list(self._blocks)
        idle = [block for block in blocks if block.user() is None]
        fitting = [block for block in idle if numel <= block.array.size <= 2 * numel]
        for block in sorted(fitting, key=lambda block: block.array.size):
            if self._claim(block):
                return block.array
        held = sum(block.array.nbytes for block in blocks) + 4 * numel
        self._most = max(self._most, held - sum(block.array.nbytes for block in idle))
        for block in idle:
            if held <= self._most:
                break
            self._claim(block)
            held -= block.array.nbytes
        return np.empty(numel, np.float32)  # NumPy asks for huge pages, which come faster

    def _claim(self, block: _Block) -> bool:
        """Take the block off the list, unless another thread was faster."""
        try:
            del self._blocks[block]
        except KeyError:
            return False
        return True


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
