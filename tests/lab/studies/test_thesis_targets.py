"""The study of the thesis's targets, at its smallest."""

from __future__ import annotations

from statistics import fmean

import pytest

from sparsehyper.lab.runs.targets import build_target
from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.intervals import holm
from sparsehyper.lab.studies.thesis_targets import ThesisTargets, claims_of


@pytest.fixture(scope="module")
def found(run):
    return run("thesis-targets")


def test_learning_rates_alone_are_searched(found):
    results, folder = found
    for search in results["searches"].values():
        assert search["settings_found"].keys() == {"training.lr"}
    cells = read_cells(folder)
    for method, base in (
        ("sparse_and_a_base__4_N--4N", "learned"),
        ("thesis_s_chunked--4N", "zeros"),
        ("sparse__one_unit_a_weight", "zeros"),
    ):
        cell = cells[f"digits--{method}--0"]
        assert cell["settings"]["experiment"]["base"] == base
        assert 3 < cell["parameters"] < 4.02


def test_claims_are_differences_of_the_same_seeds(found):
    results, _ = found
    rows = {row["method"]: row["accuracy"] for row in results["rows"]}
    claims = {(c["question"], c["claim"]): c for c in results["claims"]}
    claim = claims[1, "thesis's sparse, uniform − thesis's chunked"]
    assert claim["mean"] == pytest.approx(
        fmean(rows["thesis's sparse, uniform"]) - fmean(rows["thesis's chunked"])
    )
    assert {question for question, _ in claims} == {1, 2, 3, 4, 5, 6}


def test_each_question_is_a_family_over_both_sets():
    def row(family, method, *accuracy):
        return {"family": family, "method": method, "accuracy": accuracy}

    rows = [
        row(family, method, *accuracies)
        for family in ("mlp", "resnet")
        for method, accuracies in (
            ("sparse and a base, 4 N", (0.9, 0.91, 0.92, 0.93)),
            ("thesis's sparse, local", (0.8, 0.82, 0.81, 0.83)),
            ("thesis's chunked", (0.8, 0.81, 0.83, 0.82)),
            ("experts", (0.9, 0.92, 0.91, 0.94)),
        )
    ]
    claims = claims_of(rows)
    assert [(claim["question"], claim["family"]) for claim in claims] == [
        *((1, "mlp"), (1, "resnet")),
        *((2, "mlp"), (2, "resnet")) * 2,
        *((4, "mlp"), (4, "resnet")),
    ]
    for question, count in {1: 2, 2: 4, 4: 2}.items():
        own = [claim for claim in claims if claim["question"] == question]
        least = min(holm([claim])[0]["p"] for claim in own)  # of one claim, without correction
        assert min(claim["p"] for claim in own) == pytest.approx(min(1, count * least))


def test_targets_are_those_of_the_thesis():
    numbers = {}
    for scale in ("cpu", "full"):
        numbers[scale] = set()
        for tasks in ThesisTargets.at_scale(scale).sets.values():
            shape = (3, 32, 32) if tasks.source == "cifar10" else (1, 28, 28)
            target = build_target(tasks.target, shape, 10)
            numbers[scale].add(sum(p.numel() for p in target.parameters()))
    assert numbers["cpu"] == {638_810}
    assert {638_810, 426_426} < numbers["full"]
