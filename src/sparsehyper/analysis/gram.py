"""Inner products of long vectors in float64, without a float64 copy of the vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_COLUMNS = 1 << 14  # what is converted at a time stays in the cache
_PIECE = 1 << 28  # bytes of vectors generated at once
_HELD = 5 << 29  # bytes of vectors kept, to be multiplied with all others


def rows_at_once(numel: int) -> int:
    """How many float32 vectors of ``numel`` numbers to generate at once."""
    return max(1, _PIECE // (4 * numel))


def gram(vectors: Tensor, others: Tensor | None = None, *, shift: Tensor | None = None) -> Tensor:
    """Inner products, float64 ``[n, m]``, of the rows of ``[n, numel]`` and ``[m, numel]``.

    Args:
        vectors: of any real dtype.
        others: None for the same again.
        shift: ``[numel]``, taken off every row first.
    """
    columns = [matrix.split(_COLUMNS, 1) for matrix in (vectors, others) if matrix is not None]
    shifts = [None] * len(columns[0]) if shift is None else shift.split(_COLUMNS)
    total = vectors.new_zeros(
        len(vectors), len(vectors if others is None else others), dtype=torch.float64
    )
    for off, *pieces in zip(shifts, *columns, strict=True):
        x, *y = (piece.double() if off is None else piece.double() - off for piece in pieces)
        total.addmm_(x, (y[0] if y else x).T)
    return total


def gram_of_outputs(function: Callable[[Tensor], Tensor], inputs: Tensor, numel: int) -> Tensor:
    """Inner products, float64 ``[n, n]``, of the outputs for ``inputs`` ``[n, …]``.

    Where the outputs are too many to be kept, some are computed several times.

    Args:
        function: from ``[batch, …]`` to float32 ``[batch, numel]``, each row by itself.
        inputs: the inputs.
        numel: length of an output.
    """
    n, piece = len(inputs), rows_at_once(numel)
    # Whole pieces, as an output is rounded in other ways in another batch.
    held = piece * max(1, _HELD // (4 * numel * piece))
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
    """The inner products ``[n, n]`` of vectors less their mean, from those of the vectors."""
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
        # NumPy asks for huge pages, which come faster.
        return torch.from_numpy(np.empty((rows, numel), np.float32))
    return like.new_empty(rows, numel)
