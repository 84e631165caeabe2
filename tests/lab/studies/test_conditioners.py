"""The study of conditioners, at its smallest."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from sparsehyper.lab.data import Images, Source, load_source
from sparsehyper.lab.runs.setup import tasks_of
from sparsehyper.lab.studies.conditioner_methods import (
    BOTH,
    BY_CLASS,
    EMBEDDING,
    FITTED,
    INPUT,
    MEAN,
    METHODS,
    NEAREST,
    PROBE,
    SHARED,
    WHOLE,
)
from sparsehyper.lab.studies.conditioners import HUES, Conditioners
from sparsehyper.lab.studies.intervals import holm


@pytest.fixture(scope="module")
def results(run):
    return run("conditioners")[0]


def accuracies(results):
    return {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in results["rows"]}


def test_every_way_learns_every_family_from_every_number_of_images(results):
    ways = [way for kind in METHODS.values() for way in kind.ways]
    assert {MEAN, NEAREST, FITTED, BY_CLASS, WHOLE, INPUT, BOTH, PROBE} < set(ways)
    for family in results["study"]["families"]:
        own = [row for row in results["rows"] if row["family"] == family]
        assert [(r["method"], r["shots"]) for r in own] == [(w, s) for w in ways for s in (1, 5)]
        for row in own:
            assert len(row["accuracy"]) == len(row["fit_seconds"]) == 2
            assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"])


def test_what_gets_no_images_of_a_task_does_not_depend_on_their_number(results):
    found = accuracies(results)
    assert found[HUES, INPUT, 1] == found[HUES, INPUT, 5]
    assert found[HUES, BOTH, 1] == found[HUES, BOTH, 5]
    assert found[HUES, MEAN, 1] == found[HUES, MEAN, 5]
    assert found["solved", BOTH, 1] != found["solved", BOTH, 5]  # its head is solved from them


def test_every_method_has_as_many_trials_and_the_best_counts(results):
    judged = {row["method"] for row in results["trials"]}
    assert judged == {FITTED, BY_CLASS, WHOLE, INPUT, BOTH, PROBE, "nearest mean"}
    for row in results["trials"]:
        assert len(row["validation"]) == 2
        kind = next(kind for kind in METHODS.values() if row["method"] in kind.ways)
        assert max(row["validation"]) == row["validation"][kind.trials.index(row["settings"])]


def test_claims_are_paired_differences_that_hold_together(results):
    found = accuracies(results)
    known = {(r["family"], r["learner"]): r["accuracy"] for r in results["trained"]}
    for family in results["study"]["families"]:
        own = [claim for claim in results["claims"] if claim["family"] == family]
        hue = family == HUES
        assert len(own) == 3 * (6 + 2 * hue + hue) + 4
        assert [claim["p"] for claim in holm(own)] == pytest.approx([claim["p"] for claim in own])
        for claim in own:
            ours, theirs = claim["claim"].split(" − ")
            if claim["shots"] == "known tasks":
                pair = known[family, ours], known[family, theirs]
            elif claim["shots"] == "mean":
                continue
            elif theirs == f"{EMBEDDING} on known tasks":
                pair = found[family, ours, claim["shots"]], known[family, EMBEDDING]
            else:
                pair = found[family, ours, claim["shots"]], found[family, theirs, claim["shots"]]
            assert claim["mean"] == pytest.approx(fmean(pair[0]) - fmean(pair[1]))
            assert claim["pairs"] == 2
        means = [claim for claim in own if claim["shots"] == "mean"]
        for claim in means:
            each = [c["mean"] for c in own if c["claim"] == claim["claim"] and c["shots"] in (1, 5)]
            assert claim["mean"] == pytest.approx(fmean(each))
    assert {learner for _, learner in known} == {*METHODS}


def test_the_models_are_those_that_the_plan_names(results):
    study = Conditioners.at_scale("cpu")
    heads = {name: study.experiment(name, 0) for name in study.families}
    assert {name: (e.head, e.base) for name, e in heads.items()} == {
        "rotated MNIST": ("generated", "learned"),
        "Fashion-MNIST pairs": ("ridge", "residual"),
        HUES: ("generated", "learned"),
    }
    assert study.seeds == 5
    assert all(family.learners == tuple(METHODS) for family in study.families.values())


def test_hue_copies_are_of_tasks_that_were_trained_in_their_own_colours_alone():
    labels = torch.arange(10).repeat_interleave(20)
    train, test = (
        Images(torch.randint(256, (200, 3, 8, 8), dtype=torch.uint8), labels) for _ in range(2)
    )
    source = Source("cifar10", tuple(map(str, range(10))), train, test)
    family = Conditioners.at_scale("cpu").families[HUES]
    seen = set()
    for seed in range(3):
        known, new = family.split(tasks_of(family.data(seed), source), seed)
        assert all(name.endswith(" hue+0") for name in known.names)
        assert len(known.names) == 5
        assert len(new.names) == 10
        pairs = {name.partition(" ")[0] for name in known.names}
        assert {name.partition(" ")[0] for name in new.names} == pairs
        assert {name.partition(" ")[2] for name in new.names} == {"hue+0.25", "hue+0.5"}
        seen.add(frozenset(pairs))
    assert len(seen) == 3


def test_methods_make_models_that_depend_on_what_they_say():
    study = Conditioners.at_scale("smoke")
    family = study.families["solved"]
    experiment = study.experiment("solved", 0)
    tasks = tasks_of(family.data(0), load_source("digits"))
    known, new = family.split(tasks, 0)
    x, y, _ = new.train.batch(torch.zeros(20, dtype=torch.int64), torch.arange(20))
    made = {}
    for name, kind in METHODS.items():
        learner = kind(experiment, known, {}, 1.0, (5, 10))
        learner.pretrain()
        made[name] = learner
        assert not set(new.names) & set(known.names)
    head = replace(experiment, head="generated", base="learned")
    assert made[INPUT].experiment.head == head.head  # it knows no tasks
    assert [made[name].experiment.conditioner for name in (BY_CLASS, WHOLE)] == [
        "support_set",
        "support_set:pool=examples",
    ]
    by_class = made[BY_CLASS].learn(BY_CLASS, (x, y), 2).model
    order = torch.randperm(20)
    again = made[BY_CLASS].learn(BY_CLASS, (x[order], y[order]), 2).model
    torch.testing.assert_close(by_class(x), again(x), atol=1e-4, rtol=1e-4)
    alone = made[INPUT].learn(INPUT, (x, y), 2).model
    torch.testing.assert_close(alone(x)[:3], alone(x[:3]), atol=1e-5, rtol=1e-5)
    assert made[SHARED].learn(PROBE, (x, y), 2).model(x).shape == (20, 2)
