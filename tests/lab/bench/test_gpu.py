from __future__ import annotations

import json

import pytest
import torch

from sparsehyper.lab.bench import QUICK, bench, gpu, gpu_checks
from sparsehyper.lab.report import bench as report


@pytest.fixture(scope="module")
def found():
    """The benchmarks of a GPU, on the CPU: what they measure, without graphs and peaks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "_RUN_SECONDS", 0.0)
        return gpu.measure_gpu(QUICK, 1, 0, "cpu")


@pytest.mark.slow
def test_nothing_is_left_out_or_wrong(found):
    assert found["skipped"] == []
    assert all(row["right"] for row in found["checks"])
    assert len(found["checks"]) > 30
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_the_rows_are_those_of_the_goals(found):
    layers = {(row["work"].split(",")[0], row["batch"]) for row in found["layers"]}
    assert {("circulant", 1), ("circulant", 2), ("circulant", 64), ("local", 2)} < layers
    for part, other in (("steps", "plain"), ("mixed", "plain"), ("generators", "chunked")):
        ours = [row for row in found[part] if row["method"] == "sparse"]
        assert ours
        assert all(row["over"][other]["median"] > 0 for row in ours)
    assert all("floor" in row["over"] for row in found["layers"] + found["generators"])


@pytest.mark.slow
def test_the_page_shows_them(found):
    tables = {table.title: table for table in report.tables("gpu", {"groups": {"gpu": found}})}
    assert len(tables) == 5
    notes = " ".join(tables["Checks on a GPU"].notes)
    assert f"{len(found['checks'])} of {len(found['checks'])} results are the CPU's" in notes
    steps = tables["Training steps on a GPU, one task"]
    assert all(len(row) == len(steps.columns) for row in steps.rows)


def test_a_wrong_result_is_told(monkeypatch):
    def wrong(*_):
        yield "this", 0.1, lambda: 0.2
        yield "that", 0.1, lambda: 1 / 0

    monkeypatch.setattr(gpu_checks, "_checks", wrong)
    this, that = gpu_checks.check_gpu(torch.device("cpu"), 0)
    assert not this["right"]
    assert not that["right"]
    assert "ZeroDivisionError" in that["reason"]


def test_what_fails_is_left_out_with_its_reason():
    small = gpu._Bench(torch.device("cpu"), QUICK, 1, 0)

    def fail():
        raise torch.OutOfMemoryError("CUDA: 9 GB\nsee")

    rows = small.rows({"work": "step", "batch": 1}, {"plain": lambda: None, "sparse": fail})
    assert [row["method"] for row in rows] == ["plain"]
    assert small.skipped == [
        {
            "work": "step",
            "batch": 1,
            "method": "sparse",
            "reason": "OutOfMemoryError: CUDA: 9 GB",
        }
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "`device` must be one of 'cpu', 'cuda'; got 'tpu'"),
        ({"groups": ["gpu"]}, "`only` names 'gpu', which is not measured on `device` 'cpu'"),
    ],
)
def test_groups_of_the_other_device(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        bench(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="`device` 'cuda' is not available on this machine"):
        bench(tmp_path / "new", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="`only` names 'layers', which is not measured on"):
        bench(tmp_path / "new", device="cuda", groups=["layers"])


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_computes():
    rows = gpu_checks.check_gpu(torch.device("cuda"), 0)
    assert [row for row in rows if not row["right"]] == []


@pytest.mark.gpu
def test_bench_on_a_gpu(tmp_path):
    ((_, results),) = bench(tmp_path / "new", sizes=QUICK, rounds=1, device="cuda")
    found = results["groups"]["gpu"]
    assert found["skipped"] == []
    assert {row["method"] for row in found["steps"]} > {"sparse, graph", "plain, graph"}
    assert all(row["peak"] > 0 for row in found["steps"] if "graph" not in row["method"])
    assert report.markdown(results)
