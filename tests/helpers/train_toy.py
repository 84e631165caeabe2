"""Training of the toy in a run directory, in ways that other processes can import."""

from __future__ import annotations

import os
import signal
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from helpers.toy import N_CLASSES, NAMES, Model, Source
from sparsehyper.training import Processes, Run, TrainConfig, TrainResult, train


class StallingSource(Source):
    """Makes a file in the middle of training, and then waits to be killed."""

    def __init__(self, file: Path) -> None:
        super().__init__(tasks_per_batch=2)
        self.file = file

    def batch(self, epoch, step):
        if (epoch, step) == (5, 1):
            self.file.touch()
            time.sleep(3600)  # longer than the time limit of any test
        return super().batch(epoch, step)


class DeadlyModel(Model):
    """Kills its own process when its third checkpoint is half written."""

    saves = 0

    def save(self, directory):
        super().save(directory)
        self.saves += 1
        if self.saves == 3:
            weights = Path(directory) / "model.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def go(path: Path, model: Model, source: Source) -> TrainResult:
    """Train for 40 updates of 2 batches each; resume the run if there is one."""
    config = TrainConfig(steps=40, lr=0.03, eval_every=5, accumulate=2, device="cpu")
    settings = {"training": config.to_dict()}
    resuming = (path / "config.json").exists()
    with (Run.open if resuming else Run.create)(path, settings) as run:
        return train(model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, run=run)


def stall(path: str) -> None:
    go(Path(path), Model(), StallingSource(Path(path) / "stalled"))


def die(path: str) -> None:
    go(Path(path), DeadlyModel(), Source(tasks_per_batch=2))


def source_of(here: Processes) -> Source:
    """Two tasks a batch, so that each of two processes trains the head of a different task."""
    return Source(tasks_per_batch=2, shard=(here.rank, here.count))


def train_as(here: Processes, path: Path) -> str:
    """Train as one of several processes; return the progress shown."""
    with redirect_stderr(StringIO()) as shown:
        go(path, Model(dropout=0.0), source_of(here))
    return shown.getvalue()
