"""The fair comparison, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.runs import load_tasks
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.fair_comparison import FairComparison
from sparsehyper.lab.studies.fair_sets import METHODS, UNTIL, VARIANTS
from sparsehyper.lab.studies.fresh_study import held_back


@pytest.fixture(scope="module")
def found(run):
    return run("fair-comparison")


def test_every_method_has_as_many_trials_for_each_setting_that_it_searches(found):
    results, _ = found
    assert len(results["searches"]) == len(results["rows"]) == 8
    drawn = []
    for search in results["searches"].values():
        space = search["settings"]["space"]
        assert search["settings"]["trials"] == len(space)
        assert (len(search["trials"]) - len(space)) % len(space) == 0  # rounds
        assert set(search["settings_found"]) == set(space)
        assert "accuracy" not in search
        if len(space) > 1:
            drawn.append(search["trials"][1]["settings"]["training.lr"])
    assert len(set(drawn)) == len(drawn)  # every search draws its own


def test_tasks_and_split_are_drawn_anew_for_every_seed(found):
    _, folder = found
    for name, cell in read_cells(folder).items():
        experiment = Experiment.from_dict(cell["settings"]["experiment"])
        assert experiment.data.seed == experiment.seed
        if name.startswith(("search", "rate")):
            assert experiment.seed == 1000
    study = FairComparison.smoke().sets["digits"]
    one, other = (load_tasks(study.data(seed)) for seed in (0, 1))
    assert one.names != other.names


def test_half_of_the_test_images_are_held_back(found):
    _, folder = found
    of_a_seed = {}
    for seed in (0, 1):
        tasks = load_tasks(FairComparison.smoke().sets["digits"].data(seed))
        half = held_back(tasks)
        cell = read_cells(folder)[f"digits--sparse--4N--{seed}"]
        for i, name in enumerate(tasks.names):
            assert 0.3 < half.test.counts[i] / tasks.test.counts[i] < 0.7
            right = cell["accuracies"][name] * half.test.counts[i]
            assert right == pytest.approx(round(right), abs=1e-6)
        of_a_seed[seed] = set(half.test._rows.tolist())
        assert half.train is tasks.train
    # the same half, so an image that one seed holds back is not developed on by another
    everything = load_tasks(DataConfig("digits", "split:2"))
    assert of_a_seed[0] | of_a_seed[1] <= set(held_back(everything).test._rows.tolist())


def test_budgets_are_met(found):
    results, _ = found
    embeddings = 2 * 1024 / 2_146
    for row in results["rows"]:
        if row["budget"] is not None:
            assert row["parameters"] <= row["budget"] + embeddings
        assert len(row["accuracy"]) == len(row["trained"]) == 2


def test_longer_trainings_have_each_length(found):
    results, _ = found
    assert [row["updates"] for row in results["lengths"]] == [6, 12, None] * 2
    assert {row["method"] for row in results["lengths"]} == {"sparse", "chunked"}


def test_claims_are_corrected_within_their_question(found):
    results, _ = found
    questions = [claim["question"] for claim in results["claims"]]
    assert questions == [1, 1, 2, 3, 3, 3, 4, None]
    for claim in results["claims"]:
        assert claim["verdict"] == "undecided" or claim["p"] <= 0.05
    accuracy = {(row["method"], row["budget"]): row["accuracy"] for row in results["rows"]}
    ours, theirs = accuracy["sparse", 4], accuracy["chunked", 4]
    (claim,) = [c for c in results["claims"] if c["claim"] == "sparse − chunked, 4 N"]
    assert claim["mean"] == pytest.approx((sum(ours) - sum(theirs)) / 2)


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_larger_scales(scale):
    study = FairComparison.at_scale(scale)
    assert study.trials == 3
    assert study.seeds >= 8
    for tasks in study.sets.values():
        assert set(tasks.methods) <= set(METHODS)
    for method in METHODS.values():
        for path, choices in method.space.items():
            if path in UNTIL and path != "training.lr":  # ranges can grow value by value
                at = UNTIL[path].index(choices[0])
                assert UNTIL[path][at : at + len(choices)] == choices
    assert any(set(VARIANTS) <= set(tasks.methods) for tasks in study.sets.values())
