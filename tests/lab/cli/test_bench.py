from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from torch import nn

from sparsehyper.lab import bench
from sparsehyper.lab.bench import adaptation


@pytest.fixture
def tiny(monkeypatch):
    """Even smaller than `--quick`: one size of generator, to start few processes; no ResNet is
    fitted."""
    sizes = replace(bench.QUICK, generators=(20_000,), scale=("tiny",))
    monkeypatch.setattr(bench, "QUICK", sizes)
    monkeypatch.setitem(adaptation._TARGETS, "ResNet", (small_cnn, (3, 8, 8)))


def small_cnn():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


def spreads(value):
    """Yield every median with its quartiles, at any depth."""
    if isinstance(value, dict):
        if set(value) == {"median", "low", "high"}:
            yield value
        else:
            for inner in value.values():
                yield from spreads(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from spreads(inner)


@pytest.mark.slow
def test_measures_prints_writes_and_draws(command, tmp_path, tiny):
    out = tmp_path / "bench"
    done = command("bench", "--quick", "--rounds", 1, "--seed", 3, "--out", out)
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    assert list(results["groups"]) == ["layers", "generators", "steps", "adaptation", "scale"]
    assert results["settings"]["rounds"] == 1
    assert results["settings"]["seed"] == 3
    assert results["settings"]["sizes"]["layer"] == [500, 1000, 3]
    assert {"cpu", "cores", "memory", "torch", "threads"} < set(results["machine"])
    found = list(spreads(results))
    assert len(found) > 300
    assert all(0 < s["low"] <= s["median"] <= s["high"] < math.inf for s in found)

    layers = results["groups"]["layers"]["rows"]
    cases = {(r["topology"], r["batch"], r["pass"], r["method"]) for r in layers}
    assert len(cases) == len(layers) == 4 * 2 * 2 * 5
    assert all(set(r["over"]) == {"floor", "thesis", "sparse"} for r in layers)
    generators = results["groups"]["generators"]["rows"]
    assert [r["method"] for r in generators] == [
        "sparse", "sparse, N ÷ 8", "sparse, growth 8", "sparse, local", "chunked", "dense", "thesis"
    ]  # fmt: skip
    assert {r["method"]: r["trainable"] for r in generators}["dense"] == 64 * 20_000
    steps = results["groups"]["steps"]
    assert next(r["method"] for r in steps["single"]) == "plain target"
    assert steps["single"][0]["numel"] == 426_426
    assert {r["part"] for r in steps["start"]} >= {"import sparsehyper", "first step"}

    page = (out / "results.md").read_text()
    for title in ("Sparse layer, forward", "Generators", "mixed batch", "A new process"):
        assert title in done.out
        assert title in page
    assert results["machine"]["cpu"] in page
    for picture in ("time.svg", "memory.svg"):
        assert "N, generated parameters" in (out / picture).read_text()
        assert str(out / picture) in done.out

    again = command("bench", "--quick", "--out", out)
    assert again.code == 2
    assert f"{out / 'results.json'} exists; give another `--out`" in again.err


def test_one_group_as_json(command, tmp_path, tiny):
    done = command(
        "bench", "--quick", "--rounds", 1, "--only", "layers", "--out", tmp_path, "--json"
    )
    assert list(json.loads(done.out)["groups"]) == ["layers"]
    assert json.loads(done.out) == json.loads((tmp_path / "results.json").read_text())
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "layer"], ["`--only`", "'layers'", "'layer'"]),
        (["--only", "peers"], ["`--peers`", "benchmarks/peers"]),
        (["--rounds", 0], ["`--rounds`", "got 0"]),
        (["--seed", -1], ["`--seed`", "got -1"]),
        (["--peers", "nowhere"], ["nowhere", "worker.py"]),
    ],
)
def test_bad_options_make_nothing(command, tmp_path, arguments, words):
    done = command("bench", "--quick", "--out", tmp_path / "new", *arguments)
    assert done.code == 2
    assert not (tmp_path / "new").exists()
    for word in words:
        assert word in done.err
