from __future__ import annotations

from dataclasses import replace

import pytest

from sparsehyper.lab.bench import QUICK, generators, memory, scale
from sparsehyper.lab.bench.generators import measure_generators
from sparsehyper.lab.bench.scale import measure_scale
from sparsehyper.training.isolation import DiedError


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 5_000_000)
    monkeypatch.setattr(memory, "can_measure", lambda: True)
    for module in (generators, scale):
        monkeypatch.setattr(module, "call_in_process", lambda *args: 77)


def test_what_does_not_fit_into_memory_is_left_out_with_the_reason(little_memory):
    found = measure_generators(replace(QUICK, generators=(20_000,)), 1, 0)
    assert "dense" not in {row["method"] for row in found["rows"]}
    assert {row["method"] for row in found["rows"]} > {"sparse", "sparse, growth 8"}
    assert all(row["peak"] == 77 for row in found["rows"])
    reasons = {row["method"]: row["reason"] for row in found["skipped"]}
    assert reasons["dense"].startswith("would need")


def test_a_size_at_which_the_default_does_not_fit(little_memory):
    sizes = replace(QUICK, generators=(20_000, 100_000), largest_slow=0)
    found = measure_generators(sizes, 1, 0)
    large = [row for row in found["rows"] if row["numel"] == 100_000]
    assert [row["method"] for row in large] == ["sparse, N ÷ 8", "sparse, growth 8"]
    assert set(large[0]["over"]) == {"floor"}
    assert found["flatness"] == {"from 20,000": 1.0}


def test_a_process_that_dies_leaves_its_figure_out(monkeypatch):
    def die(*args):
        raise DiedError("its process died")

    monkeypatch.setattr(memory, "can_measure", lambda: True)
    monkeypatch.setattr(generators, "call_in_process", die)
    found = measure_generators(replace(QUICK, generators=(20_000,)), 1, 0)
    assert all(row["peak"] is None for row in found["rows"])


def test_large_targets_need_memory_and_a_way_to_measure_it(little_memory, monkeypatch):
    found = measure_scale(replace(QUICK, scale=("resnet18",)), 1, 0)
    assert found["rows"] == []
    assert {row["method"] for row in found["skipped"]} == {"sparse", "sparse, growth 8"}
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    (skipped,) = measure_scale(QUICK, 1, 0)["skipped"]
    assert skipped["target"] == "tiny"
    assert "peak memory" in skipped["reason"]
