"""Unpacking on a GPU: as few launches as possible, whatever the number of tensors.

A launch costs microseconds there, as much as moving a million numbers. So the factors and means
are vectors as long as θ, all tensors are scaled and shifted at once, and they are parts of one
block of memory. The gradients are joined by one concatenation. The plain operations used here
never wait for the device, so a CUDA graph can capture them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

# Every tensor starts at a multiple of this: cuBLAS and cuDNN have faster kernels then.
ALIGNMENT = 64  # bytes


class Blocks:
    """A plan of tensors on one device, with what is needed to divide and join them there.

    Args:
        sizes, shapes, stds, means: as in `UnpackPlan`.
        like: a tensor of the device and dtype.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shapes: Sequence[torch.Size],
        stds: Sequence[float],
        means: Sequence[float],
        like: Tensor,
    ) -> None:
        self._sizes, self._shapes = sizes, shapes
        self._strides = [strides_of(shape) for shape in shapes]
        self._unit = ALIGNMENT // like.element_size()
        self._stds = _repeated(stds, sizes, like) if any(std != 1 for std in stds) else None
        self._means = _repeated(means, sizes, like) if any(means) else None
        self._device = like.device

    def divide(self, raw: Tensor, base: Tensor | None) -> tuple[Tensor, ...]:
        """Tensors ``[…, *shape]`` from ``raw`` ``[…, numel]``, with ``base`` ``[numel]`` added.

        The tensors are parts of one block of memory, but to autograd they are not views, so a
        target may write to each of them. They are contiguous if there is one vector; of several,
        each is.
        """
        lead, numel = raw.shape[:-1], raw.shape[-1]
        width = -(-numel // self._unit) * self._unit  # every row is aligned too
        block = raw.new_empty(*lead, width)
        theta = block[..., :numel]
        self._scale(raw, self._means if base is None else base.to(raw.dtype), theta)
        starts, index = self._places
        if index is not None:
            block, width = theta.index_select(-1, index), starts[-1]
        parts = list(zip(self._shapes, self._strides, starts, strict=False))
        if lead:
            steps = [step * width for step in strides_of(lead)]
            parts = [(lead + shape, steps + strides, start) for shape, strides, start in parts]
        # `data` makes each a tensor that counts its own writes.
        return tuple([block.as_strided(*part).data for part in parts])

    def join(self, tensors: Sequence[Tensor], lead: torch.Size) -> Tensor:
        """The inverse of `divide` without factors, differentiable: ``[*lead, numel]``."""
        if not lead and len(tensors) > 1:  # the same, with half the work on the host
            return torch._utils._flatten_dense_tensors(tensors)
        flat = [t.reshape(*lead, size) for t, size in zip(tensors, self._sizes, strict=True)]
        return torch.cat(flat, -1)

    def scaled(self, flat: Tensor) -> Tensor:
        """The vectors ``[…, numel]`` times the factors, differentiable."""
        return flat if self._stds is None else flat * self._stds

    @cached_property
    def _places(self) -> tuple[list[int], Tensor | None]:
        """Where the tensors start, and the indices into θ that put them there if it is not so."""
        starts, aligned = starts_of(self._sizes), starts_of(self._sizes, self._unit)
        if not any(
            start % self._unit for start, size in zip(starts, self._sizes, strict=False) if size
        ):
            return starts, None
        index = torch.zeros(aligned[-1], dtype=torch.int64, device="cpu")
        for place, start, size in zip(aligned, starts, self._sizes, strict=False):
            index[place : place + size] = torch.arange(start, start + size)
        return aligned, _kept(index, self._device)

    def _scale(self, raw: Tensor, added: Tensor | None, out: Tensor) -> None:
        stds = self._stds
        if stds is not None and added is not None:
            torch.addcmul(added, raw, stds, out=out)
        elif stds is not None:
            torch.mul(raw, stds, out=out)
        elif added is not None:
            torch.add(raw, added, out=out)
        else:
            out.copy_(raw)


def _repeated(values: Sequence[float], sizes: Sequence[int], like: Tensor) -> Tensor:
    """A vector with the value of each tensor at each of its elements."""
    each = torch.tensor(values, dtype=like.dtype, device="cpu")
    return _kept(each.repeat_interleave(torch.tensor(sizes, device="cpu")), like.device)


def _kept(tensor: Tensor, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # later calls may need gradients
        return tensor.to(device, copy=True)


def starts_of(sizes: Sequence[int], unit: int = 1) -> list[int]:
    """Where each of some consecutive tensors starts, at multiples of ``unit``, and the end.

    >>> starts_of([3, 2]), starts_of([3, 2], 4)
    ([0, 3, 5], [0, 4, 8])
    """
    return [0, *accumulate(-(-size // unit) * unit for size in sizes)]


def strides_of(shape: Sequence[int]) -> list[int]:
    """Strides of a contiguous tensor.

    >>> strides_of([2, 3, 4])
    [12, 4, 1]
    """
    strides, stride = [], 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return strides[::-1]
