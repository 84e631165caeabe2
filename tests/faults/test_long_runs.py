"""Memory and open files stay level in long runs: after many steps, or with many tasks added."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.toy import N_CLASSES, NAMES, Model, Source
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.training import Run, TrainConfig, train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# Bytes of the allocator and of caches; in full runs, a leak of 1 kB a step is five times as much.
SLACK = 4 << 20
LOOKS = 5


class Level:
    """Memory of this process at each measurement, beyond what it held before the test."""

    def __init__(self) -> None:
        self.looks: list[dict[str, int]] = []
        self.times: list[float] = []

    def look(self) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        objects = gc.get_objects()
        self.looks.append(
            {
                "resident": pages * os.sysconf("SC_PAGE_SIZE"),
                "objects": len(objects),
                "tensors": sum(issubclass(type(one), torch.Tensor) for one in objects),
                "files": len(os.listdir("/proc/self/fd")),
            }
        )
        self.times.append(time.monotonic())

    def growth(self, of: str, since: int) -> int:
        return self.looks[-1][of] - self.looks[since][of]

    def pace(self) -> float:
        """Time between the last two looks, divided by that between the second and the third."""
        took = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return took[-1] / took[1]


@pytest.fixture
def level():
    gc.collect()
    gc.freeze()  # a look skips the million objects of imported modules
    yield Level()
    gc.unfreeze()


class Watched(Source):
    """Looks at the level at regular steps."""

    def __init__(self, level: Level, every: int) -> None:
        super().__init__()
        self.level, self.every = level, every

    def batch(self, epoch, step):
        if (epoch * self.steps_per_epoch + step) % self.every == 0:
            self.level.look()
        return super().batch(epoch, step)


class Images(nn.Module):
    """A hypernetwork for the batches of the toy's source."""

    def __init__(self) -> None:
        super().__init__()
        target = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.hnet = HyperNetwork(target, Sparse(), TaskEmbedding(list(NAMES), 8))

    def forward(self, x, task):
        return self.hnet(x, task=task)


@pytest.mark.parametrize("kind", [Model, Images])
def test_many_steps(kind, level, trials, record_figures, tmp_path):
    steps = trials(200, 20_000)
    config = TrainConfig(steps=steps, eval_every=steps // 10, log_every=10, device="cpu")
    arguments = (kind(), Watched(level, steps // LOOKS), Source(), config)
    names = {"names": NAMES, "n_classes": N_CLASSES, "quiet": True}
    if kind is Model:  # it can be saved
        with Run.create(tmp_path / "run", {}) as run:
            train(*arguments, **names, run=run)
    else:
        train(*arguments, **names)
    middle = len(level.looks) // 2
    assert level.growth("files", middle) == 0
    assert level.growth("tensors", middle) == 0
    # Each evaluation keeps a number for the schedule and the log; a step keeps no object.
    assert level.growth("objects", middle) < 200
    assert level.growth("resident", middle) < SLACK
    grown = level.growth("resident", middle)
    pace = round(level.pace(), 2)
    record_figures("long runs: steps", model=kind.__name__, tried=steps, bytes=grown, pace=pace)


def test_many_tasks(level, trials, record_figures):
    """A task costs its embedding and its statistics, however many there are already."""
    count = trials(200, 5000)
    target = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(["first"], 16))
    x = torch.randn(6, 4)
    for number in range(count):
        if number % (count // LOOKS) == 0:
            level.look()
        hnet.add_task(f"task {number}", torch.randn(16))
        hnet(x, task=number + 1).sum().backward()
        hnet.zero_grad()
    level.look()
    middle = len(level.looks) // 2
    added = count - middle * (count // LOOKS)
    assert level.growth("files", middle) == 0
    assert level.growth("tensors", middle) == 0
    assert level.growth("objects", middle) <= 5 * added
    assert level.growth("resident", middle) < SLACK + 4000 * added
    grown = level.growth("resident", middle)
    record_figures("long runs: tasks", tried=count, bytes=grown, pace=round(level.pace(), 2))
