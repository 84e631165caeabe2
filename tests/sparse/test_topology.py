from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsehyper._util.random import seeded
from sparsehyper.sparse import TOPOLOGIES, SparseLinear, layer_fan_ins, layer_sizes
from sparsehyper.sparse.topology import draw_sources


@given(st.integers(1, 300), st.integers(1, 10**7), st.floats(1.15, 1e6))
def test_sizes_grow_to_numel_and_never_faster_than_growth(latent_dim, numel, growth):
    sizes = layer_sizes(latent_dim, numel, growth)
    assert sizes[-1] == numel
    widths = [latent_dim, *sizes]
    assert all(b > a for a, b in zip(widths, sizes, strict=False)) or len(sizes) == 1
    assert all(b <= a * growth + 1e-6 * b or b == a + 1 for a, b in pairwise(sizes))
    assert sizes[0] <= max(latent_dim * growth, latent_dim + 1) or len(sizes) == 1


def test_fan_in_schedules_are_the_thesis_s():
    assert layer_fan_ins("linear", 6) == [6, 5, 4, 3, 2, 1]
    assert layer_fan_ins("geometric", 6) == [math.ceil(1.5**e) for e in (5, 4, 3, 2, 1, 0)]
    assert layer_fan_ins(2, 3) == [2, 2, 2]
    for wrong in ("an integer", "square"):
        message = f"`fan_in` must be an integer or one of 'linear', 'geometric', got '{wrong}'"
        with pytest.raises(ValueError, match=message):
            layer_fan_ins(wrong, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "`latent_dim` must be at least 1, got 0"),
        ((5, 0), "`numel` must be at least 1, got 0"),
        ((5, 5, 1.0), "`growth` must be greater than 1, got 1.0"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_sizes(*arguments)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(1, 50), st.integers(0, 2**32))
def test_sources_are_in_range_and_distinct(topology, n_in, n_out, fan_in, seed):
    sources = SparseLinear(
        n_in, n_out, fan_in, topology=topology, sigma=1.5, seed=seed
    ).connections()
    assert sources.shape == (min(fan_in, n_in), n_out)
    assert sources.min() >= 0
    assert sources.max() < n_in
    assert all(len(set(column)) == len(column) for column in sources.T.tolist())


@given(st.integers(2, 40), st.integers(1, 200), st.integers(1, 8), st.integers(0, 2**32))
def test_regular_uses_every_input_equally_often(n_in, n_out, fan_in, seed):
    sources = draw_sources(
        "regular", n_in, n_out, min(fan_in, n_in - 1), sigma=1.0, rng=seeded(seed)
    )
    uses = torch.bincount(sources.reshape(-1).long(), minlength=n_in)
    assert uses.max() - uses.min() <= 1


@pytest.mark.parametrize("n_out", [1000, 3000])
def test_circulant_uses_every_input_equally_often_and_contiguously(n_out):
    sources = SparseLinear(1000, n_out, 4, topology="circulant").connections().long()
    uses = torch.bincount(sources.reshape(-1), minlength=1000)
    assert uses.unique().tolist() == [4 * n_out // 1000]
    steps = (sources[:, 1:] - sources[:, :-1]) % 1000
    assert (steps == 1).float().mean() > 0.99


def test_uniform_spreads_evenly_and_local_stays_near_its_position():
    n_in, n_out = 1000, 10_000
    uniform = draw_sources("uniform", n_in, n_out, 3, sigma=0.0, rng=seeded(0)).double()
    assert uniform.mean() == pytest.approx(499.5, abs=10)
    assert uniform.std() == pytest.approx(n_in / math.sqrt(12), rel=0.02)
    local = draw_sources("local", n_in, n_out, 3, sigma=20.0, rng=seeded(0)).double()
    position = (torch.arange(n_out) + 0.5) * n_in / n_out - 0.5
    offset = (local - position + n_in / 2) % n_in - n_in / 2
    assert offset.mean() == pytest.approx(0, abs=0.5)
    assert offset.std() == pytest.approx(20, rel=0.03)


def test_local_of_width_zero_takes_the_nearest_inputs():
    sources = draw_sources("local", 10, 10, 3, sigma=0.0, rng=seeded(0))
    assert sorted(sources[:, 5].tolist()) == [4, 5, 6]
    assert sorted(sources[:, 0].tolist()) == [0, 1, 9]


def test_mixed_has_the_nearest_neighbours_and_one_other():
    sources = draw_sources("mixed", 1000, 1000, 4, sigma=50.0, rng=seeded(0))
    assert set(sources[:3, 500].tolist()) == {499, 500, 501}
    assert (sources[3] - torch.arange(1000)).abs().double().median() > 20


def test_a_growth_that_takes_too_many_layers_is_refused():
    assert len(layer_sizes(64, 100_000, 1.05)) < 200
    with pytest.raises(ValueError, match=r"`growth` must be larger: by 1.001 it takes more than"):
        layer_sizes(64, 100_000, 1.001)
