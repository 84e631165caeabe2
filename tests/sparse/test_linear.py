from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from helpers.conformance import dense_matrix
from helpers.replicas import replicas
from sparsehyper.sparse import TOPOLOGIES, SparseLinear, chain

SHAPES = [(1, 1, 1), (3, 10, 2), (5, 17, 9), (7, 30, 6), (30, 7, 4), (8, 4500, 3), (4100, 4101, 2)]


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


@pytest.mark.parametrize("batch", [1, 2])
def test_derivatives_through_the_slices_of_a_wide_circulant_layer(batch):
    layer = SparseLinear(5000, 12_345, 3).double()
    sources = layer.connections().long()
    x = torch.randn(batch, 5000, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn(batch, 12_345, dtype=torch.double, requires_grad=True)
    directions = torch.randn_like(x), torch.randn_like(layer.weight)

    def derivatives(y):
        first = torch.autograd.grad(y, [x, layer.weight], cotangent, create_graph=True)
        second = torch.autograd.grad(first, [cotangent, x, layer.weight], directions)
        return *first, *second

    expected = derivatives((layer.weight * x[:, sources]).sum(1))
    torch.testing.assert_close(derivatives(layer(x)), expected)


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


LAYERS = [("uniform", 20), ("circulant", 20), ("circulant", 5000)]


def make(topology, n_in):
    layer = SparseLinear(n_in, 12_000, 2, topology=topology)
    return layer, layer.shifts if topology == "circulant" else layer.sources


def name_of(topology):
    return "shifts" if topology == "circulant" else "sources"


@pytest.mark.parametrize(("topology", "n_in"), LAYERS)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("damage", ["beyond", "beyond int32", "fractions"])
def test_after_a_refused_load_the_layer_is_as_it_was(topology, n_in, assign, damage):
    layer, wiring = make(topology, n_in)
    x, before = torch.randn(2, n_in), copy.deepcopy(layer.state_dict())
    expected = layer(x)
    state = {key: value + 1 for key, value in before.items()}
    state[name_of(topology)] = {
        "beyond": torch.full_like(wiring, n_in),
        "beyond int32": wiring.long() + 2**32,  # the same numbers, in the low half
        "fractions": wiring.float(),
    }[damage]
    with pytest.raises(ValueError, match=rf"`{name_of(topology)}`.*got"):
        layer.load_state_dict(state, assign=assign)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(("topology", "n_in"), LAYERS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_wiring_of_another_integer_type_is_loaded_as_int32(topology, n_in, assign):
    layer, wiring = make(topology, n_in)
    other = SparseLinear(n_in, 12_000, 2, topology=topology, seed=1)
    x = torch.randn(2, n_in)
    expected = layer(x)
    state = layer.state_dict() | {name_of(topology): wiring.long()}
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(x), expected)
    assert other.state_dict()[name_of(topology)].dtype == torch.int32
    assert state[name_of(topology)].dtype == torch.int64  # the caller's own


@pytest.mark.parametrize(("topology", "n_in"), LAYERS)
def test_a_wiring_written_to_is_used_or_refused(topology, n_in):
    layer, wiring = make(topology, n_in)
    other = SparseLinear(n_in, 12_000, 2, topology=topology, seed=1)
    other.weight = layer.weight
    x = torch.randn(2, n_in)
    assert not torch.equal(layer(x), other(x))
    wiring.copy_(getattr(other, name_of(topology)))
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for one in (layer, *copies):
        assert torch.equal(one(x), other(x))
    wiring.fill_(2**30)
    for call in (layer, lambda x: chain([layer], x)):
        with pytest.raises(ValueError, match="got 1073741824 to 1073741824"):
            call(x)
    wiring.copy_(getattr(other, name_of(topology)))
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("value", [-1, 20, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("place", [0, 8191, 11_999])
def test_the_kernels_find_a_source_that_was_written_behind_pytorch(batch, value, place):
    layer, sources = make("uniform", 20)
    x = torch.randn(batch, 20, requires_grad=True)
    y = layer(x)
    before = sources[1, place].item()
    sources.detach().numpy()[1, place] = value
    for call in (layer, lambda x: chain([layer], x)):
        with pytest.raises(ValueError, match=r"`sources` of layer 0 must lie in \[0, 20\)"):
            call(x)
    with pytest.raises(ValueError, match=r"`sources` of layer 0 must lie in \[0, 20\)"):
        y.sum().backward()
    sources.numpy()[1, place] = before
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize(("topology", "n_in"), LAYERS)
def test_a_wiring_that_does_not_fit_in_its_place_is_refused(topology, n_in):
    layer, wiring = make(topology, n_in)
    x, name = torch.randn(1, n_in), name_of(topology)
    for other in (wiring[:1], wiring[:, :1], wiring.flatten(), wiring.float()):
        with pytest.raises(ValueError, match=rf"`{name}` must be integers of shape .*, got"):
            functional_call(layer, {name: other}, (x,))
    expected = layer(x)
    assert torch.equal(functional_call(layer, {name: wiring.long()}, (x,)), expected)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("shape", [[2, 11], [1, 40], [40], [2, 40, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_chain_refuses_weights_of_another_shape(place, shape, dtype):
    layers = [SparseLinear(a, 40, 2, topology="uniform").to(dtype) for a in (10, 40, 40)]
    x = torch.randn(3, 10, dtype=dtype)
    y = chain(layers, x)
    layers[place].weight.data = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=r"shape.*40"):
        chain(layers, x)
    if dtype == torch.float32:
        with pytest.raises(ValueError, match=r"shape.*40"):
            y.sum().backward()


def test_a_shared_weight_of_another_width_is_refused():
    layer = SparseLinear(10, 30, 2, share=3, bias=True)
    for name in ("weight", "bias"):
        wrong = {name: torch.zeros_like(getattr(layer, name))[..., :5]}
        with pytest.raises(ValueError, match=r"must have (10 columns|shape \[2, 10\]), got"):
            functional_call(layer, wrong, (torch.zeros(1, 10),))


def test_a_weight_without_memory_is_refused():
    layer = SparseLinear(10, 30, 2)
    layer.weight.untyped_storage().resize_(0)
    for call in (layer, lambda x: chain([layer], x)):
        with pytest.raises(ValueError, match=r"`weight` of shape \[2, 30\] must have memory"):
            call(torch.zeros(1, 10))


@pytest.mark.parametrize(("topology", "n_in"), LAYERS)
def test_replicas_as_data_parallel_makes_them(topology, n_in, monkeypatch):
    layer, _ = make(topology, n_in)
    x = torch.randn(2, n_in)
    for replica in replicas(layer, monkeypatch):
        assert torch.equal(replica(x), layer(x))
        assert torch.equal(chain([replica], x), layer(x))
