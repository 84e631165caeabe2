"""The study of methods, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.comparison import COMPARED_METHODS, Comparison


@pytest.fixture(scope="module")
def found(run):
    return run("compare")


def test_every_method_is_searched_as_long_and_on_validation_only(found):
    results, _ = found
    assert len(results["searches"]) == len(results["rows"])
    for search in results["searches"].values():
        assert len(search["trials"]) == 2
        assert search["trials"][0]["settings"]["training.lr"] == 2e-3
        best = max(search["trials"], key=lambda trial: trial["validation"])
        assert search["settings_found"] == best["settings"]
        assert search["settings"]["experiment"]["training"]["seed"] == 1000
        assert "accuracy" not in search


def test_what_was_found_is_what_is_trained(found):
    results, folder = found
    search = results["searches"]["search--digits_5_2--sparse--4N"]
    for seed in (0, 1):
        cell = read_cells(folder)[f"digits_5_2--sparse--4N--{seed}"]
        experiment = cell["settings"]["experiment"]
        assert experiment["training"]["lr"] == search["settings_found"]["training.lr"]
        assert experiment["base"] == search["settings_found"]["base"]
        assert experiment["training"]["seed"] == seed


def test_budgets_are_met_or_the_method_is_left_out(found):
    results, _ = found
    budgets = {}
    for row in results["rows"]:
        budgets.setdefault(row["method"], []).append(row["budget"])
        if row["budget"] is not None:
            embeddings = 5 * 64 / 6_702
            assert 0.8 * row["budget"] < row["parameters"] < row["budget"] + embeddings
    assert budgets["sparse"] == [0.25, 4]
    assert budgets["chunked"] == [4]  # whose layers alone are more than a quarter of N
    assert budgets["experts"] == [None]
    left_out = {"family": "digits 5×2", "method": "chunked", "budget": 0.25}
    assert results["left_out"] == [left_out]
    (row,) = [r for r in results["rows"] if (r["method"], r["budget"]) == ("sparse", 0.25)]
    assert row["generator"]["share"] > 1  # as the budget made it


def test_claims_are_paired_differences(found):
    results, _ = found
    accuracy = {(row["method"], row["budget"]): row["accuracy"] for row in results["rows"]}
    ours, theirs = accuracy["sparse", 4], accuracy["chunked", 4]
    (claim,) = [c for c in results["claims"] if c["claim"] == "sparse − chunked, 4 N"]
    assert claim["mean"] == pytest.approx((sum(ours) - sum(theirs)) / 2)
    for row in results["rows"]:
        assert all(w <= a for w, a in zip(row["worst"], row["accuracy"], strict=True))


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_larger_scales_compare_on_every_set(scale):
    study = Comparison.at_scale(scale)
    assert len(study.sets) >= 8
    assert study.seeds >= 5
    for tasks in study.sets.values():
        assert set(tasks.methods) <= set(COMPARED_METHODS)
        assert tasks.data.source != "digits"
