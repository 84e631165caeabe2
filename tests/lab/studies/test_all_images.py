"""The study of all images, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.studies.adaptation_families import CPU_FAMILIES
from sparsehyper.lab.studies.all_images import AllImages
from sparsehyper.lab.studies.few_shot_results import EVERYWHERE


@pytest.fixture(scope="module")
def results(run):
    return run("all-images")[0]


RIVALS = ("scratch", "fine-tuned trunk")


def test_every_method_learns_every_family(results):
    for family in ("pairs", "longer"):
        own = [row for row in results["rows"] if row["family"] == family]
        assert [(r["method"], r["shots"]) for r in own] == [(m, None) for m in ("auto", *RIVALS)]


def test_claims_are_those_of_the_plan_and_their_means(results):
    found = [(c["question"], c["claim"], c["family"]) for c in results["claims"]]
    families = ("pairs", "longer", EVERYWHERE)
    assert found == [
        (q, f"auto − {rival}", f) for q, rival in enumerate(RIVALS, 1) for f in families
    ]
    accuracy = {(r["family"], r["method"]): r["accuracy"] for r in results["rows"]}
    for i, rival in enumerate(RIVALS):
        one, other, mean = (claim["mean"] for claim in results["claims"][3 * i : 3 * i + 3])
        ours, theirs = (accuracy["pairs", method] for method in ("auto", rival))
        assert one == pytest.approx((sum(ours) - sum(theirs)) / 2)
        assert mean == pytest.approx((one + other) / 2)


def test_families_differ_from_those_of_adaptation_in_what_is_learned_alone():
    for name, family in AllImages.cpu().families.items():
        same = {"learners": family.learners, "shots": family.shots}
        assert vars(family) == vars(CPU_FAMILIES[name]) | same
