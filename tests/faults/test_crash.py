"""Training that dies, at any moment, and goes on as if it had not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import environment, train_toy
from helpers.toy import Model, Source, same
from sparsehyper.training import Interrupted, Run
from sparsehyper.training.checkpoint import TrainingState


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The best weights and the metrics of a run that nothing disturbs."""
    path, model = tmp_path_factory.mktemp("runs") / "whole", Model()
    train_toy.go(path, model, Source(tasks_per_batch=2))
    return model, record(path)


def record(path):
    """Every number in the metrics that is not a time."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def start(path, *options):
    command = [sys.executable, train_toy.__file__, path, *options]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def wait_for_step(path, step):
    """Return once the run has evaluated that step."""
    metrics = path / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and f'"validation", "step": {step},' in metrics.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not reach step {step}")


def go_on(path):
    """Finish the run with a model that has other weights; return it."""
    model = Model(seed=5)
    train_toy.go(path, model, Source(tasks_per_batch=2))
    return model


def test_killed_in_the_middle(tmp_path, reference):
    path = tmp_path / "run"
    process = start(path, "--slow")
    wait_for_step(path, 10)
    time.sleep(random.uniform(0.0, 0.4))
    process.kill()
    process.communicate()
    assert len(record(path)) < len(reference[1])
    assert same(go_on(path), reference[0])
    assert record(path) == reference[1]


def test_killed_while_it_writes_a_checkpoint(tmp_path, reference):
    path = tmp_path / "run"
    process = start(path, "--deadly")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (path / "checkpoints.new").exists()
    assert same(go_on(path), reference[0])
    assert record(path) == reference[1]
    assert not (path / "checkpoints.new").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(tmp_path, reference, number):
    class Signalling(Source):
        """Asks in the middle of step 13, and a launcher passes the same signal on."""

        def batch(self, epoch, step):
            if (epoch, step) == (5, 1):
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
            return super().batch(epoch, step)

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
