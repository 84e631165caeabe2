"""The study of scaling, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.scaling import SCALED_METHODS, Scaling, exponent


@pytest.fixture(scope="module")
def found(run):
    return run("scaling")


def test_every_place_is_measured_once(found):
    results, folder = found
    assert len(results["rows"]) == 4 * len(SCALED_METHODS)
    # Three places, as the one of 32 units and 3 tasks is on both axes.
    assert len(read_cells(folder)) == 3 * 2 * len(SCALED_METHODS) + len(SCALED_METHODS)
    target = [row for row in results["rows"] if row["part"] == "target"]
    assert {row["numel"] for row in target} == {1_482, 3_466}
    assert {row["tasks"] for row in target} == {3}
    for row in results["rows"]:
        assert min(row["step_ms"] + row["peak_memory_mb"]) > 0
    assert len(results["claims"]) == 3


def test_experts_grow_with_tasks_and_hypernetworks_hardly(found):
    results, _ = found
    rows = {(r["part"], r["method"], r["numel"], r["tasks"]): r for r in results["rows"]}
    for method, factor in (("experts", 3 / 2), ("sparse", 1)):
        two, three = (rows["tasks", method, 3_466, count]["parameters"][0] for count in (2, 3))
        assert three / two == pytest.approx(factor, rel=0.01)


def test_exponents(found):
    assert exponent([1, 2, 4, 8], [3, 6.1, 11.9, 24.2]) == pytest.approx(1, abs=0.02)
    assert exponent([1, 10, 100], [5, 5, 5]) == pytest.approx(0)
    results, _ = found
    slopes = {(e["part"], e["method"], e["measure"]): e for e in results["exponents"]}
    assert slopes["tasks", "experts", "parameters"]["mean"] == pytest.approx(1)
    assert slopes["target", "experts", "parameters"]["mean"] == pytest.approx(1)
    assert slopes["tasks", "sparse", "parameters"]["mean"] < 0.1
    assert {e["pairs"] for e in results["exponents"]} == {2}  # a slope a seed


def test_larger_scales_reach_200_tasks():
    for scale in ("cpu", "full"):
        assert Scaling.at_scale(scale).counts[-1] == 200
