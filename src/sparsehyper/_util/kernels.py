"""The C kernels: whether they are installed, and which tensors they may get by address.

The kernels are built when the package is installed, if there is a C compiler; where they are
missing, their first use warns. The products of ``sparse`` and the unpacking of ``target`` use
them. Every call checks its arguments: shapes, dtypes and addresses in Python, sizes and sources in
C.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

try:
    from sparsehyper._util import _kernels as compiled

    why_missing = None
except ImportError as error:  # installed without a compiler, or a library is missing
    compiled = None  # type: ignore[assignment]
    why_missing = str(error)

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def available() -> bool:
    """Whether the package was installed with its kernels."""
    return compiled is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels exist and these tensors are float32 on the CPU."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
    if compiled is None:
        _warn()
        return False
    return True


def at_address(tensor: Tensor) -> bool:
    """Whether the kernels may read a tensor at its address."""
    return takes(tensor) and has_address(tensor)


def has_address(tensor: Tensor) -> bool:
    """Whether a tensor is what its memory holds: no subclass, wrapper or negation.

    Nor may a dispatch mode be on, which must see every operation: what is done at an address it
    does not see, so that a graph traced by ``make_fx`` would have the outputs as constants.
    """
    if type(tensor) not in _PLAIN_TYPES or tensor.is_neg() or is_in_torch_dispatch_mode():
        return False
    try:  # tensors without memory, such as efficient zeros, have address 0
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # a tensor of a torch.func transform
        return False


def scale_runs(
    flat: Tensor,
    runs: Sequence[Tensor],
    sizes: bytes,
    factors: bytes,
    offsets: bytes,
    added: Tensor | None,
) -> None:
    """Write ``offset + factor · flat[…, start : start + size]`` to each run.

    Args:
        flat: ``[…, Σ sizes]``.
        runs: contiguous tensors ``[…, size]``.
        sizes: packed int64, one for each run.
        factors, offsets: packed float32, one for each run.
        added: ``[Σ sizes]``, added instead of the offsets; or None.
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
    """Write ``factor · run`` to the place of each run in ``flat``; runs that are None are skipped.

    The arguments are those of `scale_runs`.
    """
    compiled.runs(
        *(True, flat.shape[:-1].numel(), flat.shape[-1], sizes, factors, offsets, 0),
        *(flat.data_ptr(), addresses(runs)),
    )


@cache
def _warn() -> None:
    """Warn, once in a process, that the kernels are missing."""
    warnings.warn(
        "sparsehyper runs without its C kernels, so everything on the CPU is slower; "
        "`sparsehyper doctor` says what is missing",
        stacklevel=3,
    )


def addresses(tensors: Sequence[Tensor | None]) -> bytes:
    """The addresses of tensors, packed; 0 for None."""
    return array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors]).tobytes()
