"""Copies that cost a GPU little: none is waited for, and many small ones share a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device.

    A copy from the CPU to a GPU goes through pinned memory, so that neither of the two waits.

    >>> to_device(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A contiguous copy of each tensor; the tensors are on one device."""
    if not tensors or not tensors[0].is_cuda:
        return [tensor.clone() for tensor in tensors]
    new = [tensor.new_empty(tensor.shape) for tensor in tensors]
    copy_all(new, tensors)
    return new


def copy_all(places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy each tensor to its place; on a GPU in one launch for all of a dtype.

    >>> places = [torch.zeros(2), torch.zeros((), dtype=torch.int64)]
    >>> copy_all(places, [torch.ones(2), torch.tensor(5)])
    >>> places
    [tensor([1., 1.]), tensor(5)]
    """
    if not places or not places[0].is_cuda:
        torch._foreach_copy_(list(places), list(tensors))
        return
    pairs = list(zip(places, tensors, strict=True))
    for kinds in {(place.dtype, tensor.dtype): None for place, tensor in pairs}:
        some = [(place, t) for place, t in pairs if (place.dtype, t.dtype) == kinds]
        torch._foreach_copy_([place for place, _ in some], [tensor for _, tensor in some])
