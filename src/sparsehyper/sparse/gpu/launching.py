"""Kernels ready to launch.

The layers of a generator are many, so what a launch costs the host counts. Here a launch keeps its
compiled kernel and its numbers; only the addresses are new in each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# Parameters of the kernels; the others are pointers to numbers of x's dtype.
_SIZES = {"rows", "n", "m", "k", "copy", "tap", "pair", "width", "period", "blocks"}
_TUPLES = {"shifts", "periods"}  # of several such numbers
_INTEGERS = {"tables", "sources", "starts", "order"}  # pointers to int32
_MANY = {"weights", "tables", "grads"}  # one pointer for each layer

AVAILABLE = find_spec("triton") is not None

Pointer = int | Tensor | None


def pointer(tensor: Tensor) -> Pointer:
    """What a kernel takes for a contiguous tensor: its address."""
    return tensor.data_ptr() if tensor.is_cuda else tensor  # Triton's interpreter takes tensors


def pointers_into(flat: Tensor, places: Sequence[int]) -> list[Pointer]:
    """The same from each of several places on."""
    if not flat.is_cuda:
        return [flat[place:] for place in places]
    address, size = flat.data_ptr(), flat.itemsize
    return [address + size * place for place in places]


class Launch:
    """A kernel with all its arguments but the pointers.

    Args:
        name: the kernel.
        programs: number of programs.
        sizes: the integers among its arguments, each below 2³¹; a kernel that takes shifts or
            periods gets a tuple of them first.
        dtype: dtype of x.
        layers: number of layers or of shifts, for a kernel of several.
        warps: number of warps of a program.
        constants: its compile-time constants.
    """

    def __init__(
        self,
        name: str,
        programs: int,
        sizes: tuple[int | tuple[int, ...], ...],
        dtype: torch.dtype,
        *,
        layers: int = 1,
        warps: int = 4,
        **constants: int,
    ) -> None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        kernel, tail = _compiled(name, dtype, device, layers, warps, tuple(constants.items()))
        self._arguments = (*sizes, *tail)
        self._launch = kernel[(programs, 1, 1)] if programs else None

    def __call__(self, *pointers: Pointer | tuple[Pointer, ...]) -> None:
        """Launch on the current device and stream."""
        if self._launch is not None:
            self._launch(*pointers, *self._arguments)


@cache
def _compiled(
    name: str,
    dtype: torch.dtype,
    device: int | None,
    layers: int,
    warps: int,
    constants: tuple[tuple[str, int], ...],
) -> tuple[Any, tuple[int, ...]]:
    """A kernel compiled for a device, and its constants in order."""
    from sparsehyper.sparse.gpu import kernels  # where Triton is not, nothing needs them

    kernel = getattr(kernels, name)
    early = device is not None and _overlaps(device)
    values = {**dict(constants), "EARLY": early}
    samples = sample_arguments(kernel.arg_names, dtype, layers)
    options = {"num_warps": warps, **({"launch_pdl": True} if early else {})}
    # Triton's interpreter compiles nothing, and runs the kernel itself.
    compiled = kernel.warmup(*samples.values(), **values, **options, grid=(1,)) or kernel
    return compiled, tuple(values[name] for name in kernel.arg_names if name in values)


def sample_arguments(parameters: Sequence[str], dtype: torch.dtype, layers: int) -> dict[str, Any]:
    """Arguments of the types that a kernel is compiled for, but for its constants."""
    samples: dict[str, Any] = {}
    for parameter in parameters:
        if parameter in _SIZES:
            samples[parameter] = 2  # any number that no kernel would be specialised to
        elif parameter in _TUPLES:
            samples[parameter] = (2,) * layers
        elif not parameter.isupper():
            one = _mock(torch.int32 if parameter in _INTEGERS else dtype)
            samples[parameter] = (one,) * layers if parameter in _MANY else one
    return samples


def _overlaps(device: int) -> bool:
    """Whether a launch may begin while the one before it ends: from Hopper on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def _mock(dtype: torch.dtype) -> Any:
    from triton.runtime.jit import MockTensor

    return MockTensor(dtype)
