from __future__ import annotations

import itertools
from types import SimpleNamespace

from sparsehyper.lab.bench import timing
from sparsehyper.lab.bench.timing import alternate, copying, floor, timed, times


def test_runs_take_turns():
    order = []
    runs = {name: timed(lambda name=name: order.append(name)) for name in "ab"}
    taken = alternate(runs, rounds=2)
    # The first round does not count; after it, each run in turn is the first of a round.
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert all(len(seconds) == 2 and min(seconds) >= 0 for seconds in taken.values())


def test_a_ratio_is_of_the_same_round():
    assert times([1.0, 10.0, 4.0], [1.0, 5.0, 1.0]) == {"median": 2.0, "low": 1.5, "high": 3.0}
    assert times([3.0], [2.0])["low"] == 1.5


def test_the_floor_is_in_seconds_for_bytes():
    assert floor([0.5, 0.25], 8) == [4.0, 2.0]


def test_a_copy_moves_every_byte_twice(monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # each run takes a second
    monkeypatch.setattr(timing, "time", clock)
    assert copying(1 << 20)() == 1 / (2 << 20)


def test_a_pause_comes_before_each_run_that_counts(monkeypatch):
    events: list[object] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(sleep=events.append))
    runs = {name: lambda name=name: events.append(name) or 1.0 for name in "ab"}
    alternate(runs, rounds=2, pause=0.05)
    assert events == ["a", "b", 0.05, "a", 0.05, "b", 0.05, "b", 0.05, "a"]
