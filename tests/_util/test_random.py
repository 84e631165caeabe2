from __future__ import annotations

import math

import pytest
import torch

from sparsehyper._util.random import integers, normal, seeded, spawn_seeds, uniform


@pytest.mark.parametrize("variance", [1.0, 0.01])
def test_uniform_has_the_variance_and_bound_asked_for(variance):
    x = uniform([1000, 200], variance, seeded(0))
    assert x.dtype == torch.float32
    assert x.mean() == pytest.approx(0, abs=0.01 * math.sqrt(variance))
    assert x.var() == pytest.approx(variance, rel=0.01)
    assert x.abs().max() <= math.sqrt(3 * variance) * (1 + 1e-6)


def test_normal_is_standard_normal():
    x = normal([200_000], seeded(0))
    assert x.dtype == torch.float64
    assert x.isfinite().all()
    quantiles = torch.tensor([0.025, 0.5, 0.975], dtype=torch.double)
    assert x.quantile(quantiles).tolist() == pytest.approx([-1.96, 0, 1.96], abs=0.02)


def test_integers_fill_their_range():
    assert integers(5, [1000], seeded(0)).unique().tolist() == [0, 1, 2, 3, 4]


def test_the_same_seed_gives_the_same_numbers_for_good():
    """Golden values: if they changed, every seed would give a different network."""
    assert integers(1000, [3], seeded(7)).tolist() == INTEGERS
    assert uniform([2], 1.0, seeded(7)).tolist() == pytest.approx(UNIFORM, abs=0)
    assert normal([2], seeded(7)).tolist() == pytest.approx(NORMAL, rel=1e-12)
    assert spawn_seeds(7, 2) == SPAWNED


def test_spawned_seeds_differ_from_each_other_and_with_the_seed():
    assert len({*spawn_seeds(0, 50), *spawn_seeds(1, 50)}) == 100


def test_the_global_generator_is_neither_used_nor_moved():
    state = torch.get_rng_state()
    uniform([3], 1.0, seeded(0))
    normal([3], seeded(0))
    assert torch.equal(state, torch.get_rng_state())


def test_draws_are_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        assert uniform([3], 1.0, seeded(0)).device.type == "cpu"
        assert normal([3], seeded(0)).device.type == "cpu"


INTEGERS = [615, 892, 721]
UNIFORM = [0.12097533047199249, -1.0433762073516846]
NORMAL = [-0.11385050674828584, 0.35296978968719395]
SPAWNED = [2083679832, 3939563265]


@pytest.mark.parametrize("seed", ["0", True, 0.0, None])
def test_seeds_are_integers(seed):
    for draw in (seeded, lambda seed: spawn_seeds(seed, 2)):
        with pytest.raises(TypeError, match=r"`seed` must be an integer, got"):
            draw(seed)
