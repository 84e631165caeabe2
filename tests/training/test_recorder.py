from __future__ import annotations

import sys

import pytest

from sparsehyper.training import Run
from sparsehyper.training.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_lines_go_to_the_run(tmp_path):
    with Run.create(tmp_path / "run", {}) as run, Recorder(run) as recorder:
        recorder.write("train", 3, {"loss": 0.5})
        assert run.read_metrics() == [{"kind": "train", "step": 3, "loss": 0.5}]
    assert not (run.path / "tensorboard").exists()


def test_tensorboard_events(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Run.create(tmp_path / "run", {}) as run:
        with Recorder(run, tensorboard=True) as recorder:
            for step in (1, 2, 3):
                recorder.write("train", step, {"loss": 1.0 / step, "tasks": {"a": 1}})
        with Recorder(run, tensorboard=True, start=2) as recorder:
            recorder.write("train", 3, {"loss": 7.0})
    board = events.EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 7.0),
    ]
    assert board.Tags()["scalars"] == ["train/loss"]


def test_tensorboard_needs_a_run():
    with pytest.raises(ValueError, match="`tensorboard` is True, which needs a run directory"):
        Recorder(None, tensorboard=True)


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        Run.create(tmp_path / "run", {}) as run,
        pytest.raises(ImportError, match=r"sparsehyper\[tensorboard\]"),
    ):
        Recorder(run, tensorboard=True)
