"""The study of the generator's size, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.analysis import summarize
from sparsehyper.lab.runs.setup import build_model, load_tasks, target_numel
from sparsehyper.lab.studies.few_shot_results import EVERYWHERE
from sparsehyper.lab.studies.generator_size import LARGE, MIDDLE, PROBE, SMALL, GeneratorSize

SIZES = (SMALL, LARGE, MIDDLE)
WAYS = {size: [f"{size}, {way}" for way in ("adapt_task", "embedding")] for size in SIZES}


@pytest.fixture(scope="module")
def results(run):
    return run("generator-size")[0]


def test_every_way_learns_every_family_from_every_number_of_images(results):
    for family in ("pairs", "longer"):
        own = [row for row in results["rows"] if row["family"] == family]
        assert [(r["method"], r["shots"]) for r in own] == [
            (way, shots)
            for way in [*WAYS[SMALL], *WAYS[LARGE], PROBE, *WAYS[MIDDLE]]
            for shots in (1, 5)
        ]


def test_the_sizes_are_as_named():
    study = GeneratorSize.smoke()
    name = "pairs"
    known, _ = study.families[name].split(load_tasks(study.families[name].data(0)), 0)
    for learner, low, high in ((SMALL, 0.1, 0.125), (MIDDLE, 0.9, 1), (LARGE, 3.5, 4.1)):
        own = study.learners[learner](study.experiment(name, 0), known, {}, 1.0, (1, 2))
        model = build_model(own.experiment, known)
        generator = summarize(model)["trainable"]["generator"]
        assert low < generator / target_numel(model) <= high


def test_claims_are_those_of_the_plan_and_their_means(results):
    def pairs(ours, theirs):
        ways = zip(WAYS[ours], WAYS[theirs], strict=True)
        return [f"{ours} − {theirs}, known tasks", *(f"{a} − {b}" for a, b in ways)]

    of_families = [*pairs(SMALL, LARGE), f"{WAYS[SMALL][0]} − {PROBE}", *pairs(MIDDLE, LARGE)]
    found = [(c["question"], c["claim"], c["family"]) for c in results["claims"]]
    families = ("pairs", "longer", EVERYWHERE)
    assert found == [
        *((q, what, f) for q, what in enumerate(of_families, 1) for f in families),
        *((8, what, EVERYWHERE) for what in pairs(MIDDLE, SMALL)),
    ]
    means = [claim["mean"] for claim in results["claims"]]
    for start in range(0, 3 * len(of_families), 3):
        one, other, mean = means[start : start + 3]
        assert mean == pytest.approx((one + other) / 2)
    small, middle = means[2:9:3], means[14:21:3]  # both against 5 N
    assert means[21:] == pytest.approx([a - b for a, b in zip(middle, small, strict=True)])


def test_long_trainings_differ_in_nothing_else():
    families = GeneratorSize.cpu().families
    for name, family in families.items():
        if name.endswith("updates"):
            short = families[name.rpartition(", ")[0]]
            assert family.steps > short.steps
            assert vars(family) | {"steps": short.steps} == vars(short)
