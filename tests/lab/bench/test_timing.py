from __future__ import annotations

import time

from sparsehyper.lab.bench.timing import alternate, copying, floor, timed, times


def test_runs_take_turns():
    order = []
    runs = {name: timed(lambda name=name: order.append(name)) for name in "ab"}
    taken = alternate(runs, rounds=2)
    # The first round does not count; after that each is the first of a round in its turn.
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert all(len(seconds) == 2 and min(seconds) >= 0 for seconds in taken.values())


def test_a_ratio_is_of_the_same_round():
    assert times([1.0, 10.0, 4.0], [1.0, 5.0, 1.0]) == {"median": 2.0, "low": 1.5, "high": 3.0}
    assert times([3.0], [2.0])["low"] == 1.5


def test_the_floor_is_in_seconds_for_bytes():
    assert floor([0.5, 0.25], 8) == [4.0, 2.0]
    assert 1e-13 < copying(1 << 20)() < 1e-6


def test_a_pause_comes_before_each_run():
    start = time.perf_counter()
    alternate({"a": timed(dict), "b": timed(dict)}, rounds=2, pause=0.05)
    assert time.perf_counter() - start >= 4 * 0.05
