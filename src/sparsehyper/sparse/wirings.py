"""Wirings of a sparse layer, with the product and its adjoint.

A wiring (`Circulant` or `Indexed`) fixes ``source(t, j)``. The product with it is

    apply:    y[b, j]  = Σ_t w[t, j] · x[b, source(t, j)]

and its adjoint, for a gradient g of y, is

    adjoint:  gx[b, i] = Σ_{t, j : source(t, j) = i} w[t, j] · g[b, j]
              gw[t, j] = Σ_b g[b, j] · x[b, source(t, j)]

On the CPU in float32 they run in C kernels (``native``), and on a GPU in float32 and bfloat16 in
Triton kernels (``gpu``). Elsewhere, without a compiler or without Triton, they run in plain
PyTorch (``portable``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsehyper._util import kernels
from sparsehyper.sparse import gpu, native, portable


class Circulant:
    """The wiring ``source(t, c·n + i) = (i + shifts[c][t]) mod n``.

    Output positions c·n to (c + 1)·n are *copy* c of the input; the last copy may be cut short.

    Args:
        n_in: n.
        shifts: a row of ``fan_in`` numbers for each copy.

    Raises:
        ValueError: rows of different lengths, or a shift outside ``[0, n)``.
    """

    def __init__(self, n_in: int, shifts: Sequence[Sequence[int]]) -> None:
        self.n_in = n_in
        self.fan_in = len(shifts[0])
        self.shifts = tuple(map(tuple, shifts))
        self._flat = [shift for row in shifts for shift in row]
        if any(len(row) != self.fan_in for row in shifts):
            raise ValueError(f"`shifts` must have rows of {self.fan_in} numbers, as the first has")
        if self._flat and not 0 <= min(self._flat) <= max(self._flat) < n_in:
            raise ValueError(
                f"`shifts` must lie in [0, {n_in}), got {min(self._flat)} to {max(self._flat)}"
            )
        self.native = native.Shifts(n_in, self._flat)
        self.prepared: gpu.Layer | None = None  # for a GPU

    @property
    def version(self) -> int:
        """Always 0, since the shifts cannot change."""
        return 0

    def check(self, w: Tensor, width: int) -> None:
        """Raise ``ValueError`` if the wiring has another number of outputs than ``width``."""
        copies = -(-width // self.n_in) if self.n_in else 0
        if copies != len(self.shifts):
            raise ValueError(
                f"`shifts` must have {copies} rows for {self.n_in} inputs and [fan_in, n_out] = "
                f"{[len(w), width]}, got {len(self.shifts)}"
            )

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """The output y ``[batch, n_out]`` of x ``[batch, n_in]`` and w ``[fan_in, n_out]``."""
        check(self, x.shape, x.dtype, w)
        if kernels.takes(x, w):
            return torch.ops.sparsehyper.circulant(x, w, self._flat)
        if gpu.takes(x, w):
            return gpu.chain(x, [w], [self.layer(x.device)], [w.shape[1]])[0]
        return portable.circulant(x, w, self.shifts)

    def adjoint(
        self, g: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """The gradients gx and gw; one that ``needs`` does not name is empty."""
        check(self, x.shape, x.dtype, w)
        _check_gradient(g, x, w)
        if kernels.takes(g, x, w):
            return torch.ops.sparsehyper.circulant_adjoint(g, x, w, self._flat, *needs)
        if gpu.takes(g, x, w):
            return gpu.adjoint(g, x, w, self.layer(x.device), needs)
        return portable.circulant_adjoint(g, x, w, self.shifts, needs)

    def layer(self, device: torch.device) -> gpu.Layer:
        """The wiring in the memory of a GPU."""
        layer = self.prepared
        if layer is None or layer.sources.device != device:
            numbers = [self.n_in, self.fan_in, *self._flat]
            table = torch.tensor(numbers, dtype=torch.int32, device=device)
            layer = self.prepared = gpu.Layer(self.n_in, table, shifts=self._flat)
        return layer


class Indexed:
    """A wiring given by an index for every connection.

    Args:
        n_in: number of inputs.
        sources: int32 ``[fan_in, n_out]``.
    """

    def __init__(self, n_in: int, sources: Tensor) -> None:
        self.n_in = n_in
        self.fan_in = len(sources)
        self.sources = sources
        self.native = native.Sources(n_in, sources)
        self.prepared: gpu.Layer | None = None  # for a GPU
        self._transposed: tuple[Tensor, Tensor] | None = None
        self._transposed_version = 0  # version of the sources when the list was made

    @property
    def version(self) -> int:
        """Number of writes to the sources."""
        return writes(self.sources)

    def check(self, w: Tensor, width: int) -> None:
        """Raise ``ValueError`` for sources of other sizes or on another device than the weights."""
        sources, shape = self.sources, (len(w), width)
        if (sources.shape, sources.dtype, sources.device) != (shape, torch.int32, w.device):
            raise ValueError(
                f"`sources` must be int32 on {w.device} and of shape [fan_in, n_out] = "
                f"{list(shape)}, got {sources.dtype} on {sources.device} of shape "
                f"{list(sources.shape)}"
            )

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """The output y ``[batch, n_out]`` of x ``[batch, n_in]`` and w ``[fan_in, n_out]``."""
        check(self, x.shape, x.dtype, w)
        if kernels.takes(x, w):
            return torch.ops.sparsehyper.indexed(x, w, self.sources)
        if gpu.takes(x, w):
            return gpu.chain(x, [w], [self.layer(x.device)], [w.shape[1]])[0]
        return portable.indexed(x, w, self.sources)

    def adjoint(
        self, g: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """The gradients gx and gw; one that ``needs`` does not name is empty."""
        check(self, x.shape, x.dtype, w)
        _check_gradient(g, x, w)
        if kernels.takes(g, x, w):
            return torch.ops.sparsehyper.indexed_adjoint(g, x, w, self.sources, *needs)
        if gpu.takes(g, x, w):
            return gpu.adjoint(g, x, w, self.layer(x.device), needs)
        return portable.indexed_adjoint(g, x, w, self.sources, *self._by_input(), needs)

    def layer(self, device: torch.device) -> gpu.Layer:  # noqa: ARG002
        """The wiring in the memory of the GPU that holds the sources."""
        layer, by_input = self.prepared, self._by_input()
        if layer is None or layer.by_input is not by_input:
            layer = gpu.Layer(self.n_in, self.sources.contiguous(), by_input=by_input)
            self.prepared = layer
        return layer

    def _by_input(self) -> tuple[Tensor, Tensor]:
        version = 0 if torch.compiler.is_compiling() else self.version
        if self._transposed is None or self._transposed_version < version:
            self._transposed = portable.transposed(self.sources, self.n_in)
            self._transposed_version = version
        return self._transposed


Wiring = Circulant | Indexed


def writes(tensor: Tensor) -> int:
    """Number of writes to a tensor; 0 for one made in inference mode, which does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def check(
    wiring: Wiring, shape: Sequence[int], dtype: torch.dtype, w: Tensor, width: int | None = None
) -> None:
    """Raise if weights do not fit the wiring or an x of this shape and dtype.

    ``width`` is the number of outputs; by default that of the weights' columns.
    """
    if len(shape) != 2 or shape[1] != wiring.n_in:
        raise ValueError(f"`x` must have shape [batch, {wiring.n_in}], got {list(shape)}")
    if w.ndim != 2 or len(w) != wiring.fan_in:
        raise ValueError(f"`weight` must have shape [{wiring.fan_in}, n_out], got {list(w.shape)}")
    wiring.check(w, w.shape[1] if width is None else width)
    if w.dtype != dtype:
        raise TypeError(f"`weight` must be {dtype}, as `x` is, got {w.dtype}")


def _check_gradient(g: Tensor, x: Tensor, w: Tensor) -> None:
    if g.shape != (len(x), w.shape[1]) or g.dtype != x.dtype:
        raise ValueError(
            f"`g` must be {x.dtype} of shape {[len(x), w.shape[1]]}, as the output is, got "
            f"{g.dtype} of shape {list(g.shape)}"
        )
