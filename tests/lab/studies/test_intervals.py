"""Intervals and verdicts."""

from __future__ import annotations

import math

import pytest
import torch

from sparsehyper.lab.studies.intervals import (
    claim_of,
    factor_tests,
    holm,
    main_effects,
    paired,
    verdict,
)


def test_intervals():
    found = paired([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found["mean"] == pytest.approx(0.3)
    # Student's t with 4 degrees of freedom: 2.776 standard errors.
    assert found["high"] - found["mean"] == pytest.approx(2.7764 * math.sqrt(0.025 / 5), abs=1e-4)
    assert paired([0.1]) == {"mean": 0.1, "low": None, "high": None, "pairs": 1}
    assert verdict(paired([0.1])) == "undecided"
    assert verdict({"low": 0.1, "high": 0.2}) == "supported"
    assert verdict({"low": -0.2, "high": -0.1}) == "not supported"
    assert verdict({"low": -0.2, "high": 0.1}) == "undecided"


def test_main_effects_are_told_apart_and_from_noise():
    rng = torch.Generator().manual_seed(0)
    defaults = {"shape": "round", "size": "small", "colour": "red"}
    levels = {
        "shape": ["round", "square", "long"],
        "size": ["small", "large"],
        "colour": ["red", "blue"],
    }
    runs = [
        {f: names[int(torch.randint(len(names), (), generator=rng))] for f, names in levels.items()}
        for _ in range(200)
    ]
    added = {"square": 3.0, "long": -1.0, "large": 2.0}
    noise = torch.randn(200, generator=rng).tolist()
    outcomes = [
        10 + sum(added.get(level, 0) for level in run.values()) + e
        for run, e in zip(runs, noise, strict=True)
    ]
    effects = {e["level"]: e for e in main_effects(runs, outcomes, defaults)}
    assert set(effects) == {"square", "long", "large", "blue"}
    for level, effect in effects.items():
        assert effect["low"] < added.get(level, 0) < effect["high"], level
        # Of unit noise and balanced halves or thirds of 200 runs.
        assert 0.2 < effect["high"] - effect["low"] < 0.8
        assert effect["freedom"] == 200 - 5
    assert verdict(effects["blue"]) == "undecided"
    assert verdict(effects["long"]) == "not supported"
    tests = {test["factor"]: test for test in factor_tests(runs, outcomes, defaults)}
    assert tests["shape"]["p"] < 1e-6
    assert tests["size"]["p"] < 1e-6
    assert tests["colour"]["p"] > 0.01
    assert tests["shape"]["share"] > tests["size"]["share"] > 0.1 > tests["colour"]["share"]
    # With two levels the F test is the t test: p at its interval's end is 5%.
    effect = effects["large"]
    moved = [
        y - effect["low"] * (r["size"] == "large") for r, y in zip(runs, outcomes, strict=True)
    ]
    assert factor_tests(runs, moved, defaults)[1]["p"] == pytest.approx(0.05, abs=1e-6)


def test_effects_without_freedom_have_no_interval():
    (effect,) = main_effects([{"x": "a"}, {"x": "b"}], [1.0, 3.0], {"x": "a"})
    assert effect["mean"] == pytest.approx(2)
    assert effect["low"] is None
    assert factor_tests([{"x": "a"}, {"x": "b"}], [1.0, 3.0], {"x": "a"})[0]["p"] is None


def test_holm_is_stricter_the_more_claims_there_are():
    claim = claim_of("a", "b", [1.0, 1.1, 1.3], [0.0, 0.0, 0.0])
    assert holm([claim])[0]["verdict"] == "supported"
    several = holm([claim] * 10)
    assert {one["verdict"] for one in several} == {"undecided"}
    assert several[0]["p"] == pytest.approx(10 * holm([claim])[0]["p"])


def test_holm_of_claims_without_spread_or_pairs():
    same, single = ([1.0, 1.0], [0.5, 0.5]), ([1.0], [0.0])
    found = holm([claim_of("a", "b", *values) for values in (same, single)])
    assert [(one["p"], one["verdict"]) for one in found] == [(0, "supported"), (1, "undecided")]
