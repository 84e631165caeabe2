"""The study of adaptation, at its smallest."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from sparsehyper.lab.data import load_source
from sparsehyper.lab.runs.setup import tasks_of
from sparsehyper.lab.studies.adaptation import Adaptation
from sparsehyper.lab.studies.adaptation_families import CHARACTERS, Family
from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.few_shot import EXPERTS, HYPERNETWORK, LEARNERS, SINGLE
from sparsehyper.lab.studies.new_tasks import NewTasks

RIVALS = ("best way", "linear probe", "scratch", "Prototypical Networks")


@pytest.fixture(scope="module")
def results(run):
    return run("adaptation")[0]


def accuracies(results):
    return {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in results["rows"]}


def test_every_way_learns_every_family_from_every_number_of_images(results):
    for name, family in results["study"]["families"].items():
        own = [row for row in results["rows"] if row["family"] == name]
        ways = [way for learner in family["learners"] for way in LEARNERS[learner].ways]
        assert [(r["method"], r["shots"]) for r in own] == [
            (way, shots) for way in ways for shots in family["shots"]
        ]
        for row in own:
            assert len(row["accuracy"]) == len(row["fit_seconds"]) == 2
            assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"])
    assert len({way for kind in LEARNERS.values() for way in kind.ways}) == sum(
        len(kind.ways) for kind in LEARNERS.values()
    )


def test_every_baseline_learns(results):
    found = accuracies(results)
    # `adapt_task` and its ways have so little time that what they reach depends on the machine
    for learner in set(LEARNERS) - {HYPERNETWORK}:
        for way in LEARNERS[learner].ways:
            assert fmean(found["pairs", way, None]) > 0.8


def test_every_method_has_equally_many_trials_and_the_best_counts(results):
    for row in results["trials"]:
        assert len(row["validation"]) == results["study"]["trials"] == 2
        kind = next(k for k in LEARNERS.values() if row["settings"] in k.trials)
        assert max(row["validation"]) == row["validation"][kind.trials.index(row["settings"])]
    assert len({len(kind.trials) for kind in LEARNERS.values()}) == 1
    judged = {row["method"] for row in results["trials"] if row["family"] == "pairs"}
    assert {"auto", "linear probe", "fine-tuned trunk", "scratch"} <= judged
    assert not judged & set(SINGLE)  # they follow auto's


def test_the_best_way_is_that_of_hindsight(results):
    found = accuracies(results)
    for best in results["best"]:
        place = best["family"], best["shots"]
        own = {m: fmean(a) for (f, m, s), a in found.items() if (f, s) == place}
        assert best["auto"] == own.pop("auto")
        assert best["way"] in SINGLE
        assert best["way_accuracy"] == own[best["way"]] == max(own[way] for way in SINGLE)
        assert best["method_accuracy"] == own[best["method"]] == max(own.values())


def test_claims_are_paired_differences(results):
    found = accuracies(results)
    hindsight = {(b["family"], b["shots"]): b["way"] for b in results["best"]}
    for rival in RIVALS:
        *places, whole = [c for c in results["claims"] if c["claim"] == f"auto − {rival}"]
        assert len(places) == 3 + 1
        for claim in places:
            place = claim["family"], claim["shots"]
            method = hindsight[place] if rival == "best way" else rival
            ours, theirs = (found[place[0], m, place[1]] for m in ("auto", method))
            assert claim["mean"] == pytest.approx(fmean(ours) - fmean(theirs))
        assert whole["family"] == "all families"
        assert whole["mean"] == pytest.approx(fmean(claim["mean"] for claim in places))


def test_what_was_stated_and_chosen_is_kept(results, run):
    found, cells = accuracies(results), read_cells(run("adaptation")[1])
    shots = {name: family["shots"] for name, family in results["study"]["families"].items()}
    for row in results["stated"]:
        assert row["tasks"] == (2 if row["family"] == "pairs" else 4)
        assert 0 <= row["within"] <= row["tasks"]
        assert row["measured"] == pytest.approx(fmean(found[row["family"], "auto", row["shots"]]))
        assert 0 <= row["accuracy"] <= 1
        said = [
            one["accuracy"]
            for name, cell in cells.items()
            if name.startswith(f"{row['family']}--hypernetwork--")
            for one in cell["stated"][shots[row["family"]].index(row["shots"])].values()
        ]
        assert row["accuracy"] == pytest.approx(fmean(said))
        assert 0 < row["width"] <= 1
        assert sum(row["weights"].values()) == pytest.approx(1)


def test_figures_say_whether_the_goals_were_reached(results):
    figures = {row["figure"]: row for row in results["figures"]}
    assert len(figures) == 2 + 3 + 1
    places = [c for c in results["claims"] if c["claim"] == "auto − best way"][:-1]
    worst = min(claim["mean"] for claim in places)
    first = figures["auto − best way, everywhere"]
    assert first["reached"] == (worst >= -0.005)
    assert first["found"].startswith(f"{100 * worst:+.2f} (")
    within, tasks = (sum(row[key] for row in results["stated"]) for key in ("within", "tasks"))
    last = figures["stated accuracy within its 95% interval"]
    assert last["reached"] == (within >= 0.9 * tasks)
    assert last["found"] == f"{within / tasks:.1%} of {tasks}"


def test_known_tasks_are_compared_with_experts(results):
    own = {
        row["learner"]: row["accuracy"] for row in results["trained"] if row["family"] != "pairs"
    }
    assert set(own) == {"hypernetwork", "shared trunk", EXPERTS}
    assert all(len(values) == 2 for values in own.values())


def test_every_seed_has_tasks_of_its_own_and_no_new_task_is_known():
    source = load_source("digits")
    drawn = Family("digits", "split:2,all")
    grouped = Family("digits", "split:0-1,0-2,3-4,3-5,6-7", None)
    renamed = Family("digits", "split:{0}-{1},{2}-{3},{0}-{2}", (2,))
    for family in (drawn, grouped, renamed):
        held = set()
        for seed in range(3):
            tasks = tasks_of(family.data(seed), source)
            known, new = family.split(tasks, seed)
            assert not set(known.names) & set(new.names)
            assert {*known.names, *new.names} == set(tasks.names)
            assert len(new.names) <= family.most
            held.add(new.names)
        assert len(held) == 3
    # groups take turns, so that their classes are in no known task
    known, new = grouped.split(tasks_of(grouped.data(1), source), 1)
    assert new.names == ("3-4", "3-5")
    assert "3" not in {name for classes in known.classes for name in classes}
    # what is held out stays out, however little of it is learned
    one = replace(grouped, most=1)
    fewer = one.split(tasks_of(one.data(1), source), 1)
    assert [some.names for some in fewer] == [known.names, ("3-4",)]
    permuted = replace(drawn, tasks="permuted:3,seed={seed}")
    assert permuted.data(0) != permuted.data(1)


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_larger_scales_have_the_families_of_the_earlier_study_and_characters(scale):
    study = Adaptation.at_scale(scale)
    assert set(study.families) == {*NewTasks.at_scale(scale).families, CHARACTERS}
    assert study.seeds == 5  # each of five alphabets is left out once
    assert study.families[CHARACTERS].learners == tuple(LEARNERS)
    for family in study.families.values():
        assert set(LEARNERS) - set(family.learners) <= {EXPERTS}
