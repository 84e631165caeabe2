"""The study of a shared base, at its smallest."""

from __future__ import annotations

from statistics import fmean

import pytest

from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.fair_comparison import FairComparison
from sparsehyper.lab.studies.fair_sets import BASED, EXPLAINED, METHODS
from sparsehyper.lab.studies.shared_base import SharedBase, claims_of

RIVALS = [("sparse", 1.0), ("sparse", 4.0), ("chunked and a base", 1.125), ("shared trunk", None)]


@pytest.fixture(scope="module")
def found(run):
    return run("shared-base")


def test_the_budget_is_a_base_and_an_eighth_of_n(found):
    _, folder = found
    cells = read_cells(folder)
    for method in ("sparse_and_a_base", "chunked_and_a_base"):
        cell = cells[f"digits--{method}--1.125N--0"]
        assert cell["settings"]["experiment"]["base"] == "learned"
        assert 1.0 < cell["parameters"] < 1.126


def test_claims_are_about_sparse_and_a_base(found):
    results, _ = found
    rows = {(row["method"], row["budget"]): row["accuracy"] for row in results["rows"]}
    ours = fmean(rows["sparse and a base", 1.125])
    assert [claim["question"] for claim in results["claims"]] == [1, 2, 3, 4]
    for claim, rival in zip(results["claims"], RIVALS, strict=True):
        assert claim["claim"].startswith(f"sparse and a base − {rival[0]}")
        assert claim["mean"] == pytest.approx(ours - fmean(rows[rival]))


def test_the_set_that_suggested_the_study_has_no_verdict():
    def row(family, method, budget, accuracy):
        accuracies = [accuracy, accuracy + 0.01, accuracy + 0.02]
        return {"family": family, "method": method, "budget": budget, "accuracy": accuracies}

    ours = ("sparse and a base", 1.125)
    rows = [
        row(family, *method, accuracy)
        for family in ("others", EXPLAINED)
        for method, accuracy in ((ours, 0.9), *((rival, 0.8) for rival in RIVALS))
    ]
    rows[1]["accuracy"][0] += 0.001  # not all differences are equal
    claims = claims_of(rows)
    assert len(claims) == 8
    for claim in claims:
        counts = claim["family"] != EXPLAINED
        assert (claim["p"] is not None) == counts
        assert claim["verdict"] == ("supported" if counts else "undecided")


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_sets_and_seeds_are_those_of_the_fair_comparison(scale):
    study, fair = SharedBase.at_scale(scale), FairComparison.at_scale(scale)
    assert (study.seeds, study.trials) == (fair.seeds, fair.trials)
    assert study.task_sets() == fair.task_sets()
    assert set(BASED) <= set(METHODS)
