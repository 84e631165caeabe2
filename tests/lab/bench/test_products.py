from __future__ import annotations

import pytest
import torch

from sparsehyper import Sparse, SparseLinear
from sparsehyper.lab.bench.generators import build
from sparsehyper.lab.bench.products import (
    Coo,
    TorchCoo,
    TorchCsr,
    bytes_moved,
    thesis_generator,
    without_kernels,
)


def reference(layer, x, cotangent):
    """Output, gradient of x, and gradient of every weight, sorted by output, then input."""
    y = layer(x)
    of_x, of_weight = torch.autograd.grad(y, [x, layer.weight], cotangent)
    order = layer.connections().long().T.argsort(dim=1)
    return y, of_x, of_weight.T.gather(1, order).flatten()


@pytest.mark.parametrize("kind", [Coo, TorchCsr, TorchCoo])
@pytest.mark.parametrize("topology", ["circulant", "uniform", "regular", "local"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_way_computes_the_sparse_layer(kind, topology, batch):
    layer = SparseLinear(41, 130, 3, topology=topology).double()
    x = torch.randn(batch, 41, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn(batch, 130, dtype=torch.double)
    other = kind(layer)
    y = other(x)
    found = (y, *torch.autograd.grad(y, [x, other.weight], cotangent))
    for ours, theirs in zip(reference(layer, x, cotangent), found, strict=True):
        torch.testing.assert_close(theirs, ours)


def test_torch_coo_leaves_out_a_gradient_that_would_be_formed_dense():
    layer = SparseLinear(10_000, 20_000, 2)
    other = TorchCoo(layer)
    x = torch.randn(1, 10_000, requires_grad=True)
    other(x).sum().backward()
    assert other.weight.grad is None
    torch.testing.assert_close(x.grad, torch.autograd.grad(layer(x).sum(), x)[0])


def test_the_thesis_generator_is_the_same_function():
    ours = Sparse().build(16, 3000).double()
    theirs = thesis_generator(Sparse().build(16, 3000).double())
    assert not any(isinstance(m, SparseLinear) for m in theirs.modules())
    z = torch.randn(2, 16, dtype=torch.double)
    torch.testing.assert_close(theirs(z), ours(z))
    torch.testing.assert_close(build("thesis", 500, 3)(z[:, :1].expand(2, 64).float()),
                               build("sparse", 500, 3)(z[:, :1].expand(2, 64).float()))  # fmt: skip


def test_without_kernels_it_is_the_same_function_and_only_within():
    layer = SparseLinear(5000, 9000, 3)
    x = torch.randn(2, 5000)
    calls = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    def ours():
        calls.clear()
        with Watch():
            y = layer(x)
        return y, any("sparsehyper" in call for call in calls)

    before, native = ours()
    with without_kernels():
        plain, inside = ours()
    assert not inside
    assert ours()[1] == native
    torch.testing.assert_close(plain, before)


def test_bytes_of_a_product():
    layer = SparseLinear(10, 30, 3)
    assert bytes_moved(layer, 2, backward=False) == 4 * (20 + 90 + 60)
    assert bytes_moved(layer, 2, backward=True) == 4 * (170 + (60 + 90 + 20) + (90 + 20))
