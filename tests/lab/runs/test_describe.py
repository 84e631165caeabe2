"""A run's report compared with the records and with a fresh computation."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.sites import write_sites
from sparsehyper.lab.runs import DataConfig, change_tasks, describe_run, load_run, run_experiment
from sparsehyper.lab.runs import describe as module
from sparsehyper.training import Run

OF_EMBEDDINGS = ("map", "distances", "interpolation", "layers", "summary", "wiring")


@pytest.fixture(scope="module")
def finished(experiment, tasks, tmp_path_factory):
    """Directory and description of a finished run; do not change them."""
    path = tmp_path_factory.mktemp("runs") / "pairs"
    run_experiment(experiment, path, tasks=tasks, quiet=True)
    return path, describe_run(path)


@pytest.fixture(scope="module")
def result(finished):
    return json.loads((finished[0] / "result.json").read_text())


def test_it_is_json_and_agrees_with_the_result(finished, result):
    _, found = finished
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["kind"], found["name"], found["split"]) == ("run", "pairs", "test")
    test = result["test"]
    assert {t["name"]: t["accuracy"] for t in found["tasks"]} == test["accuracies"]
    assert {t["name"]: t["loss"] for t in found["tasks"]} == test["losses"]
    assert test.items() >= found["evaluation"].items()
    assert result["training"].items() >= found["training"].items()
    assert found["missing"] is None
    assert (found["score"], found["samples"]) == ("accuracy", "images")
    assert found["config"]["target"] == "mlp:16"
    assert found["made"]["date"] == result["date"]
    assert found["made"]["machine"]["cores"] >= 1
    assert found["made"]["command"] is None  # it was not made by one


def test_curves_are_those_of_the_metrics(finished):
    path, found = finished
    metrics = Run(path).read_metrics()
    validation = [row for row in metrics if row["kind"] == "validation"]
    assert found["curves"]["validation"]["step"] == [2, 4]
    assert found["curves"]["validation"]["accuracy"] == [row["accuracy"] for row in validation]
    assert found["curves"]["train"]["step"] == [2, 4]


def test_confusion_matrices_count_every_image(finished, tasks):
    _, found = finished
    for i, (row, matrix) in enumerate(
        zip(found["tasks"], found["confusion"]["matrices"], strict=True)
    ):
        counts = torch.tensor(matrix)
        assert counts.sum() == row["images"] == tasks.test.counts[i]
        assert torch.equal(counts.sum(1), tasks.test.labels(i).bincount())
        assert int(counts.trace()) / row["images"] == pytest.approx(row["accuracy"], abs=1e-6)


def test_of_many_images_some_are_looked_at(finished, monkeypatch):
    monkeypatch.setattr(module, "_WORK", 0)
    found = describe_run(finished[0])
    assert found["confusion"]["images"] == 50
    assert {sum(map(sum, matrix)) for matrix in found["confusion"]["matrices"]} == {50}
    assert found["interpolation"]["images"] == 20


def test_the_geometry_of_the_embeddings(finished):
    path, found = finished
    weight = load_run(path).model.task_embedding.weight.detach().double().numpy()
    centred = weight - weight.mean(1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = 1 - unit @ unit.T
    assert found["distances"]["tasks"] == list(range(5))
    np.testing.assert_allclose(found["distances"]["values"], expected, atol=1e-3)
    np.fill_diagonal(expected, np.inf)
    assert [task["nearest"] for task in found["tasks"]] == expected.argmin(1).tolist()
    points = np.array(found["map"]["points"])
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    shares = values**2 / (values**2).sum()
    np.testing.assert_allclose(found["map"]["explained"], shares[:2], rtol=1e-3)
    spread = np.linalg.svd(points, compute_uv=False)
    assert spread[0] / spread[1] == pytest.approx(values[0] / values[1], rel=1e-3)


def test_lines_begin_and_end_at_the_tasks_own_accuracies(finished):
    _, found = finished
    lines = found["interpolation"]
    assert lines["tasks"] == list(range(5))
    assert lines["positions"][::5] == [0, 0.5, 1]
    assert len(lines["pairs"]) == 10
    assert not lines["mean_statistics"]
    for pair in lines["pairs"]:
        ends = [found["tasks"][pair[key]]["accuracy"] for key in ("a", "b")]
        assert [pair["of_a"][0], pair["of_b"][-1]] == pytest.approx(ends, abs=1e-6)
        assert len(pair["of_a"]) == len(pair["of_b"]) == 11


def test_lines_of_heads_in_closed_form_begin_and_end_there_too(experiment, tasks, tmp_path):
    solved = replace(experiment, head="ridge", base="residual")
    run_experiment(solved, tmp_path / "run", tasks=tasks, quiet=True)
    found = describe_run(tmp_path / "run")
    for pair in found["interpolation"]["pairs"]:
        ends = [found["tasks"][pair[key]]["accuracy"] for key in ("a", "b")]
        assert [pair["of_a"][0], pair["of_b"][-1]] == pytest.approx(ends, abs=1e-6)


def test_filters_are_the_first_generated_weights(finished):
    path, found = finished
    filters = found["filters"]
    assert filters["tensor"] == "1.weight"
    assert filters["shape"] == [12, 1, 8, 8]
    model = load_run(path).model
    for row in filters["rows"]:
        weight = model.generate(row["task"])["1.weight"].detach()[:12].reshape(12, 1, 8, 8)
        raw = np.frombuffer(base64.b64decode(row["pixels"]), np.int8).reshape(12, 1, 8, 8)
        assert np.abs(raw).max() == 127
        np.testing.assert_allclose(raw / 127 * row["scale"], weight, atol=row["scale"] / 200)


def test_the_wiring_is_that_of_the_generator(finished):
    path, found = finished
    wiring = found["wiring"]
    model = load_run(path).model
    layers = model.generator.layers
    assert wiring["sizes"] == [8, *(layer.out_features for layer in layers)]
    assert [trace["tensor"] for trace in wiring["traces"]][::3] == ["1.weight", "3.bias"]
    for spec, trace in zip(model.target.layout, wiring["traces"], strict=True):
        assert spec.offset <= trace["output"] < spec.offset + spec.numel
        ((source, output),) = trace["connections"][-1]
        assert output == trace["output"]
        assert source in layers[-1].connections()[:, output]
        assert trace["reached"][-1] == 1


def test_lines_of_many_tasks_are_those_of_a_few(finished):
    between = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    accuracies = [0.5 + 0.01 * ((7 * i) % 20) for i in range(20)]
    chosen = module._choose(between, accuracies)
    assert len(set(chosen)) == 6
    assert chosen == sorted(chosen)
    assert {accuracies.index(min(accuracies)), accuracies.index(max(accuracies))} <= set(chosen)


@pytest.mark.parametrize("method", ["experts", "shared_trunk"])
def test_a_baseline_has_no_embeddings(with_method, tasks, tmp_path, method):
    run_experiment(with_method(method), tmp_path / "run", tasks=tasks, quiet=True)
    found = describe_run(tmp_path / "run")
    assert [found[key] for key in OF_EMBEDDINGS] == [None] * 6
    assert len(found["confusion"]["matrices"]) == 5
    assert len(found["filters"]["rows"]) == (5 if method == "experts" else 1)


def test_a_dense_generator_has_no_sparse_wiring(with_method, tasks, tmp_path):
    run_experiment(with_method("dense"), tmp_path / "run", tasks=tasks, quiet=True)
    found = describe_run(tmp_path / "run")
    assert found["wiring"] is None
    assert found["layers"]


def test_filters_of_a_convolution(with_method, tasks, tmp_path):
    run_experiment(
        with_method("sparse", target="cnn:4-4,norm=batch"), tmp_path / "r", tasks=tasks, quiet=True
    )
    found = describe_run(tmp_path / "r")
    assert found["filters"]["shape"] == [4, 1, 3, 3]
    assert found["interpolation"]["mean_statistics"]


def test_an_unfinished_run_is_described_by_its_validation(finished, tmp_path, result):
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    (path / "result.json").unlink()
    found = describe_run(path)
    assert (found["split"], found["training"]) == ("val", None)
    best = result["training"]["best"]
    assert {t["name"]: t["accuracy"] for t in found["tasks"]} == best["accuracies"]


def test_an_adapted_run_has_no_images(finished, tmp_path):
    change_tasks(finished[0], tmp_path / "fewer", remove=["0-1"])
    found = describe_run(tmp_path / "fewer")
    assert "other tasks than it was trained on" in found["missing"]
    assert [found[key] for key in ("evaluation", "confusion", "interpolation")] == [None] * 3
    assert [task["origin"] for task in found["tasks"]] == ["trained"] * 4
    assert len(found["map"]["points"]) == 4


def test_a_run_whose_images_are_gone_or_have_changed(finished, tasks, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("`source` is nowhere")

    monkeypatch.setattr(module, "load_tasks", gone)
    found = describe_run(finished[0])
    assert found["missing"] == "The images were not found: `source` is nowhere"
    assert (found["confusion"], found["interpolation"]) == (None, None)
    assert found["evaluation"] == finished[1]["evaluation"]
    changed = replace(tasks, fingerprint="0123456789abcdef")
    monkeypatch.setattr(module, "load_tasks", lambda *_, **__: changed)
    found = describe_run(finished[0])
    assert found["missing"].startswith("The images cannot be used: the data have changed since")
    assert "is '0123456789abcdef'" in found["missing"]
    assert (found["confusion"], found["evaluation"]) == (None, finished[1]["evaluation"])


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("no 'right' to it"),
        KeyError("no 'right' to it"),
        ValueError("no 'right' to it"),
    ],
    ids=repr,
)
def test_a_run_whose_images_cannot_be_read(finished, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(module, "load_tasks", fails)
    found = describe_run(finished[0])
    assert found["missing"] == "The images cannot be used: no 'right' to it"
    assert found["evaluation"] == finished[1]["evaluation"]


def test_a_table_of_numbers_has_rows_and_r_squared(experiment, tmp_path):
    table = write_sites(tmp_path / "sites.csv", range(3), 20)
    data = DataConfig(str(table), task_column="site", target_column="price")
    run_experiment(replace(experiment, data=data), tmp_path / "run", quiet=True)
    found = describe_run(tmp_path / "run")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["score"], found["samples"]) == ("R²", "rows")
    assert [found[key] for key in ("confusion", "interpolation", "filters")] == [None] * 3
    assert [task["images"] for task in found["tasks"]] == [4] * 3
    table.unlink()
    assert describe_run(tmp_path / "run")["missing"].startswith("The rows were not found: ")
    change_tasks(tmp_path / "run", tmp_path / "fewer", remove=["001"])
    assert "no rows of them" in describe_run(tmp_path / "fewer")["missing"]


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: it has no config\.json"):
        describe_run(tmp_path)
