"""The products of ``wirings`` by the Triton kernels: on a GPU, in float32 and bfloat16.

PyTorch's Linux builds for CUDA bring Triton along. Where it is missing, `takes` is never true.

A wide layer is one launch in each direction. A narrow one, of a few thousand outputs, cannot fill
a GPU, so several of them share a launch, in which one program computes a row of each in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEVICE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16)
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)

# These numbers affect speed only.
_NARROW = 4096  # most outputs of a layer that shares a launch
_SHARING = 8  # most layers of a launch; every number of layers is compiled once
_TAPS = 4  # most taps in one pass over the rows
_PAIRS = 8  # most pairs of a copy and a tap in one pass over the rows
_COLUMNS = 8  # rows that lie side by side for an indexed layer


class Layer(NamedTuple):
    """A wiring in the memory of a device.

    Args:
        circulant: its kind.
        n_in: number of inputs.
        sources: int32 ``[fan_in, n_out]``; of a circulant layer the number of inputs, the fan-in
            and the shifts, one copy after another.
        order, starts: of an indexed layer, the connections of each input (`portable.transposed`);
            else any tensors.
    """

    circulant: bool
    n_in: int
    sources: Tensor
    order: Tensor
    starts: Tensor


def serves(device: torch.device) -> bool:
    """Whether the kernels exist and run on a device."""
    return device.type == DEVICE and _kernels() is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels may read these tensors: on a GPU, of a dtype of theirs, with memory."""
    for tensor in tensors:
        if (
            tensor.dtype not in _DTYPES
            or not serves(tensor.device)
            or type(tensor) not in _PLAIN_TYPES
            or tensor.is_neg()
        ):
            return False
        try:  # tensors without memory, such as efficient zeros, have address 0
            if tensor.data_ptr() == 0 and tensor.numel():
                return False
        except RuntimeError:  # a tensor of a torch.func transform
            return False
    return True


def chain(x: Tensor, weights: Sequence[Tensor], layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Run layers in sequence.

    Args:
        x: input of the first layer ``[batch, n_in]``.
        weights, layers: one for each layer; the shapes fit one another.

    Returns:
        Output of the last layer ``[batch, n_out]``, and a flat tensor of the other layers' outputs.
    """
    rows, x, weights = len(x), x.contiguous(), [w.contiguous() for w in weights]
    widths = [w.shape[1] for w in weights]
    y = x.new_empty(rows, widths[-1])
    between, inner = _flat(x, rows, widths)
    values = [x, *inner, y]  # the input of each layer, and the output of the last
    for start, stop in _launches(tuple(layer.circulant for layer in layers), tuple(widths)):
        source, target, w, layer = values[start], values[stop], weights[start], layers[start]
        if stop - start > 1:
            _run(
                "narrow",
                rows,
                source,
                tuple(weights[start:stop]),
                tuple(layer.sources for layer in layers[start:stop]),
                values[start + 1],
                target,
                rows,
                layer.n_in,
                widths[stop - 1],
                TAPS=4,
                BLOCK=1024,
                num_warps=8,
            )
        elif layer.circulant:
            _circulant(source, w, target, layer, rows)
        else:
            _indexed(source, w, target, layer, rows)
    return y, between


def chain_adjoint(
    g: Tensor,
    x: Tensor,
    between: Tensor,
    weights: Sequence[Tensor],
    layers: Sequence[Layer],
    needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x and of the weights; None if not needed.

    Args:
        g: gradient of the output of `chain`.
        x, weights, layers: the arguments of `chain`.
        between: the second tensor that `chain` returned.
        needs_x, needs: whether the gradients of x and of each weight are needed.
    """
    rows, g, x, weights = len(x), g.contiguous(), x.contiguous(), [w.contiguous() for w in weights]
    widths = [w.shape[1] for w in weights]
    sizes = [rows * width for width in widths[:-1]]
    values = [x, *between.split(sizes)]
    _, inner = _flat(x, rows, widths)
    slopes = [x.new_empty(x.shape if needs_x else [0]), *inner, g]
    grads: list[Tensor | None] = [torch.empty_like(w) if n else None for w, n in zip(weights, needs)]
    for start, stop in reversed(_launches(tuple(x.circulant for x in layers), tuple(widths))):
        lower, here = needs_x or any(needs[:start]), any(needs[start:stop])
        if not (lower or here):
            break
        layer, of_x, of_y = layers[start], slopes[start], slopes[stop]
        if stop - start > 1:
            tables = tuple(layer.sources for layer in layers[start:stop])
            sizes_of = (rows, layer.n_in, widths[stop - 1])
            _run(
                "narrow_adjoint_x",
                rows,
                of_y,
                tuple(weights[start:stop]),
                tables,
                slopes[start + 1],
                of_x,
                *sizes_of,
                NEED_X=lower,
                PAIRS=4,
                BLOCK=1024,
                num_warps=8,
            )
            if here:
                of_w = [
                    torch.empty_like(w) if grad is None else grad
                    for grad, w in zip(grads[start:stop], weights[start:stop])
                ]
                _run(
                    "narrow_adjoint_w",
                    sum(-(-w.numel() // 256) for w in of_w),
                    of_y,
                    values[start],
                    values[start + 1],
                    slopes[start + 1],
                    tuple(of_w),
                    tables,
                    *sizes_of,
                    ROWS=min(_power(rows), 4),
                    BLOCK=256,
                )
            continue
        adjoint = _circulant_adjoint if layer.circulant else _indexed_adjoint
        of_w = grads[start]
        adjoint(of_y, values[start], weights[start], of_x if lower else None, of_w, layer, rows)
    return slopes[0] if needs_x else None, grads


def adjoint(
    g: Tensor, x: Tensor, w: Tensor, layer: Layer, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of x and w of one layer; one that ``needs`` does not name is empty."""
    gx, (gw,) = chain_adjoint(g, x, x.new_empty(0), [w], [layer], needs[0], [needs[1]])
    return x.new_empty(0) if gx is None else gx, x.new_empty(0) if gw is None else gw


def _circulant(x: Tensor, w: Tensor, y: Tensor, layer: Layer, rows: int) -> None:
    (k, m), n = w.shape, layer.n_in
    at_once, block = min(_power(rows), 4), 512
    programs = -(-n // block) * -(-m // n) * -(-rows // at_once)
    taps = _share(k, _TAPS)
    sizes = (rows, n, m, k)
    _run("circulant", programs, x, w, y, layer.sources, *sizes, TAPS=taps, ROWS=at_once, BLOCK=block)


def _circulant_adjoint(
    g: Tensor, x: Tensor, w: Tensor, gx: Tensor | None, gw: Tensor | None, layer: Layer, rows: int
) -> None:
    (k, m), n = w.shape, layer.n_in
    copies, block = -(-m // n), 256
    _run(
        "circulant_adjoint",
        -(-n // block),
        *(g, x, w, g if gx is None else gx, g if gw is None else gw, layer.sources),
        *(rows, n, m, k, copies),
        NEED_X=gx is not None,
        NEED_W=gw is not None,
        PAIRS=_share(copies * k, _PAIRS),
        ROWS=min(_power(rows), 4),
        BLOCK=block,
    )


def _indexed(x: Tensor, w: Tensor, y: Tensor, layer: Layer, rows: int) -> None:
    (k, m), n = w.shape, layer.n_in
    at_once = min(_power(rows), _COLUMNS)
    block = 512 // at_once
    _run(
        "indexed",
        -(-m // block) * -(-rows // at_once),
        *(_columns(x, rows, n, at_once), w, y, layer.sources, rows, n, m, k),
        TAPS=_share(k, _TAPS),
        ROWS=at_once,
        BLOCK=block,
    )


def _indexed_adjoint(
    g: Tensor, x: Tensor, w: Tensor, gx: Tensor | None, gw: Tensor | None, layer: Layer, rows: int
) -> None:
    (k, m), n = w.shape, layer.n_in
    at_once = min(_power(rows), _COLUMNS)
    block = 512 // at_once
    of_x = 0 if gx is None else -(-n // block) * -(-rows // at_once)
    of_w = 0 if gw is None else -(-w.numel() // block)
    _run(
        "indexed_adjoint",
        of_x + of_w,
        *(_columns(g, rows, m, at_once), _columns(x, rows, n, at_once)),
        *(w, g if gx is None else gx, g if gw is None else gw),
        *(layer.sources, layer.starts, layer.order, rows, n, m, k, of_x),
        PAIRS=4,
        ROWS=at_once,
        BLOCK=block,
    )


def _columns(x: Tensor, rows: int, n: int, at_once: int) -> Tensor:
    """x ``[rows, n]`` as ``[⌈rows / at_once⌉, n, at_once]``."""
    if at_once == 1:
        return x
    groups, block = -(-rows // at_once), 1024 // at_once
    out = x.new_empty(groups, n, at_once)
    _run("columns", -(-n // block) * groups, x, out, rows, n, ROWS=at_once, BLOCK=block)
    return out


@cache
def _kernels() -> ModuleType | None:
    try:
        from sparsehyper.sparse import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def _run(name: str, programs: int, *arguments: Any, **constants: Any) -> None:
    if programs:
        getattr(_kernels(), name)[(programs,)](*arguments, **constants)


@lru_cache
def _launches(circulant: tuple[bool, ...], widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last layer of each launch."""
    launches: list[tuple[int, int]] = []
    for i, (narrow, width) in enumerate(zip(circulant, widths, strict=True)):
        narrow = narrow and width <= _NARROW
        if narrow and launches and launches[-1][2] and i - launches[-1][0] < _SHARING:
            launches[-1] = (launches[-1][0], i + 1, True)
        else:
            launches.append((i, i + 1, narrow))
    return [launch[:2] for launch in launches]


def _flat(x: Tensor, rows: int, widths: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Memory for the outputs of all layers but the last, and its parts."""
    sizes = [rows * width for width in widths[:-1]]
    flat = x.new_empty(sum(sizes))
    return flat, flat.split(sizes)


def _share(number: int, most: int) -> int:
    """The size of the fewest equal parts of at most ``most``."""
    parts = -(-number // most)
    return -(-number // parts)


def _power(number: int) -> int:
    """The next power of 2."""
    return 1 << max(number - 1, 0).bit_length()
