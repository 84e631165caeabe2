from __future__ import annotations

import pytest
import torch
from torch import nn

from conformance import dense_matrix
from sparsehyper import Chunked, Dense, HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.analysis import connectivity, summarize
from sparsehyper.sparse import TOPOLOGIES


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("latent_dim", [5, 130])  # 130: more than two words of bits
def test_connectivity_equals_that_of_the_dense_product(topology, latent_dim):
    generator = Sparse(2, topology=topology, sigma=1.0).build(latent_dim, 700, seed=4)
    reached = torch.eye(latent_dim)
    coverage = []
    for layer in generator.layers:
        wired = (dense_matrix(layer) != 0).float()
        coverage.append(float(wired.any(0).float().mean()))
        reached = (wired @ reached > 0).float()
    found = connectivity(generator)
    assert found.reach == pytest.approx(reached.mean(0).tolist())
    assert found.coverage == pytest.approx(coverage)
    assert found.to_dict()["reach_min"] == pytest.approx(float(reached.mean(0).min()))


def test_connectivity_needs_sparse_layers():
    with pytest.raises(ValueError, match="`generator` has no sparse layers, got a Linear"):
        connectivity(nn.Linear(3, 4))


@pytest.mark.parametrize("spec", [Sparse(bias=True), Chunked(3), Dense()])
def test_a_summary_counts_what_there_is(spec):
    target = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    hnet = HyperNetwork(target, spec, TaskEmbedding(3, 8), generate="0.*")
    summary = summarize(hnet)
    assert summary["numel"] == 35
    assert [t["name"] for t in summary["tensors"]] == ["0.weight", "0.bias"]
    assert summary["tensors"][0]["initial_std"] == pytest.approx(18**-0.5)
    total = sum(p.numel() for p in hnet.parameters())
    assert sum(summary["trainable"].values()) == total
    assert summary["trainable"]["shared"] == 10 + 12
    assert summary["trainable_per_parameter"] == pytest.approx(total / 35)
    assert (summary["wiring"] is not None) is isinstance(spec, Sparse)
