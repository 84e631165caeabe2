from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper import Chunked, Dense, HyperNetwork, Sparse, TaskEmbedding
from sparsehyper._util.random import normal, seeded
from sparsehyper.analysis import effective_rank
from sparsehyper.analysis import gram as gram_module
from sparsehyper.generators import Butterfly

DIM = 12


def hypernetwork(spec) -> HyperNetwork:
    return HyperNetwork(nn.Linear(30, 10), spec, TaskEmbedding(3, DIM))


def roy_vetterli(matrix) -> tuple[float, torch.Tensor]:
    """Definition 2 of the paper, and the singular values."""
    sigma = torch.linalg.svdvals(matrix.double())
    p = sigma[sigma > 1e-12] / sigma.sum()
    return math.exp(-float((p * p.log()).sum())), sigma


@pytest.mark.parametrize("spec", [Sparse(), Sparse(2, bias=True), Dense(), Butterfly(stages=5)])
@pytest.mark.parametrize("held", [None, 5])
def test_of_an_affine_generator_it_is_that_of_its_matrix(spec, held, monkeypatch):
    if held:  # about this many are kept; the others are computed again
        monkeypatch.setattr(gram_module, "_HELD_BYTES", 4 * 310 * held)
        monkeypatch.setattr(gram_module, "_PIECE_BYTES", 4 * 310 * 2)
    monkeypatch.setattr(gram_module, "_COLUMNS", 64)
    hnet = hypernetwork(spec)
    for name, parameter in hnet.generator.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    with torch.no_grad():
        outputs = hnet.generator(torch.eye(DIM)) - hnet.generator(torch.zeros(1, DIM))
    # The covariance of normalised embeddings is the projection that takes off their mean, times
    # DIM / (DIM - 1).
    expected, sigma = roy_vetterli((outputs - outputs.mean(0)) * math.sqrt(DIM / (DIM - 1)))
    found = effective_rank(hnet)
    assert found.exact
    assert found.effective_rank == pytest.approx(expected, rel=1e-5)
    assert found.singular_values == pytest.approx(sigma[: DIM - 1].tolist(), rel=1e-4, abs=1e-5)
    ratio = sigma.square().sum().square() / sigma.pow(4).sum()
    assert found.participation_ratio == pytest.approx(float(ratio), rel=1e-5)
    json.dumps(found.to_dict())


@pytest.mark.parametrize("spec", [Sparse(activation="prelu"), Chunked(3), Dense(5)])
def test_of_another_it_is_that_of_a_sample(spec, monkeypatch):
    monkeypatch.setattr(gram_module, "_HELD_BYTES", 4 * 310 * 9)
    monkeypatch.setattr(gram_module, "_PIECE_BYTES", 4 * 310 * 3)
    hnet = hypernetwork(spec)
    found = effective_rank(hnet, samples=20, seed=3)
    assert not found.exact
    with torch.no_grad():
        outputs = hnet.raw_theta(normal([20, DIM], seeded(3)).float())
    expected, sigma = roy_vetterli((outputs - outputs.mean(0)) / math.sqrt(19))
    assert found.effective_rank == pytest.approx(expected, rel=1e-4)
    assert found.singular_values == pytest.approx(sigma[:19].tolist(), rel=1e-4, abs=1e-4)
    assert found == effective_rank(hnet, samples=20, seed=3)
    assert found != effective_rank(hnet, samples=20, seed=4)
    assert len(effective_rank(hnet).singular_values) == 4 * DIM - 1


def test_a_large_sample_approaches_what_is_exact(monkeypatch):
    hnet = hypernetwork(Sparse())
    exact = effective_rank(hnet)
    monkeypatch.setattr("sparsehyper.analysis.rank._AFFINE_TOLERANCE", -1.0)
    sampled = effective_rank(hnet, samples=2000)
    assert not sampled.exact
    assert sampled.effective_rank == pytest.approx(exact.effective_rank, rel=0.01)
    assert sampled.singular_values[0] == pytest.approx(exact.singular_values[0], rel=0.05)


def test_a_matrix_of_known_rank_has_it():
    hnet = hypernetwork(Dense())
    rows = torch.randn(310, 3) @ torch.linalg.qr(torch.randn(DIM, 3))[0].T
    hnet.generator.weight.data.copy_(rows)
    found = effective_rank(hnet)
    assert 2 < found.effective_rank <= 3
    assert [value > 0 for value in found.singular_values] == [True] * 3 + [False] * (DIM - 4)
    orthogonal = torch.linalg.qr(torch.randn(310, DIM))[0]
    hnet.generator.weight.data.copy_(orthogonal)
    assert effective_rank(hnet).effective_rank == pytest.approx(DIM - 1)
    hnet.generator.weight.data.zero_()
    assert effective_rank(hnet).effective_rank == 0.0


def test_it_is_of_what_normalised_embeddings_give():
    hnet = hypernetwork(Dense())
    hnet.generator.weight.data.copy_(torch.randn(310, 1).expand(310, DIM))
    z = F.layer_norm(torch.randn(2, DIM), [DIM])
    assert hnet.generator(z).abs().max() < 1e-4  # because it sums values of mean zero
    assert effective_rank(hnet).singular_values == (0.0,) * (DIM - 1)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`samples` must be at least 2, got 1"):
        effective_rank(hypernetwork(Sparse()), samples=1)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        effective_rank(hypernetwork(Sparse()), seed=-1)


def test_weights_that_are_not_finite_are_refused():
    hnet = hypernetwork(Sparse())
    hnet.generator.layers[0].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="`hnet` must generate finite numbers"):
        effective_rank(hnet)
