"""The study of interpolation, at its smallest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehyper import Dense, HyperNetwork, TaskEmbedding
from sparsehyper.lab.studies.interpolation import (
    INTERPOLATED_METHODS,
    Interpolation,
    _changing,
    _directions,
    _straightness,
)


@pytest.fixture(scope="module")
def found(run):
    return run("interpolation")


def test_every_method_is_measured_on_the_way(found):
    results, _ = found
    assert [row["method"] for row in results["rows"]] == list(INTERPOLATED_METHODS)
    for row in results["rows"]:
        for lines in row["lines"]:
            assert {len(values) for values in lines.values()} == {3}
            # A circle of neighbours, the same tasks at both ends.
            assert lines["start"][0] == pytest.approx(lines["end"][-1])
        assert row["half-way"] == pytest.approx([line["half-way"][1] for line in row["lines"]])
        assert all(0 < value <= 1 + 1e-6 for value in row["straightness"])
        assert all(0 < value <= 1 for value in row["changing"])
        assert all(value >= 1 for value in row["directions"])
        assert all(len(plane["values"]) == 3 for plane in row["plane"])


def test_an_embedding_fitted_to_a_task_is_better_than_one_half_way(found):
    results, _ = found
    for row in results["rows"]:
        assert sum(row["fitted"]) > sum(row["half-way"])


def test_a_way_is_straight_only_where_weights_go_straight():
    hnet = HyperNetwork(nn.Linear(30, 4), Dense(), TaskEmbedding(2, dim=16))
    with torch.no_grad():
        hnet.conditioner.weight[1] = -hnet.conditioner.weight[0] + 0.5 * torch.randn(16)
        around = _straightness(hnet, 0, 1)
        hnet.conditioner.weight[1] = hnet.conditioner.weight[0] + 0.05 * torch.randn(16)
        ahead = _straightness(hnet, 0, 1)
    assert ahead == pytest.approx(1, abs=1e-3)
    assert around < 0.8  # half a circle, at most 2 / π of its length apart


@pytest.fixture
def orthogonal():
    """A hypernetwork whose 200 weights turn with the embedding of 16 numbers."""
    hnet = HyperNetwork(nn.Linear(20, 10, bias=False), Dense(), TaskEmbedding(2, dim=16))
    with torch.no_grad():
        (weight,) = (p for p in hnet.generator.parameters() if p.ndim == 2)
        torch.nn.init.orthogonal_(weight)
    return hnet, weight


def test_independent_ways_are_the_rank_where_all_are_as_strong(orthogonal):
    hnet, weight = orthogonal
    # Normalisation takes two: along the embedding, and the same for all of its numbers.
    assert _directions(hnet, 0) == pytest.approx(14, abs=0.05)
    with torch.no_grad():
        weight.copy_(weight[:, :1] @ weight[:1])
    assert _directions(hnet, 0) == pytest.approx(1, abs=0.01)


def test_the_share_of_weights_that_change(orthogonal):
    hnet, weight = orthogonal
    assert 0.3 < _changing(hnet, 0, 1) < 0.7
    with torch.no_grad():
        weight[10:] = 0
    assert 1 / 200 <= _changing(hnet, 0, 1) <= 10 / 200


def test_larger_scales_name_real_tasks():
    for scale in ("cpu", "full"):
        assert Interpolation.at_scale(scale).data.source == "mnist"
