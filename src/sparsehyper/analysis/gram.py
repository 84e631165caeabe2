"""Inner products of long vectors in float64, without a float64 copy of the vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_COLUMNS = 1 << 14  # columns converted at a time, so that they stay in the cache
_PIECE_BYTES = 1 << 28  # vectors generated at once
_HELD_BYTES = 5 << 29  # vectors held in memory, to be multiplied with all others


def rows_at_once(numel: int) -> int:
    """Number of float32 vectors of ``numel`` elements to generate at once."""
    return max(1, _PIECE_BYTES // (4 * numel))


def gram(vectors: Tensor, others: Tensor | None = None, *, shift: Tensor | None = None) -> Tensor:
    """Inner products, float64 ``[n, m]``, of the rows of two matrices.

    Args:
        vectors: ``[n, numel]``, of any real dtype.
        others: ``[m, numel]``; None for ``vectors``.
        shift: ``[numel]``, subtracted from every row first.
    """
    columns = [matrix.split(_COLUMNS, 1) for matrix in (vectors, others) if matrix is not None]
    shifts = [None] * len(columns[0]) if shift is None else shift.split(_COLUMNS)
    total = vectors.new_zeros(
        len(vectors), len(vectors if others is None else others), dtype=torch.float64
    )
    for offset, *pieces in zip(shifts, *columns, strict=True):
        x, *y = (piece.double() if offset is None else piece.double() - offset for piece in pieces)
        total.addmm_(x, (y[0] if y else x).T)
    return total


def gram_of_outputs(function: Callable[[Tensor], Tensor], inputs: Tensor, numel: int) -> Tensor:
    """Inner products, float64 ``[n, n]``, of the outputs of a function.

    If memory cannot hold all outputs, some are computed several times.

    Args:
        function: from ``[batch, …]`` to float32 ``[batch, numel]``, each row
            computed independently.
        inputs: inputs of the function ``[n, …]``.
        numel: length of an output.
    """
    n, piece = len(inputs), rows_at_once(numel)
    # Use whole pieces: rounding of an output may depend on the size of its batch.
    held = piece * max(1, _HELD_BYTES // (4 * numel * piece))
    step = piece * max(1, held // (4 * piece))
    products = inputs.new_empty(n, n, dtype=torch.float64)
    kept = _empty(min(n, held), numel, inputs)
    passing = _empty(min(max(0, n - held), step), numel, inputs)
    for first in range(0, n, held):
        end = min(first + held, n)
        own = _fill(kept, function, inputs[first:end])
        products[first:end, first:end] = gram(own)
        for start in range(end, n, step):
            stop = min(start + step, n)
            products[first:end, start:stop] = gram(
                own, _fill(passing, function, inputs[start:stop])
            )
            products[start:stop, first:end] = products[first:end, start:stop].T
    return products


def centred(products: Tensor) -> Tensor:
    """Inner products ``[n, n]`` of vectors minus their mean, from those of the vectors."""
    rows = products - products.mean(0)
    return rows - rows.mean(1, keepdim=True)


def _fill(memory: Tensor, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The outputs for ``inputs``, in the first rows of ``memory``."""
    out, size = memory[: len(inputs)], rows_at_once(memory.shape[1])
    for rows, some in zip(out.split(size), inputs.split(size), strict=True):
        rows.copy_(function(some))
    return out


def _empty(rows: int, numel: int, like: Tensor) -> Tensor:
    if like.is_cpu and like.dtype == torch.float32:
        # NumPy asks for huge pages, which are faster to get.
        return torch.from_numpy(np.empty((rows, numel), np.float32))
    return like.new_empty(rows, numel)
