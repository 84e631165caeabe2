"""Train the toy in a run directory, going on with one that is there; a function and a program."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

from helpers.toy import N_CLASSES, NAMES, Model, Source
from sparsehyper.training import Processes, Run, TrainConfig, TrainResult, processes, train


class SlowSource(Source):
    """Takes its time, so that a test can act in the middle."""

    def batch(self, epoch, step):
        time.sleep(0.02)
        return super().batch(epoch, step)


class DeadlyModel(Model):
    """Kills its own process when the third checkpoint is half written."""

    saves = 0

    def save(self, directory):
        super().save(directory)
        self.saves += 1
        if self.saves == 3:
            weights = Path(directory) / "model.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def go(path: Path, model: Model, source: Source) -> TrainResult:
    """Train for 40 updates of 2 batches."""
    config = TrainConfig(steps=40, lr=0.03, eval_every=5, accumulate=2, device="cpu")
    settings = {"training": config.to_dict()}
    resuming = (path / "config.json").exists()
    with (Run.open if resuming else Run.create)(path, settings) as run:
        return train(model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, run=run)


def source_of(here: Processes, kind: type[Source] = Source) -> Source:
    """Two tasks a batch, so that each of two processes trains the head of another one."""
    return kind(tasks_per_batch=2, shard=(here.rank, here.count))


def main() -> None:
    """Take the path and what is to happen from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--deadly", action="store_true")
    options = parser.parse_args()
    model = (DeadlyModel if options.deadly else Model)(dropout=options.dropout)
    source = source_of(processes("cpu"), SlowSource if options.slow else Source)
    go(options.path, model, source)


if __name__ == "__main__":
    main()
