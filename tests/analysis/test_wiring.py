from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.conformance import dense_matrix
from sparsehyper import Chunked, Composed, Dense, HyperNetwork, LowRank, Sparse, TaskEmbedding
from sparsehyper.analysis import connectivity, trace
from sparsehyper.analysis import gram as gram_module
from sparsehyper.generators import Butterfly
from sparsehyper.layout import pack
from sparsehyper.sparse import TOPOLOGIES, SparseLinear

LAYOUT = pack([("a", torch.Size([30, 20])), ("b", torch.Size([30])), ("c", torch.Size([70]))])


def dense_reach(generator) -> torch.Tensor:
    """Which inputs reach which outputs ``[outputs, latent_dim]``, by dense products."""
    reached = None
    for layer in generator.layers:
        wired = (dense_matrix(layer) != 0).float()
        reached = wired if reached is None else (wired @ reached > 0).float()
    return reached


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("latent_dim", [5, 130])
def test_connectivity_equals_that_of_the_dense_product(topology, latent_dim, monkeypatch):
    monkeypatch.setattr(gram_module, "_PIECE_BYTES", 4 * 700 * 3)  # three rows at a time
    generator = Sparse(2, topology=topology, sigma=1.0).build(latent_dim, 700, seed=4)
    coverage = [
        float((dense_matrix(layer) != 0).any(0).float().mean()) for layer in generator.layers
    ]
    expected = dense_reach(generator).mean(0)
    found = connectivity(generator)
    assert found.reach == pytest.approx(expected.tolist())
    assert found.coverage == pytest.approx(coverage)
    summary = found.to_dict()
    assert summary["reach_min"] == pytest.approx(float(expected.min()))
    assert summary["reach_mean"] == pytest.approx(float(expected.mean()))
    assert summary["reach_max"] == pytest.approx(float(expected.max()))


@pytest.mark.parametrize("activation", ["prelu", "leaky_relu", "relu", "abs"])
def test_an_activation_or_a_weight_of_zero_is_wired_too(activation):
    linear = Sparse(2, growth=3).build(6, 500, seed=1)
    other = Sparse(2, growth=3, activation=activation, bias=True).build(6, 500, seed=1)
    other.layers[-1].weight.data.zero_()
    assert connectivity(other) == connectivity(linear)
    assert 0 < min(connectivity(linear).reach) < 1


def test_parts_of_a_composed_generator_count_by_their_size():
    few = Sparse(1, growth=4)
    generator = Composed({"a": few, "*": Dense()}).build(8, LAYOUT)
    part = connectivity(generator.parts[0]).reach
    assert max(part) < 1
    expected = [(600 * share + 100) / 700 for share in part]
    assert connectivity(generator, 8).reach == pytest.approx(expected)
    assert connectivity(generator, 8).coverage[-1] == 1.0


def test_a_product_depends_on_what_either_factor_does():
    generator = LowRank(rank=2, of=Sparse(1, growth=4)).build(8, LAYOUT)
    base = torch.rand(8)
    changed = torch.stack([base, *(base + torch.eye(8))])
    out = generator(changed)
    expected = (out[1:] != out[0]).float().mean(1)
    assert connectivity(generator, 8).reach == pytest.approx(expected.tolist())


@pytest.mark.parametrize("spec", [Dense(), Dense(5), Chunked(3), Butterfly()])
def test_dense_generators_reach_everything(spec):
    found = connectivity(spec.build(8, LAYOUT), 8)
    assert found.reach == (1.0,) * 8
    assert set(found.coverage) <= {1.0}


def test_stages_of_a_butterfly_join_twice_as_many_units_each():
    assert connectivity(Butterfly(stages=1).build(8, 1024), 8).reach == (0.25,) * 8
    assert connectivity(Butterfly(stages=3).build(8, 1024), 8).reach == (1.0,) * 8


def test_of_a_hypernetwork_it_is_that_of_the_generator():
    hnet = HyperNetwork(nn.Linear(9, 40), Sparse(1), TaskEmbedding(2, 8))
    assert connectivity(hnet) == connectivity(hnet.generator)


def test_without_sparse_layers_it_needs_the_latent_size():
    with pytest.raises(ValueError, match="no sparse layers, got a Linear; give its `latent_dim`"):
        connectivity(nn.Linear(3, 4))


def test_weights_that_are_not_finite_are_refused():
    generator = Sparse().build(4, 100)
    generator.layers[-1].weight.data[0, 3] = torch.nan
    with pytest.raises(ValueError, match="`generator` must give numbers, got 1 NaN"):
        connectivity(generator)


@pytest.mark.parametrize("topology", ["circulant", "uniform"])
def test_a_trace_has_what_an_output_depends_on_and_nothing_else(topology):
    layers = [
        SparseLinear(6, 11, 2, topology=topology, seed=1),
        SparseLinear(11, 30, 2, topology=topology, seed=2),
        SparseLinear(30, 70, 1, topology=topology, seed=3),
    ]
    ways = trace(layers, 41)
    for layer, way in zip(layers, ways, strict=True):
        for source, unit in way.tolist():
            assert source in layer.connections()[:, unit]
    z = torch.eye(6)
    for layer in layers:
        z = layer(z)
    depends = z[:, 41].abs() > 0
    assert ways[0][:, 0].unique().tolist() == depends.nonzero()[:, 0].tolist()
    assert [sorted({u for _, u in way.tolist()}) for way in ways[:-1]] == [
        sorted({s for s, _ in way.tolist()}) for way in ways[1:]
    ]


def test_a_trace_of_no_output():
    with pytest.raises(IndexError, match=r"`output` must be in 0\.\.7, got 8"):
        trace([SparseLinear(4, 8, 3)], 8)
