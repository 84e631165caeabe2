from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from helpers.conformance import ConformingGenerator, embeddings
from sparsehyper.generators import Chunked, Composed, LowRank
from sparsehyper.layout import pack


def chunk_of(generator, row, constant):
    return generator.heads[0](generator.mlp(torch.cat([row, constant], -1)))


class ConformingChunked(ConformingGenerator):
    def reference(self, generator, z):
        rows = []
        for row in z:
            chunks = [chunk_of(generator, row, c) for c in generator.embedding]
            rows.append(torch.cat(chunks)[: self.numel])
        return torch.stack(rows) if rows else z.new_zeros(0, self.numel)


class TestThesis(ConformingChunked):
    spec = Chunked(chunks=7)


class TestOneChunk(ConformingChunked):
    spec = Chunked(chunks=1, hidden=5)


class TestMoreChunksThanParameters(ConformingChunked):
    spec = Chunked(chunks=10_000, hidden=30)


class TestOneHiddenLayer(ConformingChunked):
    spec = Chunked(chunks=7, hidden=12, layers=1, embedding=3)


def test_one_chunk_is_a_dense_mlp_of_the_embedding():
    generator = Chunked(chunks=1).build(8, 50).double()
    z = embeddings(3, 8)
    constant = generator.embedding.expand(3, -1)
    assert torch.allclose(generator(z), chunk_of(generator, z, constant))


def test_its_default_is_the_thesis_s_mlp():
    generator = Chunked(chunks=4).build(64, 1000)
    widths = [
        (m.in_features, m.out_features)
        for m in [*generator.mlp, *generator.heads]
        if hasattr(m, "weight")
    ]
    assert widths == [(128, 128), (128, 128), (128, 250)]
    assert generator.embedding.shape == (4, 64)


def test_a_budget_far_below_the_target_can_be_met():
    numel = 1_000_000
    spec = Chunked(hidden=32).with_budget(numel // 10, 64, numel)
    assert 0.09 * numel < spec.count_parameters(64, numel) <= numel // 10


@pytest.mark.parametrize("by", ["flat", "tensor"])
def test_hidden_layers_are_halved_until_a_budget_can_be_met(by):
    layout = pack([("a", torch.Size([100, 100])), ("b", torch.Size([30, 200]))])
    assert Chunked(by=by).with_budget(900_000, 256, layout).hidden is None
    spec = Chunked(by=by).with_budget(64_000, 256, layout)
    assert spec.hidden in (256, 128, 64, 32)
    assert spec.count_parameters(256, layout) <= 64_000
    wider = Chunked(by=by, hidden=2 * spec.hidden)
    with pytest.raises(ValueError, match=r"`budget` must be at least .*; lower `hidden`"):
        wider.with_budget(64_000, 256, layout)
    with pytest.raises(ValueError, match=r"`budget` must be at least .*; lower `latent_dim`"):
        Chunked(by=by).with_budget(1000, 256, layout)


LAYOUT = pack(
    [
        ("a", torch.Size([6, 3, 2])),
        ("b", torch.Size([5])),
        ("c", torch.Size([])),
        ("d", torch.Size([7, 9])),
    ]
)


@pytest.mark.parametrize("by", ["flat", "tensor", "filter"])
@pytest.mark.parametrize("chunks", [1, 4, 1000])
def test_chunks_of_tensors(by, chunks):
    spec = Chunked(chunks, hidden=11, by=by)
    generator = spec.build(8, LAYOUT).double()
    assert sum(p.numel() for p in generator.parameters()) == spec.count_parameters(8, LAYOUT)
    z = embeddings(3, 8)
    size = -(-105 // min(chunks, 105))
    embedding, parts = iter(generator.embedding), []
    for tensor, head in zip(LAYOUT, [*generator.heads] * 4, strict=False):
        wanted = tensor.numel if by != "flat" else 105
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        count = rows if by == "filter" else -(-wanted // size)
        made = []
        for constant in itertools.islice(embedding, count):
            pairs = torch.cat([z, constant.expand(3, -1)], 1)
            made.append(head(generator.mlp(pairs)))
        parts.append(torch.cat(made, 1)[:, :wanted])
        if by == "flat":
            break
    torch.testing.assert_close(generator(z), torch.cat(parts, 1))
    assert next(embedding, None) is None


@pytest.mark.parametrize("by", ["tensor", "filter"])
@pytest.mark.parametrize("budget", [2500, 4000, 8000])
def test_chunks_of_tensors_meet_a_budget(by, budget):
    layout = pack([(str(i), torch.Size([7 + i, 30 - i])) for i in range(12)])
    spec = Chunked(hidden=9 if by == "tensor" else None, by=by).with_budget(budget, 8, layout)
    assert spec.count_parameters(8, layout) <= budget
    varied = {"tensor": "chunks", "filter": "hidden"}[by]
    larger = replace(spec, **{varied: getattr(spec, varied) + (1 if by == "filter" else -1)})
    assert larger.count_parameters(8, layout) > budget


def test_short_embeddings_of_chunks_leave_more_for_the_layers():
    numel = 100_000
    short, usual = (
        Chunked(hidden=64, layers=1, embedding=e).with_budget(numel, 64, numel) for e in (8, None)
    )
    assert short.chunks < usual.chunks
    for spec in (short, usual):
        assert sum(p.numel() for p in spec.build(64, numel).parameters()) <= numel


def test_refuses_three_hidden_layers():
    with pytest.raises(ValueError, match=r"`layers` must be .*2.*got 3"):
        Chunked(layers=3)


@pytest.mark.parametrize("setting", ["chunks", "hidden", "embedding"])
def test_refuses_settings_below_one(setting):
    with pytest.raises(ValueError, match=f"`{setting}` must be at least 1, got 0"):
        Chunked(**{setting: 0})


def test_refuses_an_unknown_kind_of_chunks():
    with pytest.raises(ValueError, match=r"`by` must be one of 'flat'.*got 'layer'"):
        Chunked(by="layer")


@pytest.mark.parametrize(
    "spec",
    [
        Chunked(by="filter"),
        LowRank(1, Chunked(by="filter")),
        Composed({"*": Chunked(by="filter")}),
        Chunked(hidden=2**20, embedding=1),  # the best number of chunks is beyond the limit
    ],
)
def test_no_budget_is_too_large(spec):
    for numel, budget in (300, 10**13), (10**7, 10**14):
        layout = pack([("weight", torch.Size([10, numel // 10]))])
        assert 0 < spec.with_budget(budget, 16, layout).count_parameters(16, layout) <= budget
