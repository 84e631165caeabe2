"""Training that is killed or stopped, and then goes on as if it had not been."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from helpers import train_toy
from helpers.toy import Model, Source, same
from sparsehyper._util import interrupt
from sparsehyper.training import Interrupted, Run
from sparsehyper.training.checkpoint import TrainingState


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The best weights and the metrics of a run that nothing disturbs."""
    path, model = tmp_path_factory.mktemp("runs") / "whole", Model()
    train_toy.go(path, model, Source(tasks_per_batch=2))
    return model, record(path)


def record(path):
    """The metrics without times."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def start(commands, path, victim):
    """Train in a process of its own; return its id."""
    return commands.start(setup=f"from helpers import train_toy; train_toy.{victim}({str(path)!r})")


def go_on(path):
    """Finish the run with a model that has other weights; return it."""
    model = Model(seed=5)
    train_toy.go(path, model, Source(tasks_per_batch=2))
    return model


def test_killed_in_the_middle(commands, tmp_path, reference):
    path = tmp_path / "run"
    process = start(commands, path, "stall")
    while not (path / "stalled").exists():
        time.sleep(0.02)
    assert commands.stop(process).code == -signal.SIGKILL
    (path / "stalled").unlink()
    assert 0 < len(record(path)) < len(reference[1])
    assert same(go_on(path), reference[0])
    assert record(path) == reference[1]


def test_killed_while_it_writes_a_checkpoint(commands, tmp_path, reference):
    path = tmp_path / "run"
    assert commands.wait(start(commands, path, "die")).code == -signal.SIGKILL
    assert (path / "checkpoints.new").exists()
    assert same(go_on(path), reference[0])
    assert record(path) == reference[1]
    assert not (path / "checkpoints.new").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(tmp_path, monkeypatch, reference, number):
    class Signalling(Source):
        """Sends a signal in the middle of step 13, twice, as a launcher that passes it on does."""

        def batch(self, epoch, step):
            if (epoch, step) == (5, 1):
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
            return super().batch(epoch, step)

    # The second signal counts as the same one again.
    monkeypatch.setattr(interrupt, "ECHO_SECONDS", math.inf)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as caught:
        train_toy.go(path, Model(), Signalling(tasks_per_batch=2))
    assert isinstance(caught.value, Interrupted)
    assert caught.value.step == 13
    assert str(caught.value) == f"stopped after step 13; resume the run in {path} to go on"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(go_on(path), reference[0])
    lines = record(path)
    assert [line for line in lines if line["kind"] == "validation"] == [
        line for line in reference[1] if line["kind"] == "validation"
    ]


@pytest.mark.parametrize(
    ("action", "victim", "step"),
    [
        ("rename", "checkpoints", 1),
        ("rename", "checkpoints.new", 1),
        ("rmtree", "checkpoints.old", 2),
    ],
)
def test_every_point_of_the_exchange(tmp_path, monkeypatch, action, victim, step):
    """Dying just before either rename, or before the old ones are removed, leaves a whole pair."""
    owner = {"rename": Path, "rmtree": shutil}[action]
    act = getattr(owner, action)

    def die(path, *args, **settings):
        if Path(path).name == victim:
            raise SystemError("power failure")
        return act(path, *args, **settings)

    with Run.create(tmp_path / "run", {}) as run:
        save(run, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(owner, action, die)
            with pytest.raises(SystemError, match="power failure"):
                save(run, step=2)
    with Run.open(tmp_path / "run") as run:
        model, best = Model(seed=7), Model(seed=8)
        state = run.restore(model, torch.optim.Adam(model.parameters()))
        run.restore_best(best)
    assert state.step == step
    assert same(model, Model(seed=step))
    assert same(best, model)
    assert sorted(os.listdir(run.path)) == [".lock", "checkpoints", "config.json"]


def save(run, step):
    model = Model(seed=step)
    run.save(
        model,
        torch.optim.Adam(model.parameters()),
        TrainingState(step=step, best_step=step),
        best=True,
    )


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with Run.create(tmp_path / "run", {}) as run:
        save(run, step=1)
        with monkeypatch.context() as patch:
            patch.setattr("sparsehyper.training.checkpoint.write_tensors", full)
            with pytest.raises(OSError, match="No space left"):
                save(run, step=2)
        model = Model(seed=7)
        assert run.restore(model, torch.optim.Adam(model.parameters())).step == 1
        save(run, step=3)
        assert run.restore(model, torch.optim.Adam(model.parameters())).step == 3
