from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from conformance import dense_matrix
from sparsehyper.sparse import TOPOLOGIES, SparseLinear

SHAPES = [(1, 1, 1), (3, 10, 2), (5, 17, 9), (7, 30, 6), (30, 7, 4), (8, 4500, 3), (8200, 8201, 2)]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("n_in", "n_out", "fan_in"), SHAPES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_equals_a_dense_layer_in_value_and_gradient(topology, n_in, n_out, fan_in, batch):
    layer = SparseLinear(n_in, n_out, fan_in, topology=topology, bias=True, seed=1).double()
    torch.nn.init.normal_(layer.bias)
    matrix = dense_matrix(layer).requires_grad_()
    x = torch.randn(n_in, batch, dtype=torch.double).T.requires_grad_()  # not contiguous
    cotangent = torch.randn(batch, n_out, dtype=torch.double)
    y = layer(x)
    expected = torch.nn.functional.linear(x, matrix, layer.bias)
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y, [x, layer.weight, layer.bias], cotangent)
    dense = torch.autograd.grad(expected, [x, matrix, layer.bias], cotangent)
    torch.testing.assert_close(grads[0], dense[0])
    taken = dense[1][torch.arange(n_out), layer.connections().long()]
    torch.testing.assert_close(grads[1], taken)
    torch.testing.assert_close(grads[2], dense[2])


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_first_and_second_derivatives(topology, batch):
    layer = SparseLinear(5, 12, 3, topology=topology).double()

    def call(x, weight):
        return functional_call(layer, {"weight": weight}, (x,))

    x = torch.randn(batch, 5, dtype=torch.double, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    assert gradcheck(call, (x, weight))
    assert gradgradcheck(call, (x, weight))


def test_derivatives_through_the_slices_of_a_wide_circulant_layer(monkeypatch):
    monkeypatch.setattr("sparsehyper.sparse.linear._SHORT", 1)
    test_first_and_second_derivatives("circulant", 1)
    test_first_and_second_derivatives("circulant", 2)


def test_the_two_ways_to_compute_a_circulant_layer_agree(monkeypatch):
    narrow = SparseLinear(50, 333, 4).double()
    monkeypatch.setattr("sparsehyper.sparse.linear._SHORT", 1)
    wide = SparseLinear(50, 333, 4).double()
    x = torch.randn(3, 50, dtype=torch.double)
    torch.testing.assert_close(narrow(x), wide(x))


@pytest.mark.parametrize("slope", [1.0, 0.25, 0.0])
def test_weights_have_the_variance_of_the_formula(slope):
    weight = SparseLinear(1000, 100_000, 4, negative_slope=slope).weight.detach()
    assert weight.var() == pytest.approx(2 / ((1 + slope**2) * 4), rel=0.01)
    assert weight.mean() == pytest.approx(0, abs=0.01)
    assert weight.abs().max() <= (3 * 2 / ((1 + slope**2) * 4)) ** 0.5


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_checkpoint_brings_its_wiring(topology):
    one, two = (SparseLinear(20, 5000, 3, topology=topology, seed=s) for s in (0, 1))
    assert not torch.equal(one.connections(), two.connections())
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 20)
    assert torch.equal(one(x), two(x))
    assert torch.equal(copy.deepcopy(two)(x), one(x))


@pytest.mark.parametrize("topology", ["circulant", "uniform"])
def test_bfloat16_is_close_to_float32(topology):
    layer = SparseLinear(300, 6000, 3, topology=topology)
    x = torch.randn(2, 300)
    low = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((0, 3, 1), {}, "`in_features` must be at least 1, got 0"),
        ((3, 0, 1), {}, "`out_features` must be at least 1, got 0"),
        ((3, 3, 0), {}, "`fan_in` must be at least 1, got 0"),
        ((3, 3, 1), {"topology": "star"}, "`topology` must be one of .*; got 'star'"),
        ((3, 3, 1), {"topology": "local", "sigma": -0.5}, "`sigma` must be at least 0, got -0.5"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(*arguments, **settings)


@pytest.mark.parametrize("shape", [[4], [2, 5], [1, 2, 4]])
def test_refuses_an_input_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"must have shape \[batch, 4\], got .*"):
        SparseLinear(4, 8, 2)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("topology", "name", "value"),
    [("uniform", "sources", 20), ("uniform", "sources", -1), ("circulant", "shifts", 2**31 - 1)],
)
def test_refuses_a_wiring_beyond_its_inputs(topology, name, value):
    layer = SparseLinear(20, 50, 2, topology=topology)
    state = layer.state_dict()
    state[name] = state[name].clone()
    state[name][0, 1] = value
    with pytest.raises(
        ValueError, match=rf"`{name}` of a layer of 20 inputs must lie in .*{value}"
    ):
        layer.load_state_dict(state)


def test_a_weight_of_another_shape_is_refused():
    layer = SparseLinear(10, 30, 2)
    weight = torch.zeros(2, 40)
    with pytest.raises(ValueError, match=r"shape \[2, 30\], got \[2, 40\]"):
        torch.func.functional_call(layer, {"weight": weight}, (torch.zeros(1, 10),))


@pytest.mark.parametrize("topology", ["circulant", "uniform"])
@pytest.mark.parametrize("n_in", [10, 5000])
def test_another_wiring_in_its_place_is_used(topology, n_in):
    one, other = (SparseLinear(n_in, 12_000, 2, topology=topology, seed=s) for s in (1, 2))
    x = torch.randn(2, n_in)
    expected, before = other(x), one(x)
    torch.testing.assert_close(torch.func.functional_call(one, other.state_dict(), (x,)), expected)
    torch.testing.assert_close(one(x), before)


def test_a_wiring_out_of_bounds_in_its_place_is_refused():
    layer = SparseLinear(10, 30, 2, topology="uniform")
    with pytest.raises(ValueError, match=r"must lie in \[0, 10\), got 10 to 10"):
        torch.func.functional_call(
            layer, {"sources": torch.full((2, 30), 10, dtype=torch.int32)}, (torch.zeros(1, 10),)
        )
