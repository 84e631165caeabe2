from __future__ import annotations

import pytest
import torch

from helpers.conformance import embeddings
from sparsehyper.generators import Chunked, Dense, LowRank, Sparse
from sparsehyper.layout import pack

LAYOUT = pack(
    [("conv", torch.Size([20, 6, 3, 3])), ("bias", torch.Size([20])), ("w", torch.Size([2, 3]))]
)


@pytest.mark.parametrize("of", [Sparse(), Dense(), Chunked()])
def test_matrices_are_products_of_generated_factors(of):
    generator = LowRank(3, of).build(8, LAYOUT).double()
    z = embeddings(2, 8)
    out, factors = generator(z), generator.factors(z)
    u, v = factors[:, :60].view(2, 20, 3), factors[:, 60 : 60 + 3 * 54].view(2, 3, 54)
    torch.testing.assert_close(out[:, :1080], (u @ v / 3**0.5).flatten(1))
    # A matrix that would gain nothing is left as it is.
    torch.testing.assert_close(out[:, 1080:], factors[:, 222:])
    assert [int(torch.linalg.matrix_rank(m)) for m in out[:, :1080].view(2, 20, 54)] == [3, 3]
    count = sum(p.numel() for p in generator.parameters())
    assert LowRank(3, of).count_parameters(8, LAYOUT) == count


@pytest.mark.parametrize(
    "spec", [LowRank(2), Chunked(3), Chunked(by="filter"), Chunked(3, by="tensor")]
)
def test_tensors_without_numbers(spec):
    layout = pack([(n, torch.Size(s)) for n, s in (("a", [0, 8]), ("b", [6, 5]), ("c", [3, 0]))])
    generator = spec.build(8, layout)
    assert generator(torch.randn(2, 8)).shape == (2, 30)
    assert spec.count_parameters(8, layout) == sum(p.numel() for p in generator.parameters())


def test_output_variance_is_one():
    layout = pack([("w", torch.Size([200, 300]))])
    z = embeddings(32, 64).float()
    with torch.no_grad():
        moments = [LowRank(4).build(64, layout, s)(z).square().mean() for s in range(8)]
    assert torch.stack(moments).mean() == pytest.approx(1, abs=0.1)


def test_a_budget_is_that_of_the_factors():
    layout = pack([("w", torch.Size([200, 300]))])
    spec = LowRank(4).with_budget(4000, 64, layout)
    assert 3600 < spec.count_parameters(64, layout) <= 4000
    with pytest.raises(ValueError, match=r"`budget` must be at least \d+ for a sparse generator"):
        LowRank(4).with_budget(5, 64, layout)


def test_refuses_no_rank_and_no_generator():
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        LowRank(0)
    with pytest.raises(TypeError, match="`of` must be a generator, got 'dense'"):
        LowRank(2, "dense")
