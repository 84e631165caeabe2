"""Layers as one node of the graph equal the same layers called in turn."""

from __future__ import annotations

import copy
import itertools
import weakref

import pytest
import torch
from torch.autograd import forward_ad, gradgradcheck
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from sparsehyper.sparse import SparseLinear, chain


def make(dtype=torch.float32, sizes=(5, 11, 23, 5000, 9001), share=1):
    return torch.nn.ModuleList(
        SparseLinear(n_in, n_out, 3, topology=topology, share=share, seed=n_out)
        for n_in, n_out, topology in zip(
            sizes, sizes[1:], ["circulant", "uniform", "circulant", "circulant"], strict=False
        )
    ).to(dtype)


def in_turn(layers, x):
    for layer in layers:
        x = layer(x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3, 9])
@pytest.mark.parametrize("frozen", [(), ("x",), (0,), (3,), ("x", 0, 1, 2), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("share", [1, 3.7])
@pytest.mark.usefixtures("poison")
def test_values_and_gradients(dtype, batch, frozen, share):
    layers, x = make(dtype, share=share), torch.randn(batch, 5, dtype=dtype)
    x.requires_grad_("x" not in frozen)
    for i, layer in enumerate(layers):
        layer.weight.requires_grad_(i not in frozen)
    inputs = [t for t in (x, *layers.parameters()) if t.requires_grad]
    one, other = chain(list(layers), x), in_turn(layers, x)
    torch.testing.assert_close(one, other)
    g = torch.randn_like(one)
    # The gradient of a shared weight is a sum of more terms, in another order.
    near = {"rtol": 1e-5, "atol": 1e-4} if share > 1 and dtype == torch.float32 else {}
    torch.testing.assert_close(
        torch.autograd.grad(one, inputs, g, retain_graph=True),
        torch.autograd.grad(other, inputs, g),
        **near,
    )
    torch.testing.assert_close(  # once more through the same graph
        torch.autograd.grad(one, inputs, 2 * g),
        torch.autograd.grad(chain(list(layers), x), inputs, 2 * g),
    )


@pytest.mark.parametrize("share", [2, 7.3, 60, 1e9])
@pytest.mark.parametrize("topology", ["circulant", "uniform"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("poison")
def test_any_number_of_outputs_may_share_a_weight(share, topology, threads):
    sizes = [300, 5000, 12_345, 12_345, 7000]
    layers = [
        SparseLinear(n_in, n_out, 3, topology=topology, share=share, seed=n_out)
        for n_in, n_out in itertools.pairwise(sizes)
    ]
    before = torch.get_num_threads()
    for batch in (0, 1, 4, 7, 17):
        x = torch.randn(batch, 300, requires_grad=True)
        inputs = [x, *[layer.weight for layer in layers]]
        torch.set_num_threads(threads)
        try:
            y = chain(layers, x)
            g = torch.randn_like(y)
            found = torch.autograd.grad(y, inputs, g)
        finally:
            torch.set_num_threads(before)
        expected = in_turn([copy.deepcopy(layer).double() for layer in layers], x.double())
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
        expected = torch.autograd.grad(in_turn(layers, x), inputs, g)
        for got, wanted in zip(found, expected, strict=True):
            size = wanted.abs().max().clamp(min=1) if wanted.numel() else 1
            torch.testing.assert_close(got / size, wanted / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [1, 2])
def test_second_derivatives(share):
    layers = make(torch.float64, (3, 7, 12), share)
    names = [name for name, _ in layers.named_parameters()]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return chain(list(self.layers), x)

    model, x = Model(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def call(x, *weights):
        named = {f"layers.{name}": w for name, w in zip(names, weights, strict=True)}
        return functional_call(model, named, (x,))

    assert gradgradcheck(call, (x, *[p.detach().requires_grad_() for p in layers.parameters()]))


@pytest.mark.parametrize("share", [1, 2])
def test_vmap_and_per_sample_gradients(share):
    layers, x = make(sizes=(5, 11, 23), share=share), torch.randn(4, 2, 5)
    for order in (
        torch.func.vmap(lambda x: chain(list(layers), x)),
        torch.func.vmap(torch.func.grad(lambda x: chain(list(layers), x).pow(2).sum())),
        torch.func.jacrev(lambda x: chain(list(layers), x[0]).pow(2)),
    ):
        plain = [order(x)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.chain", in_turn)
            plain.append(order(x))
        torch.testing.assert_close(*plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [1, 2])
def test_forward_mode(dtype, share):
    layers, x = make(dtype, (5, 11, 23, 40), share), torch.randn(2, 5, dtype=dtype)
    names = [name for name, _ in layers.named_parameters()]
    weights = [weight.detach() for weight in layers.parameters()]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return chain(list(self.layers), x).pow(3).mean()

    model = Model()

    def loss(x, *weights):
        named = {f"layers.{name}": w for name, w in zip(names, weights, strict=True)}
        return functional_call(model, named, (x,))

    tangents = [torch.randn_like(t) for t in (x, *weights)]
    _, slope = torch.func.jvp(loss, (x, *weights), tuple(tangents))
    gradient = torch.func.grad(loss, tuple(range(1 + len(weights))))(x, *weights)
    expected = sum((g * t).sum() for g, t in zip(gradient, tangents, strict=True))
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)
    for i in (0, 2):
        second = torch.func.jacrev(torch.func.jacrev(loss, i), i)(x, *weights)
        got = torch.func.hessian(loss, i)(x, *weights)
        torch.testing.assert_close(got, second, rtol=1e-4, atol=1e-4)
    _, of_gradient = torch.func.jvp(torch.func.grad(loss), (x, *weights), tuple(tangents))
    assert of_gradient.isfinite().all()


def test_a_graph_that_was_walked_keeps_nothing_alive():
    layers, x = make(), torch.randn(3, 5, requires_grad=True) * 1
    kept, y = weakref.ref(x), chain(list(layers), x)
    del x
    assert kept() is not None
    y.sum().backward()
    assert kept() is None


def test_is_one_node():
    y = chain(list(make()), torch.randn(1, 5))
    assert {type(node).__name__ for node, _ in y.grad_fn.next_functions if node} == {
        "AccumulateGrad"
    }


def test_refuses_layers_that_do_not_fit():
    with pytest.raises(ValueError, match="one of 20 outputs before one of 30 inputs"):
        chain([SparseLinear(8, 20, 2), SparseLinear(30, 50, 2)], torch.randn(1, 8))
    with pytest.raises(ValueError, match="no biases"):
        chain([SparseLinear(8, 20, 2, bias=True)], torch.randn(1, 8))


def test_a_tensor_whose_address_tells_nothing():
    layers, x = make(), torch.randn(3, 5, dtype=torch.complex64).conj().imag.requires_grad_()
    assert x.is_neg()
    one, other = chain(list(layers), x), in_turn(layers, x)
    torch.testing.assert_close(one, other)
    inputs, g = [x, *layers.parameters()], torch.randn_like(one)
    torch.testing.assert_close(
        torch.autograd.grad(one, inputs, g), torch.autograd.grad(other, inputs, g)
    )


@pytest.mark.parametrize("sizes", [(5, 40, 9, 33, 7), (5, 8), (6, 6, 6)])
def test_layers_need_not_grow(sizes):
    layers = [SparseLinear(a, b, 2, seed=a) for a, b in itertools.pairwise(sizes)]
    x = torch.randn(2, sizes[0], requires_grad=True)
    inputs = [x, *[layer.weight for layer in layers]]
    y, expected = chain(layers, x), in_turn(layers, x)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


@pytest.mark.parametrize("share", [1, 3.7])
@pytest.mark.parametrize("count", [1, 4])
def test_gradients_have_tangents_without_a_graph_of_their_own(share, count):
    """Forward over reverse mode; in float64 the kernels take no part."""
    found = []
    tangent = torch.randn(2, 5)
    for dtype in (torch.float32, torch.float64):
        layers = make(dtype, sizes=(5, 11, 23, 50, 91), share=share)[:count]
        x = torch.linspace(-1, 1, 10, dtype=dtype).view(2, 5).requires_grad_()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent.to(dtype))
            loss = chain(list(layers), dual).pow(3).sum()
            gradients = torch.autograd.grad(loss, [dual, *(layer.weight for layer in layers)])
            found.append([forward_ad.unpack_dual(g).tangent.float() for g in gradients])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 4])
def test_a_traced_graph_has_the_products(count):
    """And not their results for the inputs that it was traced with."""
    layers = list(make()[:count])

    def function(x):
        y = chain(layers, x).square().sum()
        return y, torch.autograd.grad(y, x)[0]

    x, other = (torch.randn(2, 5, requires_grad=True) for _ in range(2))
    traced = make_fx(function)(x)
    torch.testing.assert_close(traced(other), function(other), rtol=1e-5, atol=1e-4)
