"""Whether there are kernels in C, and what may be handed to them by its address.

The kernels are built when the package is installed, if there is a C compiler. They serve the
products of ``sparse`` and the unpacking of ``target``. Every call checks what it hands over:
shapes, dtypes and addresses in Python, sizes and the numbers of a wiring in C.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from sparsehyper._util import _kernels as compiled
except ImportError:  # installed without a compiler
    compiled = None  # type: ignore[assignment]

_PLAIN = (Tensor, torch.nn.Parameter)


def available() -> bool:
    """Whether the package was installed with its kernels."""
    return compiled is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the operators run on tensors like these."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
    return available()


def at_address(tensor: Tensor) -> bool:
    """Whether the kernels may read the tensor at its address: no subclass, wrapper or negation."""
    if (
        compiled is None
        or type(tensor) not in _PLAIN
        or tensor.dtype is not torch.float32
        or not tensor.is_cpu
        or tensor.is_neg()
    ):
        return False
    try:  # zeros and functions of others have no memory behind them, and 0 for an address
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # within a transform of torch.func
        return False


def scale_runs(
    flat: Tensor,
    runs: Sequence[Tensor],
    sizes: bytes,
    factors: bytes,
    offsets: bytes,
    added: Tensor | None,
) -> None:
    """Write ``offset + factor · flat[…, start : start + size]`` to each run, contiguous.

    Where ``added``, as long as a row of ``flat``, is given, its elements take the place of offsets.
    """
    flat = flat.contiguous()
    added = None if added is None else added.contiguous()
    address = 0 if added is None else added.data_ptr()
    compiled.runs(
        *(False, flat.shape[:-1].numel(), flat.shape[-1], sizes, factors, offsets, address),
        *(flat.data_ptr(), addresses(runs)),
    )


def gather_runs(
    flat: Tensor, runs: Sequence[Tensor | None], sizes: bytes, factors: bytes, offsets: bytes
) -> None:
    """Write ``factor · run`` to each run's place in ``flat``; one that is None is left out."""
    compiled.runs(
        *(True, flat.shape[:-1].numel(), flat.shape[-1], sizes, factors, offsets, 0),
        *(flat.data_ptr(), addresses(runs)),
    )


def addresses(tensors: Sequence[Tensor | None]) -> bytes:
    """The addresses of tensors, packed; 0 for None."""
    return array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors]).tobytes()
