from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.analysis import layer_statistics


@pytest.fixture
def hnet() -> HyperNetwork:
    target = nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return HyperNetwork(target, Sparse(), TaskEmbedding(["shoes", "bags", "hats"], 8))


def test_they_equal_those_of_all_weights_at_once(hnet):
    rows = layer_statistics(hnet)
    json.dumps(rows)
    assert [row["name"] for row in rows] == [spec.name for spec in hnet.target.layout]
    for row in rows:
        tensors = [hnet.generate(task)[row["name"]] for task in hnet.task_names]
        w = torch.stack([tensor.detach().flatten() for tensor in tensors]).double()
        assert row["shape"] == list(tensors[0].shape)
        assert row["mean"] == pytest.approx(float(w.mean()))
        assert row["std"] == pytest.approx(float(w.std(correction=0)), rel=1e-6)
        between = w.var(0, correction=0).mean().sqrt() / w.std(correction=0)
        assert row["between_tasks"] == pytest.approx(float(between), rel=1e-6)
        pairs = torch.pdist(w)
        assert row["distance"] == pytest.approx(float(pairs.square().mean().sqrt()), rel=1e-6)


def test_a_common_base_lies_not_between_tasks(hnet):
    hnet.conditioner.weight.data[:] = torch.randn(8)
    for row in layer_statistics(hnet):
        assert row["between_tasks"] == pytest.approx(0, abs=1e-7)
        assert row["distance"] == pytest.approx(0, abs=1e-7)
        assert row["std"] > 0


def test_one_task_and_constant_tensors_are_no_division_by_zero(hnet):
    for row in layer_statistics(hnet, ["hats"]):
        assert row["between_tasks"] == row["distance"] == 0.0
    nn.init.zeros_(hnet.generator.layers[-1].weight)
    norm = layer_statistics(hnet)[2]
    assert (norm["name"], norm["mean"], norm["std"]) == ("1.weight", 1.0, 0.0)
    assert norm["between_tasks"] == 0.0


def test_an_unknown_task_is_refused(hnet):
    with pytest.raises(KeyError, match="unknown `task` 'coats'"):
        layer_statistics(hnet, ["coats"])
