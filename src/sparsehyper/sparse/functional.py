"""Products with a sparse layer, their transposes and their gradients.

A wiring (``Circulant`` or ``Indexed``) fixes ``source(t, j)``. The product with it is

    apply:    y[b, j]  = Σ_t w[t, j] · x[b, source(t, j)]

and its adjoint, for a gradient g of y, is

    adjoint:  gx[b, i] = Σ_{t, j : source(t, j) = i} w[t, j] · g[b, j]
              gw[t, j] = Σ_b g[b, j] · x[b, source(t, j)]

Both are multilinear, and the derivatives of each are these two products again, so autograd to any
order needs nothing else. On the CPU in float32 they run in C kernels (``native``). Elsewhere, and
if the package was installed without a compiler, they run in plain PyTorch (``portable``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparsehyper._util import kernels
from sparsehyper.sparse import native, portable


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

    @property
    def version(self) -> int:
        """Always 0, since the shifts cannot change."""
        return 0

    def check(self, w: Tensor) -> None:
        """Raise ``ValueError`` if the weights have another number of outputs than the wiring."""
        copies = -(-w.shape[1] // self.n_in) if self.n_in else 0
        if copies != len(self.shifts):
            raise ValueError(
                f"`shifts` must have {copies} rows for {self.n_in} inputs and a weight of shape "
                f"{list(w.shape)}, got {len(self.shifts)}"
            )

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """The output y ``[batch, n_out]`` of x ``[batch, n_in]`` and w ``[fan_in, n_out]``."""
        _check(self, x, w)
        if kernels.takes(x, w):
            return torch.ops.sparsehyper.circulant(x, w, self._flat)
        return portable.circulant(x, w, self.shifts)

    def adjoint(
        self, g: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """The gradients gx and gw; one that ``needs`` does not name is empty."""
        _check(self, x, w, g)
        if kernels.takes(g, x, w):
            return torch.ops.sparsehyper.circulant_adjoint(g, x, w, self._flat, *needs)
        return portable.circulant_adjoint(g, x, w, self.shifts, needs)


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
        self._transposed: tuple[Tensor, Tensor] | None = None
        self._transposed_version = 0  # version of the sources when the list was made

    @property
    def version(self) -> int:
        """Number of writes to the sources; tensors made in inference mode do not count them."""
        return 0 if self.sources.is_inference() else self.sources._version

    def check(self, w: Tensor) -> None:
        """Raise ``ValueError`` if the weights have another shape or device than the sources."""
        sources = self.sources
        if (sources.shape, sources.dtype, sources.device) != (w.shape, torch.int32, w.device):
            raise ValueError(
                f"`sources` must be int32 on {w.device} and of the shape of `weight`, "
                f"{list(w.shape)}, got {sources.dtype} on {sources.device} of shape "
                f"{list(sources.shape)}"
            )

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """The output y ``[batch, n_out]`` of x ``[batch, n_in]`` and w ``[fan_in, n_out]``."""
        _check(self, x, w)
        if kernels.takes(x, w):
            return torch.ops.sparsehyper.indexed(x, w, self.sources)
        return portable.indexed(x, w, self.sources)

    def adjoint(
        self, g: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """The gradients gx and gw; one that ``needs`` does not name is empty."""
        _check(self, x, w, g)
        if kernels.takes(g, x, w):
            return torch.ops.sparsehyper.indexed_adjoint(g, x, w, self.sources, *needs)
        return portable.indexed_adjoint(g, x, w, self.sources, *self._by_input(), needs)

    def _by_input(self) -> tuple[Tensor, Tensor]:
        version = 0 if torch.compiler.is_compiling() else self.version
        if self._transposed is None or self._transposed_version < version:
            self._transposed = portable.transposed(self.sources, self.n_in)
            self._transposed_version = version
        return self._transposed


def sparse_linear(x: Tensor, weight: Tensor, wiring: Circulant | Indexed) -> Tensor:
    """``y[b, j] = Σ_t weight[t, j] · x[b, source(t, j)]``, differentiable to any order.

    Args:
        x: ``[batch, n_in]``.
        weight: ``[fan_in, n_out]``, of the dtype of ``x``.
        wiring: the sources.

    Returns:
        A new tensor ``[batch, n_out]``.

    Raises:
        ValueError: x or weights that do not fit the wiring; in the backward pass, a wiring that
            has been written to since the forward pass.
        TypeError: x and weights of different dtypes.
    """
    return _apply(x, weight, wiring)


def sparse_chain(x: Tensor, weights: list[Tensor], wirings: list[Circulant | Indexed]) -> Tensor:
    """`sparse_linear` for several layers in sequence.

    If the kernels can run all layers, this is one node of the autograd graph, with one call of the
    kernels in each direction.

    Args:
        x: input of the first layer, ``[batch, n_in]``.
        weights, wirings: one for each layer.

    Returns:
        Output of the last layer, ``[batch, n_out]``.
    """
    # The compiler joins the nodes itself.
    if torch.compiler.is_compiling() or not kernels.takes(x, *weights):
        return _one_by_one(x, wirings, weights)
    return _Chain.apply(x, wirings, *weights)[0]


def _one_by_one(x: Tensor, wirings: list[Circulant | Indexed], weights: Sequence[Tensor]) -> Tensor:
    *_, y = _outputs(x, wirings, weights)
    return y


def _outputs(
    x: Tensor, wirings: list[Circulant | Indexed], weights: Sequence[Tensor]
) -> Iterator[Tensor]:
    """The input of each layer, and the output of the last."""
    yield x
    for wiring, weight in zip(wirings, weights, strict=True):
        x = sparse_linear(x, weight, wiring)
        yield x


class _Apply(Function):
    @staticmethod
    def forward(x: Tensor, w: Tensor, wiring: Circulant | Indexed) -> Tensor:
        return wiring.apply(x, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, w, ctx.wiring = inputs
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        _save_versions(ctx, [ctx.wiring])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if g is None:
            return None, None, None
        _check_unchanged(ctx, [ctx.wiring])
        x, w = ctx.saved_tensors
        return *_adjoint(g, x, w, ctx.wiring, *ctx.needs_input_grad[:2]), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, wiring: Circulant | Indexed
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None:  # the mapped dimension becomes part of the batch
            size = info.batch_size
            y = _apply(x.movedim(in_dims[0], 0).flatten(0, 1), w, wiring)
            return y.unflatten(0, (size, len(y) // size)), 0
        pairs = _samples(info.batch_size, in_dims, x, w)
        return torch.stack([_apply(x, w, wiring) for x, w in pairs]), 0


class _Adjoint(Function):
    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, wiring: Circulant | Indexed, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        gx, gw = wiring.adjoint(g, x, w, needs)
        return gx, gw

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        g, x, w, ctx.wiring, ctx.needs = inputs
        ctx.save_for_backward(g, x, w)
        ctx.save_for_forward(g, x, w)
        _save_versions(ctx, [ctx.wiring])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple[Any, ...]:
        _check_unchanged(ctx, [ctx.wiring])
        # ⟨u, gx⟩ + ⟨v, gw⟩ = ⟨g, apply(u, w) + apply(x, v)⟩
        g, x, w = ctx.saved_tensors
        u, v = (some if need else None for some, need in zip((u, v), ctx.needs, strict=True))
        needs_g, needs_x, needs_w = ctx.needs_input_grad[:3]
        of_g = None
        if needs_g:
            of_g = _tangent(x, w, ctx.wiring, u, v)
        of_x, of_w = _adjoint(
            g,
            x if u is None else u,
            w if v is None else v,
            ctx.wiring,
            needs_x and v is not None,
            needs_w and u is not None,
        )
        return of_g, of_x, of_w, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        g: Tensor,
        x: Tensor,
        w: Tensor,
        wiring: Circulant | Indexed,
        needs: tuple[bool, bool],
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        triples = _samples(info.batch_size, in_dims, g, x, w)
        pairs = [_adjoint_of(g, x, w, wiring, needs) for g, x, w in triples]
        gx, gw = (torch.stack(some) for some in zip(*pairs, strict=True))
        return (gx, gw), (0, 0)


class _DualApply(_Apply):
    """`_Apply` with a rule for forward mode, which the compiler does not support."""

    @staticmethod
    def jvp(ctx: Any, u: Tensor | None, v: Tensor | None, _: None) -> Tensor | None:
        x, w = ctx.saved_tensors
        return _tangent(x, w, ctx.wiring, u, v)


class _DualAdjoint(_Adjoint):
    """`_Adjoint` with a rule for forward mode, which the compiler does not support."""

    @staticmethod
    def jvp(
        ctx: Any, of_g: Tensor | None, u: Tensor | None, v: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        # gx is linear in g and w, gw in g and x.
        g, x, w = ctx.saved_tensors
        needs_x, needs_w = ctx.needs
        some: tuple[Tensor | None, Tensor | None] = (None, None)
        if of_g is not None:
            some = _adjoint(of_g, x, w, ctx.wiring, needs_x, needs_w)
        more = _adjoint(
            g,
            x if u is None else u,
            w if v is None else v,
            ctx.wiring,
            needs_x and v is not None,
            needs_w and u is not None,
        )
        of_gx, of_gw = map(_sum, some, more)
        return (
            x.new_zeros(x.shape if needs_x else [0]) if of_gx is None else of_gx,
            w.new_zeros(w.shape if needs_w else [0]) if of_gw is None else of_gw,
        )


class _Chain(Function):
    @staticmethod
    def forward(
        x: Tensor, wirings: list[Circulant | Indexed], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        if all(kernels.at_address(tensor) for tensor in (x, *weights)):
            return native.chain(x, weights, [wiring.native for wiring in wirings])
        return _one_by_one(x, wirings, weights), x.new_empty(0)  # a subclass, without memory

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.wirings, *weights = inputs
        ctx.save_for_backward(x, output[1], *weights)
        ctx.save_for_forward(x, output[1], *weights)
        ctx.mark_non_differentiable(output[1])
        _save_versions(ctx, ctx.wirings)
        ctx.native = output[1].numel() or len(weights) == 1  # the kernels' backward can be used
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        wirings, (needs_x, _, *needs) = ctx.wirings, ctx.needs_input_grad
        x, between, *weights = ctx.saved_tensors
        if g is None:
            return (None,) * (2 + len(weights))
        _check_unchanged(ctx, wirings)
        if (
            ctx.native
            and not torch.is_grad_enabled()
            and all(map(kernels.at_address, (g, x, between, *weights)))
        ):
            native_wirings = [wiring.native for wiring in wirings]
            gx, grads = native.chain_adjoint(g, x, between, weights, native_wirings, needs_x, needs)
            return gx, None, *grads
        # Higher derivatives and transforms go layer by layer.
        inputs = list(_outputs(x, wirings[:-1], weights[:-1]))
        gx, grads = g, [None] * len(weights)
        for i in reversed(range(len(wirings))):
            further = needs_x or any(needs[:i])
            if gx is None or not (further or needs[i]):
                break
            gx, grads[i] = _adjoint(gx, inputs[i], weights[i], wirings[i], further, needs[i])
        return gx if needs_x else None, None, *grads

    @staticmethod
    def jvp(ctx: Any, u: Tensor | None, _: None, *tangents: Tensor | None) -> tuple[Any, None]:
        x, _, *weights = ctx.saved_tensors
        inputs = _outputs(x, ctx.wirings[:-1], weights[:-1])
        for x, w, wiring, v in zip(inputs, weights, ctx.wirings, tangents, strict=True):
            u = _tangent(x, w, wiring, u, v)
        return u, None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[Any, ...],
        x: Tensor,
        wirings: list[Circulant | Indexed],
        *weights: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, None]]:
        dims = (in_dims[0], *in_dims[2:])
        run = torch.func.vmap(lambda x, *weights: _one_by_one(x, wirings, weights), dims)
        y = run(x, *weights)
        # The kernels' backward would need the outputs in between; transforms go layer by layer.
        return (y, y.new_empty(0)), (0, None)


def _check(wiring: Circulant | Indexed, x: Tensor, w: Tensor, g: Tensor | None = None) -> None:
    """Raise if tensors do not fit the wiring or one another."""
    if x.ndim != 2 or x.shape[1] != wiring.n_in:
        raise ValueError(f"`x` must have shape [batch, {wiring.n_in}], got {list(x.shape)}")
    if w.ndim != 2 or len(w) != wiring.fan_in:
        raise ValueError(f"`weight` must have shape [{wiring.fan_in}, n_out], got {list(w.shape)}")
    wiring.check(w)
    if w.dtype != x.dtype:
        raise TypeError(f"`weight` must be {x.dtype}, as `x` is, got {w.dtype}")
    if g is None:
        return
    if g.shape != (len(x), w.shape[1]) or g.dtype != x.dtype:
        raise ValueError(
            f"`g` must be {x.dtype} of shape {[len(x), w.shape[1]]}, as the output is, got "
            f"{g.dtype} of shape {list(g.shape)}"
        )


def _save_versions(ctx: Any, wirings: Sequence[Circulant | Indexed]) -> None:
    """Save how often each wiring has been written to, for `_check_unchanged`."""
    if not torch.compiler.is_compiling():
        ctx.versions = [wiring.version for wiring in wirings]


def _check_unchanged(ctx: Any, wirings: Sequence[Circulant | Indexed]) -> None:
    if torch.compiler.is_compiling():
        return
    if any(wiring.version != seen for wiring, seen in zip(wirings, ctx.versions, strict=True)):
        raise ValueError(
            "the wiring of a sparse layer was written to between the forward and the backward "
            "pass; run the forward pass again"
        )


def _apply(x: Tensor, w: Tensor, wiring: Circulant | Indexed) -> Tensor:
    return (_Apply if torch.compiler.is_compiling() else _DualApply).apply(x, w, wiring)


def _adjoint_of(
    g: Tensor, x: Tensor, w: Tensor, wiring: Circulant | Indexed, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    function = _Adjoint if torch.compiler.is_compiling() else _DualAdjoint
    return function.apply(g, x, w, wiring, needs)


def _tangent(
    x: Tensor, w: Tensor, wiring: Circulant | Indexed, u: Tensor | None, v: Tensor | None
) -> Tensor | None:
    """The output's tangent for the tangents u of x and v of w; None stands for zero."""
    return _sum(
        None if u is None else _apply(u, w, wiring),
        None if v is None else _apply(x, v, wiring),
    )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _adjoint(
    g: Tensor, x: Tensor, w: Tensor, wiring: Circulant | Indexed, needs_x: bool, needs_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not (needs_x or needs_w):
        return None, None
    gx, gw = _adjoint_of(g, x, w, wiring, (needs_x, needs_w))
    return gx if needs_x else None, gw if needs_w else None


def _samples(size: int, in_dims: tuple[Any, ...], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors at each index of a mapped dimension."""
    columns = [
        [tensor] * size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]
    return list(zip(*columns, strict=True))


for _function in (_Apply, _Adjoint, _Chain):
    # PyTorch inspects the signature at every call; storing it here saves computing it.
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]
