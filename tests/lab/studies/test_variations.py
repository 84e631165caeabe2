"""The study of variations, at its smallest."""

from __future__ import annotations

from collections import Counter

import pytest

from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.variations import DEFAULTS, FACTORS, Variations, design


@pytest.fixture(scope="module")
def found(run):
    return run("variations")


def test_every_level_is_drawn_equally_often():
    runs = design(60)
    for factor, levels in FACTORS.items():
        counts = Counter(run[factor] for run in runs)
        assert set(counts) == set(levels)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len({tuple(run.values()) for run in runs}) == 60
    assert runs[:20] != design(20)  # balanced again, for its own number of runs


def test_every_run_is_trained_as_designed_and_learns_new_tasks(found):
    results, folder = found
    assert [run["levels"] for run in results["runs"]] == design(14)
    for run in results["runs"]:
        assert 0 <= run["accuracy"] <= 1
        assert 0 <= run["new_accuracy"] <= 1
    affine = [run["levels"]["bias"] == "yes" for run in results["runs"]]
    assert 0 < sum(affine) < 14
    assert len(read_cells(folder)) == 14


def test_effects_are_told_for_every_level_but_the_default(found):
    results, _ = found
    for outcome, effects in results["effects"].items():
        levels = {(e["factor"], e["level"]) for e in effects}
        every = {(factor, level) for factor in FACTORS for level in FACTORS[factor]}
        assert levels == every - set(DEFAULTS.items()), outcome
    assert len(results["claims"]) == 2 * len(results["effects"]["size"])


def test_larger_scales_name_real_tasks():
    assert Variations.cpu().runs >= 5 * sum(len(levels) - 1 for levels in FACTORS.values())
    assert Variations.full().device == "auto"
