from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsehyper.lab.bench import QUICK, bench, gpu, gpu_checks
from sparsehyper.lab.report import bench as report


def small() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(900, 10))


@pytest.fixture(scope="module")
def results():
    """The benchmarks of a GPU, on the CPU: what they measure, without graphs and peaks, and with
    small targets for the ResNets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "_RUN_SECONDS", 0.0)
        for name in ("resnet426k", "ResNet18"):
            patch.setattr(gpu, name, small)
        groups = {group: gpu.measure_gpu(group, QUICK, 1, 0, "cpu") for group in gpu.GPU_GROUPS}
    return {"settings": {"device": "cuda"}, "groups": groups}


@pytest.mark.slow
def test_nothing_is_left_out_or_wrong(results):
    groups = results["groups"]
    assert [row for found in groups.values() for row in found["skipped"]] == []
    assert all(row["right"] for row in groups["checks"]["rows"])
    assert len(groups["checks"]["rows"]) > 30
    json.dumps(results, allow_nan=False)


@pytest.mark.slow
def test_the_rows_are_those_of_the_goals(results):
    rows = {group: found["rows"] for group, found in results["groups"].items()}
    layers = {(row["work"].split(",")[0], row["batch"]) for row in rows["layers"]}
    assert {("circulant", 1), ("circulant", 2), ("circulant", 64), ("local", 2)} < layers
    for group, other in (("steps", "plain"), ("mixed", "plain"), ("generators", "chunked")):
        ours = [row for row in rows[group] if row["method"] == "sparse"]
        assert ours
        assert all(row["over"][other]["median"] > 0 for row in ours)
    for row in rows["layers"] + rows["generators"]:
        assert ("floor" in row["over"]) == (row["method"] != "chunked")


@pytest.mark.slow
def test_the_page_shows_them(results):
    for group, found in results["groups"].items():
        (table,) = report.tables(group, results)
        assert len(table.rows) == len(found["rows"])
        assert all(len(row) == len(table.columns) for row in table.rows)
    (checks,) = report.tables("checks", results)
    count = len(checks.rows)
    assert checks.notes[0] == f"{count} of {count} results are the CPU's."


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
        ({"device": "cuda"}, "`device` 'cuda' is not available on this machine; use 'cpu'"),
        ({"groups": ["mixed"]}, "`only` must be one of 'layers', .*; got 'mixed'"),
    ],
)
def test_devices_and_groups_that_are_not_there(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        bench(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_a_gpu_has_groups_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"`only` must be one of 'checks', .*; got 'scale'"):
        bench(tmp_path / "new", device="cuda", groups=["scale"])


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_computes():
    rows = gpu_checks.check_gpu(torch.device("cuda"), 0)
    assert [row for row in rows if not row["right"]] == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler's
def test_bench_on_a_gpu(tmp_path):
    for _, results in bench(tmp_path / "new", sizes=QUICK, rounds=1, device="cuda"):
        assert report.markdown(results)
    groups = results["groups"]
    assert [row for found in groups.values() for row in found["skipped"]] == []
    steps = groups["steps"]["rows"]
    assert {row["method"] for row in steps} > {"sparse, graph", "plain, graph"}
    assert all(row["peak"] > 0 for row in steps if "graph" not in row["method"])
