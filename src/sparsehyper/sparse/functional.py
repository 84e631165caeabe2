"""Sparse products as differentiable functions: autograd to any order, forward mode and vmap.

The product of a wiring and its adjoint (``wirings``) are multilinear, and the derivatives of each
are these two products again. So autograd to any order needs nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from sparsehyper._util import kernels
from sparsehyper.sparse import gpu, native
from sparsehyper.sparse.portable import fold, spread
from sparsehyper.sparse.wirings import Wiring, check


def sparse_linear(x: Tensor, weight: Tensor, wiring: Wiring) -> Tensor:
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
    if torch.compiler.is_compiling() and (layers := _compiled_layers(x, [wiring])):
        return gpu.compiled_chain(x, [weight], layers, [weight.shape[1]])
    function = _Apply if torch.compiler.is_compiling() else _DualApply
    return function.apply(x, weight, wiring)


def sparse_chain(
    x: Tensor, weights: list[Tensor], wirings: list[Wiring], widths: list[int] | None = None
) -> Tensor:
    """`sparse_linear` for several layers in sequence.

    If the kernels can run all layers, this is one node of the autograd graph, with one call of the
    kernels in each direction.

    Args:
        x: input of the first layer, ``[batch, n_in]``.
        weights: one for each layer, ``[fan_in, columns]``; output j has column j mod columns.
        wirings: one for each layer.
        widths: number of outputs of each layer; by default that of its columns.

    Returns:
        Output of the last layer, ``[batch, n_out]``.

    Raises:
        ValueError: weights of no columns or of more than the layer has outputs; and what
            `sparse_linear` raises.
        TypeError: as `sparse_linear` raises it.
    """
    if widths is None:
        widths = [weight.shape[-1] for weight in weights]
    for weight, width in zip(weights, widths, strict=True):
        if not min(1, width) <= weight.shape[-1] <= width:
            raise ValueError(f"`weight` must have 1 to {width} columns, got {weight.shape[-1]}")
    compiling = torch.compiler.is_compiling()
    if compiling and (layers := _compiled_layers(x, wirings)):
        return gpu.compiled_chain(x, weights, layers, widths)
    # The compiler joins the nodes itself.
    if compiling or not (kernels.takes(x, *weights) or gpu.suits(x)):
        return _one_by_one(x, wirings, list(map(spread, weights, widths)))
    return _Chain.apply(x, wirings, widths, *weights)[0]


def _compiled_layers(x: Tensor, wirings: Sequence[Wiring]) -> list[gpu.Layer] | None:
    """The wirings in a GPU's memory if a compiled chain can use its kernels, else None."""
    if not gpu.suits(x):
        return None
    layers = [wiring.prepared for wiring in wirings]
    found = [layer for layer in layers if layer is not None and layer.sources.device == x.device]
    return found if len(found) == len(layers) else None


def _one_by_one(x: Tensor, wirings: list[Wiring], weights: Sequence[Tensor]) -> Tensor:
    *_, y = _outputs(x, wirings, weights)
    return y


def _outputs(x: Tensor, wirings: list[Wiring], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """The input of each layer, and the output of the last."""
    yield x
    for wiring, weight in zip(wirings, weights, strict=True):
        x = sparse_linear(x, weight, wiring)
        yield x


class _Apply(Function):
    @staticmethod
    def forward(x: Tensor, w: Tensor, wiring: Wiring) -> Tensor:
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
        info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, wiring: Wiring
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None:  # the mapped dimension becomes part of the batch
            size = info.batch_size
            y = sparse_linear(x.movedim(in_dims[0], 0).flatten(0, 1), w, wiring)
            return y.unflatten(0, (size, len(y) // size)), 0
        pairs = _samples(info.batch_size, in_dims, x, w)
        return torch.stack([sparse_linear(x, w, wiring) for x, w in pairs]), 0


class _Adjoint(Function):
    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, wiring: Wiring, needs: tuple[bool, bool]
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
        wiring: Wiring,
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
        x: Tensor, wirings: list[Wiring], widths: list[int], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        if all(kernels.at_address(tensor) for tensor in (x, *weights)):
            return native.chain(x, weights, [wiring.native for wiring in wirings], widths)
        if gpu.takes(x, *weights):
            layers = [wiring.layer(x.device) for wiring in wirings]
            return gpu.chain(
                x, weights, layers, widths, lambda: _check(x, weights, wirings, widths)
            )
        wide = list(map(spread, weights, widths))  # of a subclass, without memory
        return _one_by_one(x, wirings, wide), x.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.wirings, ctx.widths, *weights = inputs
        ctx.save_for_backward(x, output[1], *weights)
        ctx.save_for_forward(x, output[1], *weights)
        ctx.mark_non_differentiable(output[1])
        ctx.shapes = [weight.shape for weight in weights]
        _save_versions(ctx, ctx.wirings)
        # The kernels' backward can be used.
        ctx.in_one_call = output[1].numel() or len(weights) == 1
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        wirings, (needs_x, _, _, *needs) = ctx.wirings, ctx.needs_input_grad
        x, between, *weights = ctx.saved_tensors
        if g is None:
            return (None,) * (3 + len(weights))
        _check_unchanged(ctx, wirings)
        for weight, shape in zip(weights, ctx.shapes, strict=True):
            if weight.shape != shape:
                raise ValueError(
                    f"`weight` must have shape {list(shape)}, as in the forward pass, got "
                    f"{list(weight.shape)}"
                )
        if ctx.in_one_call and not torch.is_grad_enabled() and forward_ad._current_level < 0:
            tensors = (g, x, between, *weights)
            if all(map(kernels.at_address, tensors)):
                native_wirings = [wiring.native for wiring in wirings]
                gx, grads = native.chain_adjoint(
                    g, x, between, weights, native_wirings, ctx.widths, needs_x, needs
                )
                return gx, None, None, *grads
            if gpu.takes(*tensors):
                layers = [wiring.layer(x.device) for wiring in wirings]
                gx, grads = gpu.chain_adjoint(
                    g, x, between, weights, layers, ctx.widths, needs_x, needs
                )
                return gx, None, None, *grads
        # Higher derivatives and transforms go layer by layer.
        weights = list(map(spread, weights, ctx.widths))
        inputs = list(_outputs(x, wirings[:-1], weights[:-1]))
        gx, grads = g, [None] * len(weights)
        for i in reversed(range(len(wirings))):
            further = needs_x or any(needs[:i])
            if gx is None or not (further or needs[i]):
                break
            gx, wide = _adjoint(gx, inputs[i], weights[i], wirings[i], further, needs[i])
            grads[i] = None if wide is None else fold(wide, ctx.shapes[i][1])
        return gx if needs_x else None, None, None, *grads

    @staticmethod
    def jvp(
        ctx: Any, u: Tensor | None, _: None, __: None, *tangents: Tensor | None
    ) -> tuple[Any, None]:
        x, _, *weights = ctx.saved_tensors
        weights = list(map(spread, weights, ctx.widths))
        pairs = zip(tangents, ctx.widths, strict=True)
        wide = [None if v is None else spread(v, width) for v, width in pairs]
        inputs = _outputs(x, ctx.wirings[:-1], weights[:-1])
        for x, w, wiring, v in zip(inputs, weights, ctx.wirings, wide, strict=True):
            u = _tangent(x, w, wiring, u, v)
        return u, None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[Any, ...],
        x: Tensor,
        wirings: list[Wiring],
        widths: list[int],
        *weights: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, None]]:
        dims = (in_dims[0], *in_dims[3:])
        run = torch.func.vmap(
            lambda x, *weights: _one_by_one(x, wirings, list(map(spread, weights, widths))), dims
        )
        y = run(x, *weights)
        # The kernels' backward would need the outputs in between; transforms go layer by layer.
        return (y, y.new_empty(0)), (0, None)


def _check(
    x: Tensor, weights: Sequence[Tensor], wirings: Sequence[Wiring], widths: Sequence[int]
) -> None:
    """Raise if the layers of a chain do not fit their weights or one another."""
    shape = x.shape
    for wiring, weight, width in zip(wirings, weights, widths, strict=True):
        check(wiring, shape, x.dtype, weight, width)
        shape = torch.Size([len(x), width])


def _save_versions(ctx: Any, wirings: Sequence[Wiring]) -> None:
    """Save how often each wiring has been written to, for `_check_unchanged`."""
    if not torch.compiler.is_compiling():
        ctx.versions = [wiring.version for wiring in wirings]


def _check_unchanged(ctx: Any, wirings: Sequence[Wiring]) -> None:
    if torch.compiler.is_compiling():
        return
    if any(wiring.version != seen for wiring, seen in zip(wirings, ctx.versions, strict=True)):
        raise ValueError(
            "the wiring of a sparse layer was written to between the forward and the backward "
            "pass; run the forward pass again"
        )


def _adjoint_of(
    g: Tensor, x: Tensor, w: Tensor, wiring: Wiring, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    function = _Adjoint if torch.compiler.is_compiling() else _DualAdjoint
    return function.apply(g, x, w, wiring, needs)


def _tangent(
    x: Tensor, w: Tensor, wiring: Wiring, u: Tensor | None, v: Tensor | None
) -> Tensor | None:
    """The output's tangent for the tangents u of x and v of w; None stands for zero."""
    return _sum(
        None if u is None else sparse_linear(u, w, wiring),
        None if v is None else sparse_linear(x, v, wiring),
    )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _adjoint(
    g: Tensor, x: Tensor, w: Tensor, wiring: Wiring, needs_x: bool, needs_w: bool
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
