"""Timing side by side: alternatives take turns, round by round, and ratios are within a round.

A *run* is a function that does its work once and returns the seconds that it took. The machine's
drift affects all runs of a round alike, so a ratio is much steadier than either of its parts. Each
round starts with another run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

TimedRun = Callable[[], float]
Seconds = dict[str, list[float]]


def timed(work: Callable[[], Any]) -> TimedRun:
    """A run that times ``work``; its result is released after the clock has stopped.

    >>> timed(lambda: sum(range(10)))() > 0
    True
    """

    def run() -> float:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        del result
        return seconds

    return run


def alternate(runs: Mapping[str, TimedRun], rounds: int, pause: float = 0) -> Seconds:
    """Seconds of every run in each of ``rounds`` rounds, after one round that is not counted.

    It waits for ``pause`` seconds before each run, because the threads of another process spin for
    a while before they sleep.

    >>> {name: len(taken) for name, taken in alternate({"a": timed(dict)}, rounds=3).items()}
    {'a': 3}
    """
    for run in runs.values():
        run()
    taken: Seconds = {name: [] for name in runs}
    names = list(runs)
    for _ in range(rounds):
        for name in names:
            time.sleep(pause)
            taken[name].append(runs[name]())
        names.append(names.pop(0))  # so that a run does not always follow the same other one
    return taken


def copying(size: int) -> TimedRun:
    """A run that copies ``size`` bytes and returns the seconds per byte moved.

    A copy moves twice its size: every byte is read and written.
    """
    source = torch.ones(size // 4)
    copy = torch.empty_like(source).copy_(source)
    run = timed(lambda: copy.copy_(source))
    return lambda: run() / (2 * source.nbytes)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """
    if len(values) == 1:
        values = [*values, *values]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def times(work: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Ratio of the seconds of ``work`` to the seconds of ``other``, round by round.

    >>> times([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])["median"]
    3.0
    """
    return spread([a / b for a, b in zip(work, other, strict=True)])


def floor(byte_seconds: Sequence[float], count: int) -> list[float]:
    """Seconds to move ``count`` bytes at each round's copy speed."""
    return [count * seconds for seconds in byte_seconds]
