"""The study of target sparsity, at its smallest."""

from __future__ import annotations

import pytest

from sparsehyper.lab.studies.cells import read_cells
from sparsehyper.lab.studies.target_sparsity import SPARSIFIED_METHODS, TargetSparsity


@pytest.fixture(scope="module")
def found(run):
    return run("target-sparsity")


def test_zeros_are_not_paid_for(found):
    results, folder = found
    parameters = {(row["method"], row["sparsity"]): row["parameters"] for row in results["rows"]}
    assert {method for method, _ in parameters} == set(SPARSIFIED_METHODS)
    # Weights are nearly all of the 13,402 parameters.
    for method in set(SPARSIFIED_METHODS) - {"experts, pruned"}:
        assert parameters[method, 0.5] == pytest.approx(parameters[method, 0] / 2, rel=0.05)
    assert parameters["experts, masked", 0.5] == pytest.approx(5 * (6_600 + 202) / 13_402, rel=0.01)
    assert parameters["experts, pruned", 0.5] == parameters["experts, masked", 0.5]
    settings = read_cells(folder)["digits_5_2--sparse--0.5--0"]["settings"]
    assert settings["experiment"]["target"] == "mlp:200/masked:0.5"


def test_whole_experts_are_one_experiment(found):
    results, _ = found
    accuracy = {(row["method"], row["sparsity"]): row["accuracy"] for row in results["rows"]}
    assert ("experts, pruned", 0) not in accuracy
    assert accuracy["experts, masked", 0.5] != accuracy["experts, pruned", 0.5]
    assert {c["claim"].split(", ")[-1] for c in results["claims"]} == {"0% zeros", "50% zeros"}


def test_larger_scales_name_real_tasks():
    for scale in ("cpu", "full"):
        study = TargetSparsity.at_scale(scale)
        assert {tasks.data.source for tasks in study.sets.values()} == {"fashion_mnist", "cifar10"}
