from __future__ import annotations

import re

import pytest
import torch

from helpers.conformance import embeddings
from sparsehyper.generators import Chunked, Composed, Dense, LowRank, Sparse
from sparsehyper.layout import pack

LAYOUT = pack(
    [
        (n, torch.Size(s))
        for n, s in (("a.bias", [5]), ("a.weight", [5, 4]), ("b.bias", [3]), ("b.weight", [3, 5]))
    ]
)


def test_each_tensor_is_made_by_the_first_generator_that_matches():
    spec = Composed({"*.bias": Dense(), "b.*": Chunked(2), "*": Sparse()})
    generator = spec.build(8, LAYOUT).double()
    z = embeddings(3, 8)
    dense, chunked, sparse = (part(z) for part in generator.parts)
    assert [t.shape[1] for t in (dense, chunked, sparse)] == [8, 15, 20]
    expected = torch.cat([dense[:, :5], sparse, dense[:, 5:], chunked], 1)
    torch.testing.assert_close(generator(z), expected)
    assert spec.count_parameters(8, LAYOUT) == sum(p.numel() for p in generator.parameters())


def test_parts_differ_though_they_are_of_one_kind():
    one, two = Composed({"a.*": Dense(), "*": Dense()}).build(8, LAYOUT).parts
    assert not torch.equal(one.weight[:18], two.weight[:18])


@pytest.mark.parametrize("around", [lambda spec: spec, lambda spec: Composed({"*": spec})])
def test_a_tied_tensor_is_known_by_any_of_its_names(around):
    layout = pack([("a.weight", torch.Size([5, 4]), ("b.weight",)), ("a.bias", torch.Size([4]))])
    spec = around(Composed({"b.*": Dense(), "*": Dense(hidden=3)}))
    assert spec.count_parameters(8, layout) == 8 * 20 + (8 + 1) * 3 + (3 + 1) * 4
    ranked = LowRank(1, Composed({"b.weight.u": Dense(), "*": Dense(hidden=3)}))
    assert ranked.count_parameters(8, layout) == 8 * 5 + (8 + 1) * 3 + (3 + 1) * 8


def test_a_budget_is_shared_by_size():
    layout = pack([("a", torch.Size([3000])), ("b", torch.Size([1000]))])
    spec = Composed({"a": Sparse(), "b": Sparse()}).with_budget(16_000, 16, layout)
    counts = [g.count_parameters(16, n) for (_, g), n in zip(spec.parts, (3000, 1000), strict=True)]
    assert 11_000 < counts[0] <= 12_000
    assert 3_600 < counts[1] <= 4_000


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (Dense(), TypeError, "`parts` must map globs to generators, got Dense"),
        ({}, ValueError, "`parts` must have at least one generator, got none"),
        ({"*": "dense"}, TypeError, r"`parts` must map globs .* got '\*': 'dense'"),
        ({"a.*": Dense()}, ValueError, "no generator for 'b.bias'; it has: 'a"),
        ({"*": Dense(), "b.*": Sparse()}, ValueError, "`parts` leaves nothing to 'b"),
    ],
)
def test_bad_parts_are_refused(parts, error, message):
    with pytest.raises(error, match=message):
        Composed(parts).build(8, LAYOUT)


@pytest.mark.parametrize("inner", [Dense(), Composed({"*": Dense()})])
def test_a_budget_out_of_reach_is_told_of_the_whole(inner):
    layout = pack([("a", torch.Size([3000])), ("b", torch.Size([1001]))])
    spec = Composed({"a": Sparse(), "b": inner})
    with pytest.raises(ValueError, match="for a composed generator here, got 9000; ") as caught:
        spec.with_budget(9000, 16, layout)
    smallest = int(re.search(r"`budget` must be at least (\d+)", str(caught.value))[1])
    assert smallest == 16 * (3000 + 1001)
    assert f"the share of 'b' is then {16 * 1001}; " in str(caught.value)
    spec.with_budget(smallest, 16, layout)
    with pytest.raises(ValueError, match=f"at least {smallest} for a composed"):
        spec.with_budget(smallest - 1, 16, layout)
