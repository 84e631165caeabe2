"""The products of ``functional`` in C on the CPU, in float32.

One layer is a PyTorch operator; several in a row, and the runs of ``unpacking``, are functions on
tensors that must be ``at_address``. The kernels are built when the package is installed, if there
is a C compiler. The operators are opaque to ``torch.compile`` and ``torch.export``, which call them
as they are. Autograd is not theirs but that of ``functional``.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sparsehyper.sparse.memory import shared_memory

try:
    from sparsehyper.sparse import _kernels
except ImportError:  # installed without a compiler
    _kernels = None  # type: ignore[assignment]


class Wiring(Protocol):
    """What `chain` asks of a wiring."""

    n_in: int

    def at_address(self) -> tuple[bool, int]:
        """Whether it is circulant, and the address of its packed int64 shifts or int32 sources."""


def available() -> bool:
    """Whether the package was installed with its kernels."""
    return _kernels is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the operators run on tensors like these."""
    return available() and all(t.is_cpu and t.dtype == torch.float32 for t in tensors)


def at_address(tensor: Tensor) -> bool:
    """Whether the kernels may read the tensor at its address: no subclass, wrapper or negation."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not takes(tensor) or tensor.is_neg():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # within a transform of torch.func
        return False
    return True


_library = torch.library.Library("sparsehyper", "DEF")


def circulant(x: Tensor, weight: Tensor, shifts: list[int]) -> Tensor:
    """``[batch, n_in]`` to ``[batch, n_out]``; ``shifts`` holds those of all copies in a row."""
    (rows, n), (k, m) = x.shape, weight.shape
    x, weight = x.contiguous(), weight.contiguous()
    y = shared_memory().empty([rows, m])
    _kernels.circulant(
        rows, n, m, k, _packed(tuple(shifts)), x.data_ptr(), weight.data_ptr(), y.data_ptr()
    )
    return y


def circulant_adjoint(
    g: Tensor, x: Tensor, weight: Tensor, shifts: list[int], needs_x: bool, needs_w: bool
) -> list[Tensor]:
    """The gradients of x and weight, or empty tensors in place of those not needed."""
    (rows, n), (k, m) = x.shape, weight.shape
    g, x, weight = g.contiguous(), x.contiguous(), weight.contiguous()
    gx, gw = _gradients(rows, n, m, k, needs_x, needs_w)
    _kernels.circulant_adjoint(
        *(rows, n, m, k, _packed(tuple(shifts))),
        *(g.data_ptr(), x.data_ptr(), weight.data_ptr(), gx.data_ptr(), gw.data_ptr()),
    )
    return [gx, gw]


def indexed(x: Tensor, weight: Tensor, sources: Tensor) -> Tensor:
    """``[batch, n_in]`` to ``[batch, n_out]``."""
    (rows, n), (k, m) = x.shape, weight.shape
    x, weight, sources = x.contiguous(), weight.contiguous(), sources.contiguous()
    y = shared_memory().empty([rows, m])
    width = _kernels.width(rows)
    table = shared_memory().empty([n, width if width > 1 else 0])
    _kernels.indexed(
        *(rows, n, m, k, sources.data_ptr()),
        *(x.data_ptr(), weight.data_ptr(), y.data_ptr(), table.data_ptr()),
    )
    return y


def indexed_adjoint(
    g: Tensor, x: Tensor, weight: Tensor, sources: Tensor, needs_x: bool, needs_w: bool
) -> list[Tensor]:
    """The gradients of x and weight, or empty tensors in place of those not needed."""
    (rows, n), (k, m) = x.shape, weight.shape
    g, x, weight, sources = (t.contiguous() for t in (g, x, weight, sources))
    gx, gw = _gradients(rows, n, m, k, needs_x, needs_w)
    width, copies = _kernels.width(rows), _kernels.copies(rows, n, m, k)
    table = shared_memory().empty([n, width if needs_w and width > 1 else 0])
    sums = shared_memory().empty([copies, n, width if needs_x else 0])
    _kernels.indexed_adjoint(
        *(rows, n, m, k, sources.data_ptr()),
        *(g.data_ptr(), x.data_ptr(), weight.data_ptr(), gx.data_ptr(), gw.data_ptr()),
        *(table.data_ptr(), sums.data_ptr(), copies),
    )
    return [gx, gw]


def chain(x: Tensor, weights: Sequence[Tensor], wirings: Sequence[Wiring]) -> tuple[Tensor, Tensor]:
    """Layers in a row, which are `at_address`, in one call.

    Returns:
        ``[batch, n_out]`` of the last, and what comes out of the others, flat.
    """
    rows, x = len(x), x.contiguous()
    layers, _kept = _layers(weights, wirings)
    _, n_between, _, n_table, _ = _kernels.space(rows, layers)
    empty = shared_memory().empty
    between, y, table = empty([n_between]), empty([rows, weights[-1].shape[1]]), empty([n_table])
    _kernels.chain(rows, layers, x.data_ptr(), between.data_ptr(), y.data_ptr(), table.data_ptr())
    return y, between


def chain_adjoint(
    g: Tensor,
    x: Tensor,
    between: Tensor,
    weights: Sequence[Tensor],
    wirings: Sequence[Wiring],
    needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x and of the weights; None if not needed.

    Args:
        g: of the output of `chain`.
        x, between, weights, wirings: what `chain` took and gave.
        needs_x, needs: which gradients are needed.
    """
    rows, g, x = len(x), g.contiguous(), x.contiguous()
    layers, _kept = _layers(weights, wirings)
    threads, _, n_gradients, n_table, n_sums = _kernels.space(rows, layers)
    empty = shared_memory().empty
    gradients, table, sums = empty([n_gradients]), empty([n_table]), empty([n_sums])
    gw = [
        empty(weight.shape) if need else None for weight, need in zip(weights, needs, strict=True)
    ]
    gx = empty(x.shape) if needs_x else None
    _kernels.chain_adjoint(
        *(threads, rows, layers, x.data_ptr(), between.data_ptr(), g.data_ptr()),
        *(0 if gx is None else gx.data_ptr(), _addresses(gw)),
        *(gradients.data_ptr(), table.data_ptr(), sums.data_ptr()),
    )
    for tensor in gw if rows == 0 else ():
        if tensor is not None:
            tensor.zero_()
    return gx, gw


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
    rows = flat.shape[:-1].numel()
    _kernels.runs(False, rows, sizes, factors, offsets, address, flat.data_ptr(), _addresses(runs))


def gather_runs(
    flat: Tensor, runs: Sequence[Tensor | None], sizes: bytes, factors: bytes, offsets: bytes
) -> None:
    """Write ``factor · run`` to each run's place in ``flat``; one that is None is left out."""
    rows = flat.shape[:-1].numel()
    _kernels.runs(True, rows, sizes, factors, offsets, 0, flat.data_ptr(), _addresses(runs))


def _layers(weights: Sequence[Tensor], wirings: Sequence[Wiring]) -> tuple[bytes, list[Tensor]]:
    """Layers as the kernels take them, and the tensors that must outlive their use."""
    packed, kept = array("q"), []
    for weight, wiring in zip(weights, wirings, strict=True):
        weight = weight.contiguous()
        k, m = weight.shape
        packed.extend((wiring.n_in, m, k, *wiring.at_address(), weight.data_ptr()))
        kept.append(weight)
    return packed.tobytes(), kept


def _addresses(runs: Sequence[Tensor | None]) -> bytes:
    return array("q", [0 if run is None else run.data_ptr() for run in runs]).tobytes()


def _gradients(
    rows: int, n: int, m: int, k: int, needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    empty = shared_memory().empty
    gx, gw = empty([rows, n] if needs_x else [0]), empty([k, m] if needs_w else [0])
    return (gx, gw) if rows else (gx, gw.zero_())


@lru_cache(maxsize=1024)
def _packed(shifts: tuple[int, ...]) -> bytes:
    return array("q", shifts).tobytes()


def _like_y(x: Tensor, weight: Tensor, wiring: list[int] | Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], weight.shape[1])


def _like_gradients(
    g: Tensor,  # noqa: ARG001
    x: Tensor,
    weight: Tensor,
    wiring: list[int] | Tensor,  # noqa: ARG001
    needs_x: bool,
    needs_w: bool,
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if needs_x else [0]),
        weight.new_empty(weight.shape if needs_w else [0]),
    ]


for _wiring, _apply, _adjoint in (
    ("int[] shifts", circulant, circulant_adjoint),
    ("Tensor sources", indexed, indexed_adjoint),
):
    for _function, _fake, _schema in (
        (_apply, _like_y, f"(Tensor x, Tensor weight, {_wiring}) -> Tensor"),
        (
            _adjoint,
            _like_gradients,
            f"(Tensor g, Tensor x, Tensor weight, {_wiring}, bool needs_x, bool needs_w)"
            " -> Tensor[]",
        ),
    ):
        _library.define(_function.__name__ + _schema)
        _library.impl(_function.__name__, _function, "CPU")
        torch.library.register_fake(f"sparsehyper::{_function.__name__}", _fake, lib=_library)
