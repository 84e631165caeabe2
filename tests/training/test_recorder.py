from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from accelerate import tracking

from helpers.toy import N_CLASSES, NAMES, Model, Source
from sparsehyper.training import NonFiniteError, Run, TrainConfig, train
from sparsehyper.training.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Fake(tracking.GeneralTracker):
    """A tracker that keeps what it is given."""

    name, requires_logging_directory, tracker = "trackio", False, None

    def __init__(self, project, **settings):
        super().__init__()
        self.given = [(project, settings)]
        Fake.last = self.given

    def start(self):
        self.given.append("started")

    def store_init_configuration(self, values):
        self.given.append(values)

    def log(self, values, step=None, **_):
        self.given.append((step, values))

    def finish(self):
        self.given.append("finished")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Fake)
    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))


def fit(model, **settings):
    config = TrainConfig(steps=4, eval_every=2, device="cpu", log_with="trackio", **settings)
    validation = Source()
    return train(model, Source(), validation, config, names=NAMES, n_classes=N_CLASSES, quiet=True)


def test_lines_go_to_the_run(tmp_path):
    with Run.create(tmp_path / "run", {}) as run, Recorder(run) as recorder:
        recorder.write("train", 3, {"loss": 0.5})
        assert run.read_metrics() == [{"kind": "train", "step": 3, "loss": 0.5}]
    assert not (run.path / "tensorboard").exists()


def test_tensorboard_events(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = {"data": {"source": "digits", "tasks": None}, "augment": ["crop"]}
    with Run.create(tmp_path / "run", config) as run:
        board = {"log_with": "tensorboard", "config": run.config}
        with Recorder(run, **board) as recorder:
            for step in (1, 2, 3):
                recorder.write("train", step, {"loss": 1.0 / step, "tasks": {"a": 1}})
        with Recorder(run, **board, start=2) as recorder:
            recorder.write("train", 3, {"loss": 7.0})
    board = events.EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 7.0),
    ]
    assert board.Tags()["scalars"] == ["train/loss"]
    first, *_ = sorted((run.path / "tensorboard").glob("*/hparams.yml"))
    assert first.read_text() == "augment: '[\"crop\"]'\ndata.source: digits\n"


def test_a_tracker_gets_the_settings_once_and_every_validation(fake):
    result = fit(Model())
    project, started, settings, *logged, finished = Fake.last
    assert (project, started, finished) == (("sparsehyper", {}), "started", "finished")
    assert settings["training.steps"] == 4
    validations = [entry for entry in logged if "validation/accuracy" in entry[1]]
    assert [step for step, _ in validations] == [2, 4]
    (best,) = [values for step, values in validations if step == result.best_step]
    assert best["validation/accuracy"] == result.best.accuracy
    assert best["validation/loss"] == result.best.loss
    assert [step for step, values in logged if "train/loss" in values] == [2, 4]


def test_a_tracker_is_closed_after_an_error(fake):
    model = Model()
    with torch.no_grad():
        model.shared.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        fit(model)
    assert Fake.last[-1] == "finished"
    assert sum(isinstance(entry, dict) for entry in Fake.last) == 1


def test_a_tracker_whose_settings_fail_is_closed(fake, monkeypatch):
    def fail(*_):
        raise OSError("no network")

    monkeypatch.setattr(Fake, "store_init_configuration", fail)
    with pytest.raises(OSError, match="no network"):
        fit(Model())
    assert Fake.last[-1] == "finished"


@pytest.mark.filterwarnings("ignore:the tracker has not got the end")
def test_training_goes_on_without_a_tracker_that_fails(fake, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(Fake, "log", fail)
    monkeypatch.setattr(Fake, "finish", fail)
    with pytest.warns(UserWarning, match="the tracker has not got metrics: OSError: no network"):
        assert fit(Model()).steps == 4


def test_tensorboard_needs_a_run():
    with pytest.raises(ValueError, match="`log_with` is 'tensorboard', which needs a run director"):
        Recorder(None, log_with="tensorboard")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with (
        Run.create(tmp_path / "run", {}) as run,
        pytest.raises(ImportError, match=rf"sparsehyper\[{name}\]"),
    ):
        Recorder(run, log_with=name)
