from __future__ import annotations

import json

import pytest
from torch import nn

from sparsehyper import Chunked, Dense, HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.analysis import connectivity, summarize


@pytest.mark.parametrize("spec", [Sparse(bias=True), Chunked(3), Dense()])
def test_a_summary_counts_what_there_is(spec):
    target = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    hnet = HyperNetwork(target, spec, TaskEmbedding(3, 8), generate="0.*")
    summary = summarize(hnet)
    json.dumps(summary)
    assert summary["numel"] == 35
    assert [t["name"] for t in summary["tensors"]] == ["0.weight", "0.bias"]
    assert summary["tensors"][0]["initial_std"] == pytest.approx(18**-0.5)
    total = sum(p.numel() for p in hnet.parameters())
    assert sum(summary["trainable"].values()) == total
    assert summary["trainable"]["shared"] == 35 + 10 + 12  # the base, and what is not generated
    assert summary["trainable_per_parameter"] == pytest.approx(total / 35)
    assert summary["wiring"] == connectivity(hnet).to_dict()
    assert len(summary["wiring"]["coverage"]) == len(summary["layers"]) > 0


def test_what_is_frozen_is_not_trainable():
    hnet = HyperNetwork(
        nn.Linear(6, 5),
        Sparse(),
        TaskEmbedding(3, 8),
        generate="weight",
        others="frozen",
        base="zeros",
    )
    assert summarize(hnet)["trainable"]["shared"] == 0
