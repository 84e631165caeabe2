from __future__ import annotations

import pytest
import torch

from conformance import ConformingGenerator, embeddings
from sparsehyper.generators import Chunked


class ConformingChunked(ConformingGenerator):
    def reference(self, generator, z):
        rows = []
        for row in z:
            chunks = [generator.mlp(torch.cat([row, c])) for c in generator.embedding]
            rows.append(torch.cat(chunks)[: self.numel])
        return torch.stack(rows) if rows else z.new_zeros(0, self.numel)


class TestThesis(ConformingChunked):
    spec = Chunked(chunks=7)


class TestOneChunk(ConformingChunked):
    spec = Chunked(chunks=1, hidden=5)


class TestMoreChunksThanParameters(ConformingChunked):
    spec = Chunked(chunks=10_000, hidden=30)


def test_one_chunk_is_a_dense_mlp_of_the_embedding():
    generator = Chunked(chunks=1).build(8, 50).double()
    z = embeddings(3, 8)
    constant = generator.embedding.expand(3, -1)
    assert torch.allclose(generator(z), generator.mlp(torch.cat([z, constant], 1)))


def test_its_default_is_the_thesis_s_mlp():
    generator = Chunked(chunks=4).build(64, 1000)
    widths = [(m.in_features, m.out_features) for m in generator.mlp if hasattr(m, "weight")]
    assert widths == [(128, 128), (128, 128), (128, 250)]
    assert generator.embedding.shape == (4, 64)


def test_a_budget_far_below_the_target_can_be_met():
    numel = 1_000_000
    spec = Chunked(hidden=32).with_budget(numel // 10, 64, numel)
    assert 0.09 * numel < spec.count_parameters(64, numel) <= numel // 10


@pytest.mark.parametrize("setting", ["chunks", "hidden"])
def test_refuses_settings_below_one(setting):
    with pytest.raises(ValueError, match=f"`{setting}` must be at least 1, got 0"):
        Chunked(**{setting: 0})
