"""The study of adapters, at its smallest."""

from __future__ import annotations

from statistics import fmean

import pytest

from sparsehyper.lab.studies.adapter_methods import METHODS
from sparsehyper.lab.studies.adapter_results import GENERATED, REFINED, conclusions
from sparsehyper.lab.studies.adapters import ANY, ONE, Adapters, draw_tasks

RIVALS = ("nearest mean", "logistic regression", "LoRA from scratch", "shared LoRA")
COSTS = {
    "lora": 1000,
    "embedding": 10,
    "trained": 1000,
    "checkpoint": 4400,
    "mixed": {"8": {"median": 3.5, "low": 3, "high": 4}, "64": {"median": 2, "low": 1, "high": 3}},
    "step": {"median": 1.2, "low": 1, "high": 2},
}


@pytest.fixture(scope="module")
def results(run):
    return run("adapters")[0]


def overall(results, method, shots):
    own = [r for r in results["rows"] if (r["method"], r["shots"]) == (method, shots)]
    assert {row["family"] for row in own} == {ONE, ANY}
    return [fmean(seed) for seed in zip(*(row["accuracy"] for row in own), strict=True)]


def test_every_way_learns_every_family_from_every_number_of_examples(results):
    ways = [way for kind in METHODS.values() for way in kind.ways]
    assert len(set(ways)) == len(ways)
    for family in (ONE, ANY):
        own = [row for row in results["rows"] if row["family"] == family]
        assert [(r["method"], r["shots"]) for r in own] == [(w, s) for w in ways for s in (0, 1, 5)]
        for row in own:
            assert len(row["accuracy"]) == len(row["fit_seconds"]) == 2
            assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"])


def test_what_is_trained_on_known_tasks_changes_the_encoder_and_still_tells_intents_apart(results):
    frozen = overall(results, "nearest mean", 5)
    for way in ("shared LoRA", *GENERATED):
        assert fmean(overall(results, way, 5)) > 0.5  # by chance 0.2
        assert [overall(results, way, s) for s in (0, 1, 5)] != [
            *(overall(results, "nearest mean", s) for s in (0, 1)),
            frozen,
        ]


def test_claims_are_paired_differences(results):
    claims = {(c["family"], c["claim"]): c for c in results["claims"]}
    assert len(claims) == 3 * 4 + 2 * (4 * 4 + 1)
    for shots, where in ((0, "names alone"), (1, "1 example"), (5, "5 examples")):
        for way in (*GENERATED, *([REFINED] if shots else [])):
            for rival in RIVALS:
                ours, theirs = overall(results, way, shots), overall(results, rival, shots)
                found = claims[where, f"{way} − {rival}"]
                assert found["mean"] == pytest.approx(fmean(ours) - fmean(theirs))
                assert found["pairs"] == 2


def test_costs_are_those_of_a_task_and_of_what_is_trained(results):
    costs = results["costs"]
    assert costs["embedding"] == results["study"]["how"]["latent_dim"]
    assert costs["lora"] == 2 * 2 * (16 + 16)  # two layers of rank 2
    assert costs["trained"] > costs["lora"]
    assert costs["checkpoint"] > 4 * costs["trained"]
    assert set(costs["mixed"]) == {"8", "64"}


def found(accuracy, costs=COSTS):
    """The figures, where ``accuracy(way, shots, seed)`` is that of every task."""
    cells = {
        (method, seed): {
            part: {
                way: {
                    family: [[accuracy(way, s, seed)] * 2 for s in (0, 1, 5)]
                    if part == "accuracies"
                    else [1.0] * 3
                    for family in (ONE, ANY)
                }
                for way in kind.ways
            }
            for part in ("accuracies", "fit_seconds")
        }
        for method, kind in METHODS.items()
        for seed in range(3)
    }
    families = {ONE: (10, 5), ANY: (5, 10)}
    return conclusions(cells, costs, 3, families, (0, 1, 5))["figures"]


def test_figures_say_whether_the_goals_were_reached():
    better = {"LoRA from examples": 0.84, "logistic regression": 0.8, "LoRA from scratch": 0.78}
    figures = found(lambda way, s, seed: better.get(way, 0.7) + s / 1000 + seed / 100)
    assert [f["reached"] for f in figures] == [True, True, True, False, True, False, False, True]
    first, *_, described, numbers, mixed, step, checkpoint = figures
    assert first["found"] == "+4.00 (+4.00 to +4.00; LoRA from examples)"
    assert described["found"] == "71.00 ± 1.00%"
    assert numbers["found"] == "1/100 (10 of 1,000)"
    assert (
        mixed["found"] == "3.50 × (3.00 to 4.00) for 8 sentences, 2.00 × (1.00 to 3.00) for 64 "
        "sentences"
    )
    assert step["found"] == "1.20 × (1.00 to 2.00)"
    assert checkpoint["found"] == "1.100 ×"


def test_a_lead_counts_only_with_its_whole_interval():
    def accuracy(way, shots, seed):
        return 0.84 + 0.02 * (seed - 1) if way in GENERATED else 0.8

    first, *_ = found(accuracy)
    assert first["found"].startswith("+4.00 (-0.97 to +8.97")
    assert not first["reached"]


def test_no_domain_is_both_known_and_new_and_every_seed_has_others():
    domains = {f"d{d}": [f"{d}-{i}" for i in range(15)] for d in range(10)}
    study = Adapters.at_scale("cpu")
    seen = set()
    for seed in range(study.seeds):
        kinds = study.unseen, study.known, study.families
        known, new = draw_tasks(domains, *kinds, seed)
        assert (known, new) == draw_tasks(domains, *kinds, seed)

        def of(tasks):
            return {intent.split("-")[0] for task in tasks for intent in task.intents}

        assert len(known) == len({task.name for task in known}) == 60
        assert len(of(known)) == 7
        assert {len(task.intents) for task in known} == {5, 10, 15}
        assert [len(task.intents) for task in new[ONE]] == [10, 10, 10]
        assert [len(task.intents) for task in new[ANY]] == [5, 10, 15]
        assert all(len(of([task])) == 1 for task in new[ONE])
        assert len(of(new[ONE])) == 3
        assert not of(known) & of([*new[ONE], *new[ANY]])
        assert all(len(set(task.intents)) == len(task.intents) for task in known)
        seen.add(frozenset(of(new[ONE])))
    assert len(seen) == study.seeds
