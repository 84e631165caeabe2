"""The study of new tasks, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.studies.new_tasks import NEW_TASK_GENERATORS, NEW_TASK_METHODS, NewTasks


@pytest.fixture(scope="module")
def results(run):
    return run("new-tasks")[0]


def test_every_method_learns_every_family_from_every_number_of_images(results):
    families = results["study"]["families"]
    for name, family in families.items():
        own = [row for row in results["rows"] if row["family"] == name]
        for method in family["methods"]:
            assert [r["shots"] for r in own if r["method"] == method] == [1, 5, None]
        stages = {f"sparse linear, then {stage}" for stage in ("norm", "last", "all")}
        stages.add("mean model, tuned")
        found = {row["method"] for row in own} - set(family["methods"])
        assert found == (stages if name == "pairs" else set())
        for row in own:
            assert len(row["accuracy"]) == 2
            assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"])


def test_more_images_help_and_budgets_are_matched(results):
    rows = {(r["family"], r["method"], r["shots"]): r for r in results["rows"]}
    near = [rows["pairs", "nearest mean", shots]["accuracy"] for shots in (1, None)]
    assert sum(near[1]) > sum(near[0])
    ours, theirs = (rows["pairs", m, 5]["parameters"] for m in ("sparse linear", "chunked"))
    assert 0.8 < theirs / ours < 1.2
    assert rows["pairs", "scratch", 5]["parameters"] == 1
    # A learned base is paid for.
    based = rows["re-paired", "sparse linear, base and 256", 5]["parameters"]
    assert based == pytest.approx(rows["re-paired", "sparse linear", 5]["parameters"], rel=0.05)


def test_claims_are_paired_differences(results):
    rows = {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in results["rows"]}
    for claim in results["claims"]:
        assert claim["verdict"] in ("supported", "not supported", "undecided")
        pair = claim["claim"].split(" − ")
        if isinstance(claim["shots"], str):  # the mean over numbers of images
            continue
        place = claim["family"], claim["shots"]
        ours, theirs = (rows[place[0], m, place[1]] for m in pair)
        assert claim["mean"] == pytest.approx((sum(ours) - sum(theirs)) / 2)
    together = [c for c in results["claims"] if isinstance(c["shots"], str)]
    assert len(together) == 6 + 7
    for whole in together:
        parts = [
            c["mean"]
            for c in results["claims"]
            if (c["family"], c["claim"]) == (whole["family"], whole["claim"]) and c is not whole
        ]
        assert whole["mean"] == pytest.approx(sum(parts) / len(parts))


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_larger_scales_name_real_tasks(scale):
    study = NewTasks.at_scale(scale)
    assert study.seeds >= 5
    for family in study.families.values():
        assert set(family.methods) <= set(NEW_TASK_METHODS)
    assert set(NEW_TASK_GENERATORS) <= set(study.families["Fashion-MNIST pairs"].methods)
