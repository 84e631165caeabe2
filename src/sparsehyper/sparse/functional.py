"""Products with a sparse layer, their transposes and their gradients.

A wiring (``Circulant`` or ``Indexed``) fixes ``source(t, j)``; the three products with it are

    apply:      y[b, j]  = Σ_t w[t, j] · x[b, source(t, j)]
    transpose:  x[b, i]  = Σ_{t, j : source(t, j) = i} w[t, j] · y[b, j]
    outer:      w[t, j]  = Σ_b y[b, j] · x[b, source(t, j)]

Each is bilinear and the derivatives of each are the other two, so autograd to any order needs
nothing else. No product scatters: the circulant wiring reads and writes contiguous runs, and the
indexed one keeps the transposed list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

# Below this many connections one gather of all taps beats a loop over them (fixed cost rules).
_FEW_CONNECTIONS = 1 << 17


def sparse_linear(x: Tensor, weight: Tensor, wiring: Circulant | Indexed) -> Tensor:
    """``y[b, j] = Σ_t weight[t, j] · x[b, source(t, j)]``, differentiable to any order.

    Args:
        x: ``[batch, n_in]``.
        weight: ``[fan_in, n_out]``, of the dtype of ``x``.
        wiring: who is wired to whom.

    Returns:
        ``[batch, n_out]``, newly allocated.
    """
    return _Apply.apply(x, weight, wiring)


class Circulant(NamedTuple):
    """``source(t, c·n + i) = (i + shifts[c][t]) mod n``; the last copy may be cut short."""

    n_in: int
    n_out: int
    shifts: tuple[tuple[int, ...], ...]

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        twice = torch.cat([x, x], dim=1)  # laid twice in a row, every shift is a plain slice
        y = x.new_empty(len(x), self.n_out)
        for start, stop, taps in self._copies():
            out = y[:, start:stop]
            for t, shift in enumerate(taps):
                source = twice[:, shift : shift + stop - start]
                if t == 0:
                    _multiply(source, w[t, start:stop], out)
                else:
                    out.addcmul_(source, w[t, start:stop])
        return y

    def transpose(self, y: Tensor, w: Tensor) -> Tensor:
        twice = y.new_zeros(len(y), 2 * self.n_in)
        for start, stop, taps in self._copies():
            for t, shift in enumerate(taps):
                twice[:, shift : shift + stop - start].addcmul_(y[:, start:stop], w[t, start:stop])
        return twice[:, : self.n_in] + twice[:, self.n_in :]

    def outer(self, y: Tensor, x: Tensor) -> Tensor:
        twice = torch.cat([x, x], dim=1)
        w = y.new_empty(len(self.shifts[0]), self.n_out)
        for start, stop, taps in self._copies():
            for t, shift in enumerate(taps):
                source = twice[:, shift : shift + stop - start]
                out = w[t, start:stop]
                if len(y) == 1:
                    _multiply(source[0], y[0, start:stop], out)
                else:
                    out.copy_((source * y[:, start:stop]).sum(0))
        return w

    def _copies(self) -> list[tuple[int, int, tuple[int, ...]]]:
        starts = range(0, self.n_out, self.n_in)
        return [
            (start, min(start + self.n_in, self.n_out), taps)
            for start, taps in zip(starts, self.shifts, strict=True)
        ]


class Indexed(NamedTuple):
    """Any wiring: the sources, and the same connections listed input by input."""

    n_in: int
    sources: Tensor  # int32 [fan_in, n_out]
    order: Tensor  # int32 [fan_in · n_out]: connections t · n_out + j, sorted by their source
    offsets: Tensor  # int32 [n_in]: where each input's run in `order` starts

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        fan_in, n_out = self.sources.shape
        if len(x) > 1:  # one pass over the weights for the whole batch
            table, weights = x.T.contiguous(), w.T.contiguous()
            bags = self.sources.T.contiguous()
            return embedding_bag(bags, table, mode="sum", per_sample_weights=weights).T.contiguous()
        if self.sources.numel() <= _FEW_CONNECTIONS:
            taken = x.index_select(1, self.sources.view(-1)).view(len(x), fan_in, n_out)
            return (taken * w).sum(1)
        y = x.index_select(1, self.sources[0]).mul_(w[0])
        for t in range(1, fan_in):
            y.addcmul_(x.index_select(1, self.sources[t]), w[t])
        return y

    def transpose(self, y: Tensor, w: Tensor) -> Tensor:
        if len(y) == 0:
            return y.new_zeros(0, self.n_in)
        return embedding_bag(
            self.order % self.sources.shape[1],
            y.T.contiguous(),
            self.offsets,
            mode="sum",
            per_sample_weights=w.reshape(-1).index_select(0, self.order),
        ).T.contiguous()

    def outer(self, y: Tensor, x: Tensor) -> Tensor:
        fan_in, n_out = self.sources.shape
        if self.sources.numel() * len(x) <= _FEW_CONNECTIONS:
            taken = x.index_select(1, self.sources.view(-1)).view(len(x), fan_in, n_out)
            return (taken * y[:, None]).sum(0)
        w = y.new_empty(fan_in, n_out)
        table, y = x.T.contiguous(), y.T.contiguous()
        for t in range(fan_in):
            w[t] = table.index_select(0, self.sources[t]).mul_(y).sum(1)
        return w


def transposed(sources: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    """The connections of ``sources`` ``[fan_in, n_out]`` input by input: ``Indexed``'s lists."""
    flat = sources.reshape(-1).long()
    counts = torch.bincount(flat, minlength=n_in)
    order = flat.argsort(stable=True)
    return order.to(torch.int32), (counts.cumsum(0) - counts).to(torch.int32)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    if torch.compiler.is_compiling():
        out.copy_(a * b)  # the compiler takes no `out=` that is a slice, and fuses this
    else:
        torch.mul(a, b, out=out)


class _Apply(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, wiring: Circulant | Indexed) -> Tensor:
        ctx.wiring = wiring
        ctx.save_for_backward(x, w)
        return wiring.apply(x, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, _ = ctx.needs_input_grad
        return (
            _Transpose.apply(grad, w, ctx.wiring) if needs_x else None,
            _Outer.apply(grad, x, ctx.wiring) if needs_w else None,
            None,
        )


class _Transpose(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor, wiring: Circulant | Indexed) -> Tensor:
        ctx.wiring = wiring
        ctx.save_for_backward(y, w)
        return wiring.transpose(y, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, w = ctx.saved_tensors
        needs_y, needs_w, _ = ctx.needs_input_grad
        return (
            _Apply.apply(grad, w, ctx.wiring) if needs_y else None,
            _Outer.apply(y, grad, ctx.wiring) if needs_w else None,
            None,
        )


class _Outer(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, wiring: Circulant | Indexed) -> Tensor:
        ctx.wiring = wiring
        ctx.save_for_backward(y, x)
        return wiring.outer(y, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, x = ctx.saved_tensors
        needs_y, needs_x, _ = ctx.needs_input_grad
        return (
            _Apply.apply(x, grad, ctx.wiring) if needs_y else None,
            _Transpose.apply(y, grad, ctx.wiring) if needs_x else None,
            None,
        )
