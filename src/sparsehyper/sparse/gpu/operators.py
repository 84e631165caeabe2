"""A chain of layers as one PyTorch operator, opaque to ``torch.compile``.

The compiler takes neither addresses nor launches. It sees one operator in each direction, whatever
the number of layers. Eager calls do without the operators, which cost the host more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sparsehyper.sparse.gpu import products
from sparsehyper.sparse.gpu.products import Layer

_library = torch.library.Library("sparsehyper", "FRAGMENT")
_WIRING = (
    "Tensor[] sources, Tensor[] order, Tensor[] starts, int[] n_ins, int[] widths, "
    "bool[] circulant, int[] shifts"
)


def compiled_chain(
    x: Tensor, weights: Sequence[Tensor], layers: Sequence[Layer], widths: Sequence[int]
) -> Tensor:
    """`products.chain`, for the compiler; differentiable once."""
    lists = [layer.by_input or (layer.sources, layer.sources) for layer in layers]
    y, _ = torch.ops.sparsehyper.gpu_chain(
        x,
        list(weights),
        [layer.sources for layer in layers],
        [order for order, _ in lists],
        [starts for _, starts in lists],
        [layer.n_in for layer in layers],
        list(widths),
        [layer.circulant for layer in layers],
        [shift for layer in layers for shift in layer.shifts],
    )
    return y


def _chain(x: Tensor, weights: list[Tensor], *wiring: Any) -> tuple[Tensor, Tensor]:
    return products.chain(x, weights, *_layers(weights, *wiring))


def _chain_adjoint(
    g: Tensor,
    x: Tensor,
    between: Tensor,
    weights: list[Tensor],
    needs: list[bool],
    *wiring: Any,
) -> list[Tensor]:
    needs_x, *needs_w = needs
    layers, widths = _layers(weights, *wiring)
    gx, gw = products.chain_adjoint(g, x, between, weights, layers, widths, needs_x, needs_w)
    return [x.new_empty(0) if grad is None else grad for grad in (gx, *gw)]


def _layers(
    weights: list[Tensor],
    sources: list[Tensor],
    order: list[Tensor],
    starts: list[Tensor],
    n_ins: list[int],
    widths: list[int],
    circulant: list[bool],
    shifts: list[int],
) -> tuple[list[Layer], list[int]]:
    """The layers that these tensors are of, with their plans, or new ones; and their widths."""
    layers, left = [], iter(shifts)
    for w, tensor, *by_input, n, width, shifted in zip(
        weights, sources, order, starts, n_ins, widths, circulant, strict=True
    ):
        own = list(islice(left, -(-width // n) * len(w))) if shifted else None
        layer = products.known_layer(tensor)
        layers.append(layer or Layer(n, tensor, shifts=own, by_input=tuple(by_input)))
    return layers, widths


def _like_chain(x: Tensor, weights: list[Tensor], *wiring: Any) -> tuple[Tensor, Tensor]:
    *_, widths, _circulant, _shifts = wiring
    *inner, width = widths
    return x.new_empty(x.shape[0], width), x.new_empty(x.shape[0] * sum(inner))


def _like_chain_adjoint(
    g: Tensor, x: Tensor, between: Tensor, weights: list[Tensor], needs: list[bool], *_: Any
) -> list[Tensor]:
    some = zip((x, *weights), needs, strict=True)
    return [tensor.new_empty(tensor.shape if need else [0]) for tensor, need in some]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, *lists, n_ins, widths, circulant, shifts = inputs
    ctx.numbers = n_ins, widths, circulant, shifts
    ctx.save_for_backward(x, output[1], *weights, *[t for tensors in lists for t in tensors])
    ctx.count = len(weights)


def _backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    x, between, *tensors = ctx.saved_tensors
    weights, *lists = (tensors[i : i + ctx.count] for i in range(0, len(tensors), ctx.count))
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    gx, *gw = torch.ops.sparsehyper.gpu_chain_adjoint(
        g, x, between, weights, needs, *lists, *ctx.numbers
    )
    some = [grad if need else None for grad, need in zip((gx, *gw), needs, strict=True)]
    none = [None] * ctx.count
    *_, shifts = ctx.numbers
    # PyTorch takes an empty list for one of tensors.
    return some[0], some[1:], none, none, none, None, None, None, None if shifts else []


for _name, _function, _fake, _arguments, _result in (
    ("gpu_chain", _chain, _like_chain, "Tensor x, Tensor[] weights", "(Tensor, Tensor)"),
    (
        "gpu_chain_adjoint",
        _chain_adjoint,
        _like_chain_adjoint,
        "Tensor g, Tensor x, Tensor between, Tensor[] weights, bool[] needs",
        "Tensor[]",
    ),
):
    _library.define(f"{_name}({_arguments}, {_WIRING}) -> {_result}")
    for _device in ("CUDA", "CPU"):  # on the CPU with Triton's interpreter
        _library.impl(_name, _function, _device)
    torch.library.register_fake(f"sparsehyper::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "sparsehyper::gpu_chain", _backward, setup_context=_setup_context, lib=_library
)
