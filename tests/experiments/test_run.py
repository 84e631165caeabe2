from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sparsehyper.experiments import (
    METHODS,
    evaluate_run,
    load_run,
    read_experiment,
    run_experiment,
)
from sparsehyper.experiments.run import check_run, finished_result
from sparsehyper.training import CheckpointError, NonFiniteError


def with_steps(experiment, steps):
    return replace(experiment, training=replace(experiment.training, steps=steps))


@pytest.fixture(scope="module")
def finished(experiment, tasks, tmp_path_factory):
    """A finished run: its directory and result. Not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, run_experiment(experiment, path, tasks=tasks, quiet=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_evaluated_alike(with_method, tasks, tmp_path, method):
    experiment = with_method(method)
    result = run_experiment(experiment, tmp_path / "run", tasks=tasks, quiet=True)
    assert result["training"]["steps"] == 4
    assert result["test"]["accuracies"].keys() == set(tasks.names)
    assert evaluate_run(tmp_path / "run", device="cpu").to_dict() == result["test"]


def test_what_the_run_records(experiment, finished, tasks):
    path, result = finished
    recorded = json.loads((path / "config.json").read_text())
    assert recorded["config"].items() >= json.loads(json.dumps(experiment.to_dict())).items()
    assert recorded["config"]["resolved"]["tasks"]["fingerprint"] == tasks.fingerprint
    assert recorded["config"]["resolved"]["numel"] == 1074
    assert "torch" in recorded["versions"]
    assert json.loads((path / "result.json").read_text()).items() >= result.items()
    assert read_experiment(path) == experiment


def test_a_loaded_model_is_the_best_one(finished):
    path, result = finished
    loaded = load_run(path)
    assert not loaded.model.training
    assert loaded.tasks.names == tuple(result["test"]["accuracies"])
    assert evaluate_run(path, split="val", device="cpu").to_dict() == result["training"]["best"]


def test_nothing_is_written_over(experiment, finished, tasks):
    with pytest.raises(FileExistsError, match="already holds a run"):
        run_experiment(experiment, finished[0], tasks=tasks, quiet=True)


def test_a_finished_run_is_left_alone(experiment, finished, tasks):
    path, result = finished
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert run_experiment(experiment, path, tasks=tasks, resume=True, quiet=True) == result
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_going_on_for_more_steps_equals_going_through(experiment, tasks, tmp_path):
    constant = replace(experiment, training=replace(experiment.training, schedule="constant"))
    longer = with_steps(constant, 8)
    run_experiment(constant, tmp_path / "a", tasks=tasks, quiet=True)
    assert finished_result(tmp_path / "a", longer) is None
    resumed = run_experiment(longer, tmp_path / "a", tasks=tasks, resume=True, quiet=True)
    through = run_experiment(longer, tmp_path / "b", tasks=tasks, quiet=True)
    assert resumed["test"] == through["test"]
    states = [load_run(tmp_path / name).model.state_dict() for name in "ab"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_run_of_another_experiment(with_method, finished, tasks):
    config = {**with_method("sparse", batch_size=10).to_dict(), "resolved": None}
    recorded = json.loads((finished[0] / "config.json").read_text())["config"]
    config["resolved"] = recorded["resolved"]
    with pytest.raises(ValueError, match="other settings: its `batch_size` is 20, got 10"):
        check_run(finished[0], config)
    with pytest.raises(ValueError, match=r"its `method\.kind` is 'sparse', got 'dense'"):
        run_experiment(with_method("dense"), finished[0], tasks=tasks, resume=True, quiet=True)


def test_data_that_have_changed(experiment, finished, tasks, tmp_path, monkeypatch):
    changed = replace(tasks, fingerprint="0123456789abcdef")
    message = rf"the data have changed .*was '{tasks.fingerprint}' and is '0123456789abcdef'"
    with pytest.raises(ValueError, match=message):
        run_experiment(experiment, finished[0], tasks=changed, resume=True, quiet=True)
    monkeypatch.setattr("sparsehyper.experiments.run.load_tasks", lambda *_: changed)
    with pytest.raises(ValueError, match=message):
        evaluate_run(finished[0])


def test_no_run(experiment, tasks, tmp_path):
    for call in (
        lambda: run_experiment(experiment, tmp_path, tasks=tasks, resume=True, quiet=True),
        lambda: evaluate_run(tmp_path),
        lambda: read_experiment(tmp_path),
    ):
        with pytest.raises(FileNotFoundError, match=r"holds no run: it has no config\.json"):
            call()


def test_a_run_without_a_checkpoint(experiment, tasks, tmp_path):
    wild = replace(experiment, training=replace(experiment.training, lr=1e38, clip=None))
    with pytest.raises(NonFiniteError):
        run_experiment(wild, tmp_path / "run", tasks=tasks, quiet=True)
    assert finished_result(tmp_path / "run", wild) is None
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet; resume the run first"):
        load_run(tmp_path / "run")


def test_damaged_files(experiment, tasks, tmp_path):
    path = tmp_path / "run"
    run_experiment(experiment, path, tasks=tasks, quiet=True)
    weights = path / "checkpoints" / "best" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors is damaged"):
        load_run(path)
    (path / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        finished_result(path, experiment)
    for text in ("[1]", '{"config": {}}'):
        (path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
            read_experiment(path)


def test_an_unknown_split(finished):
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'val', 'test'; got 'te"):
        evaluate_run(finished[0], split="testing")


def test_the_same_seed_gives_the_same_result(experiment, finished, tasks, tmp_path):
    again = run_experiment(experiment, tmp_path / "run", tasks=tasks, quiet=True)
    assert again["test"] == finished[1]["test"]
    other = run_experiment(experiment.with_seed(1), tmp_path / "other", tasks=tasks, quiet=True)
    assert other["test"] != again["test"]
