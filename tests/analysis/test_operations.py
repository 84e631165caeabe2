from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsehyper import Chunked, Composed, Dense, HyperNetwork, LowRank, Sparse, TaskEmbedding
from sparsehyper._util import kernels
from sparsehyper.analysis import count_operations
from sparsehyper.generators import Butterfly
from sparsehyper.sparse import SparseLinear

DIM = 8


def count(target, spec=None, example=None, **settings):
    hnet = HyperNetwork(target, spec or Sparse(), TaskEmbedding(3, DIM), **settings)
    return hnet, count_operations(hnet, torch.zeros(1, 6) if example is None else example)


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("spec", [Sparse(3), Sparse(topology="uniform", bias=True, share=4)])
def test_a_sparse_layer_costs_its_connections(spec, has_kernels, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: has_kernels)
    hnet, found = count(nn.Linear(6, 50), spec)
    layers = [m for m in hnet.generator.modules() if isinstance(m, SparseLinear)]
    expected = sum(layer.connections().numel() for layer in layers)
    assert found["generator"]["multiply_adds"] == expected
    assert found["generator"]["parameters"] == sum(p.numel() for p in hnet.generator.parameters())


def test_dense_generators_cost_their_matrices():
    numel = 6 * 50 + 50
    assert count(nn.Linear(6, 50), Dense())[1]["generator"]["multiply_adds"] == DIM * numel
    found = count(nn.Linear(6, 50), Dense(5))[1]["generator"]
    assert found["multiply_adds"] == DIM * 5 + 5 * numel
    # The first layer for z, the first layer for four chunks, the second and the last for each.
    found = count(nn.Linear(6, 50), Chunked(4, hidden=10))[1]["generator"]
    chunk = -(-numel // 4)
    assert found["multiply_adds"] == DIM * 10 + 4 * (DIM * 10 + 100 + 10 * chunk)


def test_other_generators_cost_what_they_multiply():
    butterfly = count(nn.Linear(6, 50), Butterfly(stages=3))[1]["generator"]
    assert butterfly["multiply_adds"] == 2 * 3 * 512
    low_rank = count(nn.Linear(40, 50), LowRank(2, of=Dense()), torch.zeros(1, 40))[1]["generator"]
    assert low_rank["multiply_adds"] == DIM * (2 * 40 + 2 * 50 + 50) + 2 * 40 * 50
    composed = Composed({"weight": Dense(), "bias": Sparse(1, growth=100)})
    assert count(nn.Linear(6, 50), composed)[1]["generator"]["multiply_adds"] == DIM * 300 + 50


@pytest.mark.parametrize(
    ("target", "example", "expected"),
    [
        (nn.Linear(6, 50), torch.zeros(3, 6), 3 * 300),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), torch.zeros(2, 4, 5, 5), 2 * 8 * 25 * 18),
        (nn.LSTM(6, 4), torch.zeros(5, 2, 6), 10 * 16 * (6 + 4)),
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            torch.zeros(2, 5, 16),
            10 * (4 * 256 + 2 * 16 * 32) + 2 * 2 * 25 * 16,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_target_costs_what_its_layers_do(target, example, expected):
    _, found = count(target, example=example)
    assert found["target"]["multiply_adds"] == expected
    assert found["target"]["parameters"] == sum(p.numel() for p in target.parameters())
    json.dumps(found)


class _Peeks(nn.Module):
    """Looks at its values, so it cannot run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x):
        return self.linear(x) if float(x.sum()) == 0 else x


def test_a_target_that_looks_at_numbers_is_run():
    assert count(_Peeks())[1]["target"] == {"parameters": 14, "multiply_adds": 12}


def test_counting_changes_nothing():
    target = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout())
    hnet = HyperNetwork(target.train(), Sparse(), TaskEmbedding(2, DIM))
    before = {name: value.clone() for name, value in hnet.state_dict().items()}
    count_operations(hnet, torch.randn(1, 6))
    assert hnet.target.module[1].training
    for name, value in hnet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_needs_an_example():
    hnet = HyperNetwork(nn.Linear(6, 2), Sparse(), TaskEmbedding(2, DIM))
    with pytest.raises(ValueError, match="`example` must hold what the target takes, got nothing"):
        count_operations(hnet)
