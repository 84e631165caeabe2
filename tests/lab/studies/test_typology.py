"""The study of the typology, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.generators import GENERATORS, parse_generator
from sparsehyper.lab.studies.typology import KINDS, Typology


@pytest.fixture(scope="module")
def results(run):
    return run("typology")[0]


def test_budgets_are_met_by_both(results):
    rows = {row["method"]: row["parameters"] for row in results["budgets"]}
    assert set(rows) == {f"{m}, {b} N" for m in ("sparse", "chunked") for b in ("0.5", "4")}
    for method, parameters in rows.items():
        budget = float(method.split()[1])
        embeddings = 5 * 64 / 26_802
        assert 0.5 * budget < parameters <= budget + embeddings


def test_every_row_is_measured_for_every_seed(results):
    assert len(results["kinds"]) == 3
    assert len(results["inits"]) == 4
    for row in results["kinds"] + results["budgets"] + results["inits"]:
        assert len(row["accuracy"]) == 2
        assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"])
        assert min(row["step_ms"] + row["model_ms"]) > 0
    one, other = results["inits"][:2]
    assert one["accuracy"] != other["accuracy"]


def test_every_generator_that_has_a_short_form_is_in_it():
    assert {parse_generator(text).kind for text in KINDS.values()} == {*GENERATORS} - {"composed"}
    assert set(Typology.full().kinds) == set(KINDS)
