"""Other implementations of the sparse product, for comparison.

Each is a module with the wiring and the weights of a `SparseLinear` without bias. It maps
``[batch, n_in]`` to ``[batch, n_out]`` and computes the same function with the same gradients.

- `Coo`: the thesis's scheme. A list of (row, column, weight), sorted by row; gather, scale and
  scatter-add under plain autograd. (Its author's library works on ``[n, batch]``. On
  ``[batch, n]``, as here, it is at least as fast for one embedding, and 4 times as fast for 8.)
- `TorchCsr`: the best that ``torch.sparse`` offers. A CSR matrix, its transpose for the gradient of
  x, and `torch.sparse.sampled_addmm` for the gradient of the weights. It has its own autograd
  function, because PyTorch's forms a dense ``[n_out, n_in]`` matrix.
- `TorchCoo`: ``torch.sparse.mm`` of a COO matrix under PyTorch's autograd. The gradient of the
  weights is formed as a dense matrix, so a large layer gets the gradient of x only.

Source of `Coo`: F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import Function

from sparsehyper._util import kernels
from sparsehyper.sparse import SparseLinear

# Largest dense matrix to form, in elements.
_DENSE_LIMIT = 1 << 26


class Coo(nn.Module):
    """Gather, scale, scatter-add over a list of connections."""

    rows: Tensor
    columns: Tensor

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.out_features = layer.out_features
        rows, columns, weight = _connections(layer)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, n_in]`` to ``[batch, n_out]``."""
        products = x.index_select(1, self.columns) * self.weight
        return x.new_zeros(len(x), self.out_features).index_add(1, self.rows, products)


class TorchCsr(nn.Module):
    """Products with a CSR matrix and its stored transpose."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        rows, columns, weight = _connections(layer)
        self.matrix = _csr(rows, columns, layer.out_features, layer.in_features)
        self.order = columns.argsort(stable=True)
        self.transpose = _csr(
            columns[self.order], rows[self.order], layer.in_features, layer.out_features
        )
        self.weight = nn.Parameter(weight)
        with warnings.catch_warnings():  # PyTorch warns once that CSR is in beta
            warnings.simplefilter("ignore")
            _matrix(self.matrix, weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, n_in]`` to ``[batch, n_out]``."""
        return _CsrProduct.apply(x, self.weight, self)


class TorchCoo(nn.Module):
    """``torch.sparse.mm`` of a COO matrix."""

    indices: Tensor

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.shape = (layer.out_features, layer.in_features)
        rows, columns, weight = _connections(layer)
        self.register_buffer("indices", torch.stack([rows, columns]))
        trainable = layer.out_features * layer.in_features <= _DENSE_LIMIT
        self.weight = nn.Parameter(weight, requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, n_in]`` to ``[batch, n_out]``."""
        matrix = torch.sparse_coo_tensor(
            self.indices, self.weight, self.shape, is_coalesced=True, check_invariants=False
        )
        return torch.sparse.mm(matrix, x.T).T


def thesis_generator(generator: nn.Module) -> nn.Module:
    """A linear sparse generator with a `Coo` of the same wiring and weights for every layer."""
    layers = [module for module in generator.modules() if isinstance(module, SparseLinear)]
    return nn.Sequential(*map(Coo, layers))


@contextmanager
def without_kernels() -> Iterator[None]:
    """Context in which sparse layers run without the compiled kernels."""
    with mock.patch.object(kernels, "takes", return_value=False):
        yield


def bytes_moved(layer: SparseLinear, batch: int, *, backward: bool) -> int:
    """Fewest bytes of a product: every number is read or written once; the wiring is not counted.

    Forward: x and weights are read, y is written. Backward, in addition: the gradient of y, weights
    and x are read, the gradients of weights and x are written.
    """
    x, y, weight = batch * layer.in_features, batch * layer.out_features, layer.weight.numel()
    forward = x + weight + y
    return 4 * (forward + (y + weight + x + weight + x if backward else 0))


def _connections(layer: SparseLinear) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns (int64) and weights of all connections, sorted by row, then column."""
    columns, order = layer.connections().long().T.sort(dim=1)
    weight = layer.weight.detach().T.gather(1, order).flatten()
    rows = torch.arange(layer.out_features).repeat_interleave(columns.shape[1])
    return rows, columns.flatten(), weight


def _csr(rows: Tensor, columns: Tensor, n_rows: int, n_columns: int) -> tuple[Any, ...]:
    """The parts of a CSR matrix except its values; MKL is faster with 32-bit indices."""
    ends = torch.bincount(rows, minlength=n_rows).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    return starts.int(), columns.int(), (n_rows, n_columns)


def _matrix(parts: tuple[Any, ...], values: Tensor) -> Tensor:
    starts, columns, shape = parts
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class _CsrProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kept: TorchCsr) -> Tensor:
        ctx.kept = kept
        ctx.save_for_backward(x, weight)
        return torch.mm(_matrix(kept.matrix, weight), x.T).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        kept, (x, weight) = ctx.kept, ctx.saved_tensors
        of_x = torch.mm(_matrix(kept.transpose, weight[kept.order]), grad.T).T
        pattern = _matrix(kept.matrix, weight)
        of_weight = torch.sparse.sampled_addmm(pattern, grad.T, x, beta=0.0).values()
        return of_x, of_weight, None
