"""The study of support sets, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.studies.conditioner_methods import (
    BY_CLASS,
    FITTED,
    MEAN,
    NEAREST,
    PROBE,
    THEN_FITTED,
)
from sparsehyper.lab.studies.support_sets import SupportSets


@pytest.fixture(scope="module")
def results(run):
    return run("support-sets")[0]


def test_every_way_learns_every_family_from_every_number_of_images(results):
    ways = [MEAN, NEAREST, FITTED, BY_CLASS, THEN_FITTED, PROBE, "nearest mean"]
    for family in ("pairs", "solved"):
        own = [row for row in results["rows"] if row["family"] == family]
        assert [(r["method"], r["shots"]) for r in own] == [(w, s) for w in ways for s in (1, 5)]


def test_a_fit_changes_what_a_support_set_gives(results):
    found = {(r["method"], r["shots"]): r for r in results["rows"] if r["family"] == "pairs"}
    for shots in (1, 5):
        alone, fitted = found[BY_CLASS, shots], found[THEN_FITTED, shots]
        assert alone["accuracy"] != fitted["accuracy"]


def test_claims_are_those_of_the_plan(results):
    pairs = [(BY_CLASS, FITTED), (BY_CLASS, NEAREST), (BY_CLASS, PROBE), (THEN_FITTED, FITTED)]
    wanted = [(f"{a} − {b}", shots) for a, b in pairs for shots in (1, 5, "mean")]
    wanted.append((f"{BY_CLASS} − task embedding", "known tasks"))
    for family in ("pairs", "solved"):
        own = [c for c in results["claims"] if c["family"] == family]
        assert [(c["claim"], c["shots"]) for c in own] == wanted


def test_more_tasks_are_known_in_one_of_two_families_of_rotations():
    families = SupportSets.cpu().families
    few, many = (families[f"rotated MNIST, {count} known"] for count in (10, 34))
    assert (few.held_out, few.steps, few.target) == (many.held_out, many.steps, many.target)
    assert few.tasks != many.tasks
