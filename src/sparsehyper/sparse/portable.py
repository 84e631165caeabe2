"""The products of ``wirings`` in plain PyTorch, on any device and in any dtype.

No product scatters: those of a circulant wiring read and write contiguous slices, and those of an
indexed wiring use the transposed list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import embedding_bag

# Up to this many connections one gather of all taps is faster than a loop over taps.
_MAX_GATHERED_AT_ONCE = 1 << 17


def circulant(x: Tensor, w: Tensor, shifts: Sequence[Sequence[int]]) -> Tensor:
    """The output y of x ``[batch, n_in]`` and w ``[fan_in, n_out]``."""
    twice = torch.cat([x, x], dim=1)  # every shift is then a plain slice
    y = x.new_empty(len(x), w.shape[1])
    for start, stop, taps in _copies(x.shape[1], w.shape[1], shifts):
        out = y[:, start:stop]
        for t, shift in enumerate(taps):
            source = twice[:, shift : shift + stop - start]
            if t == 0:
                _multiply(source, w[t, start:stop], out)
            else:
                out.addcmul_(source, w[t, start:stop])
    return y


def circulant_adjoint(
    g: Tensor, x: Tensor, w: Tensor, shifts: Sequence[Sequence[int]], needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """The gradients gx and gw for g ``[batch, n_out]``; one that is not needed is empty."""
    n, m = x.shape[1], w.shape[1]
    gx = g.new_zeros(len(g), 2 * n) if needs[0] else g.new_empty(0)
    gw = g.new_empty(w.shape if needs[1] else [0])
    twice = torch.cat([x, x], dim=1)
    for start, stop, taps in _copies(n, m, shifts):
        part = g[:, start:stop]
        for t, shift in enumerate(taps):
            run = slice(shift, shift + stop - start)
            if needs[0]:
                gx[:, run].addcmul_(part, w[t, start:stop])
            if needs[1] and len(g) == 1:
                _multiply(twice[0, run], part[0], gw[t, start:stop])
            elif needs[1]:
                gw[t, start:stop].copy_((twice[:, run] * part).sum(0))
    return gx[:, :n] + gx[:, n:] if needs[0] else gx, gw


def indexed(x: Tensor, w: Tensor, sources: Tensor) -> Tensor:
    """The output y of x ``[batch, n_in]``, w ``[fan_in, n_out]`` and int32 sources of w's shape."""
    if len(x) > 1:  # one pass over the weights for the whole batch
        table, weights, bags = x.T.contiguous(), w.T.contiguous(), sources.T.contiguous()
        return embedding_bag(bags, table, mode="sum", per_sample_weights=weights).T.contiguous()
    if sources.numel() <= _MAX_GATHERED_AT_ONCE:
        return (x.index_select(1, sources.reshape(-1)).view(len(x), *w.shape) * w).sum(1)
    y = x.index_select(1, sources[0]).mul_(w[0])
    for t in range(1, len(w)):
        y.addcmul_(x.index_select(1, sources[t]), w[t])
    return y


def indexed_adjoint(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    sources: Tensor,
    order: Tensor,
    starts: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Like `circulant_adjoint`; ``order`` and ``starts`` are from `transposed`."""
    gx, gw = g.new_empty(0), g.new_empty(0)
    table = g.T.contiguous()
    if needs[0] and len(g) == 0:
        gx = torch.zeros_like(x)
    elif needs[0]:
        weights = w.reshape(-1).index_select(0, order)
        outputs = order % w.shape[1]
        gx = embedding_bag(
            outputs,
            table,
            starts,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        ).T.contiguous()
    if needs[1] and w.numel() * len(x) <= _MAX_GATHERED_AT_ONCE:
        taken = x.index_select(1, sources.reshape(-1)).view(len(x), *w.shape)
        gw = (taken * g[:, None]).sum(0)
    elif needs[1]:
        gw = torch.empty_like(w)
        inputs = x.T.contiguous()
        for t in range(len(w)):
            gw[t] = inputs.index_select(0, sources[t]).mul_(table).sum(1)
    return gx, gw


def transposed(sources: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    """The connections of ``sources`` ``[fan_in, n_out]``, grouped by input.

    Returns:
        The connections ``t · n_out + j``, int32 ``[fan_in · n_out]``, sorted by their source; and
        where each input's group starts and the last one ends, int32 ``[n_in + 1]``.

    Raises:
        ValueError: a source that is not an input.
    """
    flat = sources.reshape(-1).long()
    if flat.numel() and not 0 <= flat.min() <= flat.max() < n_in:
        raise ValueError(
            f"`sources` must lie in [0, {n_in}), got {int(flat.min())} to {int(flat.max())}"
        )
    counts = torch.bincount(flat, minlength=n_in)
    order = flat.argsort(stable=True)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return order.to(torch.int32), starts.to(torch.int32)


def _copies(
    n_in: int, n_out: int, shifts: Sequence[Sequence[int]]
) -> Iterator[tuple[int, int, Sequence[int]]]:
    """First and last output of each copy of the input, and its shifts."""
    for start, taps in zip(range(0, n_out, n_in), shifts, strict=True):
        yield start, min(start + n_in, n_out), taps


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    if torch.compiler.is_compiling():
        out.copy_(a * b)  # the compiler refuses slices as `out=`, and fuses this
    else:
        torch.mul(a, b, out=out)


def spread(shared: Tensor, width: int) -> Tensor:
    """``[…, columns]`` as ``[…, width]``: position j has column j mod columns."""
    columns = shared.shape[-1]
    if columns == width:
        return shared
    times = -(-width // columns)
    return shared.repeat(*[1] * (shared.ndim - 1), times)[..., :width]


def fold(wide: Tensor, columns: int) -> Tensor:
    """The adjoint of `spread`: ``[…, width]`` as ``[…, columns]``, sums over positions."""
    width = wide.shape[-1]
    if columns == width:
        return wide
    padded = F.pad(wide, (0, -width % columns))
    return padded.unflatten(-1, (-1, columns)).sum(-2)
