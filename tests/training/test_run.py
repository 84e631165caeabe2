from __future__ import annotations

import json
import os
import shutil
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.toy import Model, same
from sparsehyper import Dense, HyperNetwork, TaskEmbedding
from sparsehyper._util.files import sealed
from sparsehyper.training import CheckpointError, Run, RunInUseError
from sparsehyper.training.checkpoint import TrainingState, open_checkpoint
from sparsehyper.training.directory import lock, read_id

CONFIG = {"training": {"steps": 10, "lr": 0.1}, "data": "digits", "seed": 0}


def save(run, step, *, best, seed=0):
    """Checkpoint a model that the seed identifies."""
    model = Model(seed)
    optimizer = torch.optim.Adam(model.parameters())
    run.save(model, optimizer, TrainingState(step=step, best_step=step), best=best)
    return model


def restore(run):
    model = Model(99)
    state = run.restore(model, torch.optim.Adam(model.parameters()))
    return model, state.step


def test_a_checkpoint_holds_what_is_trained_and_continues_over_the_same_frozen_part(tmp_path):
    def make(value: float) -> tuple[HyperNetwork, torch.optim.Optimizer]:
        trunk, head = nn.Linear(200, 200), nn.Linear(200, 2)
        nn.init.constant_(trunk.weight, value)
        nn.init.zeros_(trunk.bias)
        target = nn.Sequential(trunk.requires_grad_(False), head)
        hnet = HyperNetwork(target, Dense(), TaskEmbedding(2, 4))
        return hnet, torch.optim.SGD([p for p in hnet.parameters() if p.requires_grad])

    saved = make(1.0)[0]
    with Run.create(tmp_path / "run", CONFIG) as run:
        run.save(saved, make(1.0)[1], TrainingState(step=1, best_step=1), best=True)
        file = tmp_path / "run" / "checkpoints" / "last" / "model.safetensors"
        assert file.stat().st_size < 4 * 200 * 200
        again = make(1.0)
        run.restore(*again)
        assert same(again[0], saved)
        with pytest.raises(CheckpointError, match=r"1 of 2 frozen .* 'target\.module\.0\.weight'"):
            run.restore(*make(2.0))


@pytest.mark.parametrize(
    ("names", "tasks", "message"),
    [
        ("ba", ["red", "blue"], r"tensor 0 of θ is 'a.weight' of shape \[4, 4\] there and 'b.we"),
        (
            "ab",
            ["blue", "red"],
            r"its tasks are 'red', 'blue', the model's are 'blue', 'red'; give",
        ),
    ],
)
def test_a_checkpoint_of_other_tasks_or_of_another_layout_is_refused(
    tmp_path, names, tasks, message
):
    def make(names: str, tasks: list[str]) -> tuple[HyperNetwork, torch.optim.Optimizer]:
        target = nn.Sequential(OrderedDict((name, nn.Linear(4, 4)) for name in names))
        hnet = HyperNetwork(target, Dense(), TaskEmbedding(tasks, 4))
        return hnet, torch.optim.SGD(hnet.parameters())

    saved, other = make("ab", ["red", "blue"]), make(names, tasks)
    before = {name: tensor.clone() for name, tensor in other[0].state_dict().items()}
    with Run.create(tmp_path / "run", CONFIG) as run:
        run.save(*saved, TrainingState(step=1, best_step=1), best=True)
        for restored in (lambda: run.restore(*other), lambda: run.restore_best(other[0])):
            with pytest.raises(CheckpointError, match=message):
                restored()
    assert all(torch.equal(before[name], t) for name, t in other[0].state_dict().items())


def test_what_a_new_run_records(tmp_path):
    with Run.create(tmp_path / "some" / "run", CONFIG) as run:
        recorded = json.loads((run.path / "config.json").read_text())
        assert recorded["config"] == CONFIG == run.config
        assert {"python", "torch", "numpy", "sparsehyper"} <= recorded["versions"].keys()
        run.write_result({"accuracy": 0.5})
        assert run.read_result() == {"accuracy": 0.5}
        assert json.loads((run.path / "result.json").read_text())["accuracy"] == 0.5


def test_an_empty_directory_will_do(tmp_path):
    Run.create(tmp_path, CONFIG).close()
    assert (tmp_path / "config.json").exists()


def test_a_run_is_never_written_over(tmp_path):
    Run.create(tmp_path / "run", CONFIG).close()
    with pytest.raises(FileExistsError, match=r"run already holds a run; `resume` it, or"):
        Run.create(tmp_path / "run", {})
    assert Run.open(tmp_path / "run").config == CONFIG


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("done")
    with pytest.raises(FileExistsError, match="already holds files of something else"):
        Run.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(NotADirectoryError, match=r"`path` must be a directory .*thesis\.txt"):
        Run.create(tmp_path / "thesis.txt", CONFIG)


def test_a_config_that_is_not_json(tmp_path):
    with pytest.raises(TypeError, match="Tensor"):
        Run.create(tmp_path / "run", {"seed": torch.zeros(1)})
    assert not (tmp_path / "run").exists()


def test_no_run_to_open(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing holds no run: it has no config\.json"):
        Run.open(tmp_path / "nothing")


def test_one_at_a_time(tmp_path):
    with (
        Run.create(tmp_path / "run", CONFIG),
        pytest.raises(RunInUseError, match=r"run directory .*run is in use by another process"),
    ):
        Run.open(tmp_path / "run")
    Run.open(tmp_path / "run").close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"steps": 10, "lr": 0.2}}, r"its `training\.lr` is 0\.1, got 0\.2"),
        ({"data": "mnist"}, "its `data` is 'digits', got 'mnist'"),
        ({"extra": 1}, "its `extra` is 'nothing', got 1"),
    ],
)
def test_going_on_with_another_config(tmp_path, change, message):
    Run.create(tmp_path / "run", CONFIG).close()
    with pytest.raises(ValueError, match=message):
        Run.open(tmp_path / "run", CONFIG | change)
    Run.open(tmp_path / "run", CONFIG).close()  # the failed attempt holds no lock


def test_steps_may_differ_and_are_recorded(tmp_path):
    Run.create(tmp_path / "run", CONFIG).close()
    longer = CONFIG | {"training": {"steps": 20, "lr": 0.1}}
    with Run.open(tmp_path / "run", longer) as run:
        assert json.loads((run.path / "config.json").read_text())["config"] == CONFIG
        run.record_config()
    assert Run.open(tmp_path / "run").config == longer


def test_a_damaged_config(tmp_path):
    Run.create(tmp_path / "run", CONFIG).close()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        Run.open(tmp_path / "run")


def test_last_and_best(tmp_path):
    with Run.create(tmp_path / "run", CONFIG) as run:
        assert restore(run)[1] == 0
        save(run, 1, best=False)
        assert not run.best.exists()
        best = save(run, 2, best=True, seed=2)
        last = save(run, 3, best=False, seed=3)
    with Run.open(tmp_path / "run") as run:
        model, step = restore(run)
        assert step == 3
        assert same(model, last)
        run.restore_best(model)
        assert same(model, best)
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "checkpoints", "config.json"]


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("not here")

    monkeypatch.setattr(os, "link", refuse)
    with Run.create(tmp_path / "run", CONFIG) as run:
        best = save(run, 1, best=True, seed=1)
        save(run, 2, best=False, seed=2)
        model = Model(9)
        run.restore_best(model)
    assert same(model, best)


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    with Run.create(tmp_path / "run", CONFIG) as run:
        for step in (1, 2):
            run.write_metrics({"step": step})
        save(run, 2, best=False)
        run.write_metrics({"step": 3})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a crash
    with Run.open(tmp_path / "run") as run:
        assert run.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 3}]
        restore(run)
        run.write_metrics({"step": 3, "again": True})
        assert run.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_damaged_metrics(tmp_path):
    with Run.create(tmp_path / "run", CONFIG) as run:
        (run.path / "metrics.jsonl").write_text("{\n{}\n")
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
            run.read_metrics()


def test_processes_other_than_the_main_one_only_read(tmp_path, monkeypatch):
    with Run.create(tmp_path / "run", CONFIG) as main:
        kept = save(main, 1, best=True, seed=1)
        monkeypatch.setenv("RANK", "1")
        with Run.open(tmp_path / "run", CONFIG) as other:
            save(other, 2, best=True, seed=2)
            other.write_metrics({"step": 1})
            other.write_result({})
            model, step = restore(other)
    assert step == 1
    assert same(model, kept)
    assert sorted(p.name for p in main.path.iterdir()) == [".lock", "checkpoints", "config.json"]


def test_a_start_that_died_before_the_configuration_is_begun_anew(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".lock").touch()
    (path / "config.json.new").write_text('{"con')
    Run.create(path, CONFIG).close()
    assert Run.open(path).config == CONFIG
    assert not (path / "config.json.new").exists()


def test_a_start_that_fails_holds_no_lock_and_can_be_repeated(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Run.create(tmp_path / "run", CONFIG)
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name != ".lock"] == []
    Run.create(tmp_path / "run", CONFIG).close()


def test_a_run_that_another_process_just_finished_is_left_alone(tmp_path, monkeypatch):
    """Between the look at the directory and the lock."""

    def later(directory):
        monkeypatch.undo()
        Run.create(directory, {"seed": 1}).close()
        return lock(directory)

    monkeypatch.setattr("sparsehyper.training.run.lock", later)
    with pytest.raises(FileExistsError, match="already holds a run"):
        Run.create(tmp_path / "run", CONFIG)
    with Run.open(tmp_path / "run") as run:  # the failed attempt did not keep it locked
        assert run.config == {"seed": 1}


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "config.json.new", "tensorboard"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    Run.create(tmp_path / "run", CONFIG).close()
    mine = tmp_path / "mine"
    mine.write_text("kept")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(mine)
    with pytest.raises(CheckpointError, match=rf"run/{name} is a link or a special file"):
        Run.open(tmp_path / "run")
    assert mine.read_text() == "kept"


def test_a_planted_entry_of_a_checkpoint_is_not_carried_over(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("kept")
    mine.chmod(0o600)
    with Run.create(tmp_path / "run", CONFIG) as run:
        save(run, 1, best=True)
        (run.best / "link").symlink_to(mine)
        os.mkfifo(run.best / "pipe")
        names = {path.name for path in run.best.iterdir()} - {"link", "pipe"}
        save(run, 2, best=False)
        assert {path.name for path in run.best.iterdir()} == names
    assert mine.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo])
def test_a_file_of_the_best_checkpoint_that_is_a_link_or_a_pipe(
    tmp_path, monkeypatch, make, hard_links
):
    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    with Run.create(tmp_path / "run", CONFIG) as run:
        save(run, 1, best=True)
        (run.best / "model.safetensors").unlink()
        make(run.best / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"model\.safetensors is (a link|not a regular)"):
            save(run, 2, best=False)


def test_a_pipe_among_the_files_of_a_run(tmp_path):
    Run.create(tmp_path / "run", CONFIG).close()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is a link or a special file"):
        Run.open(tmp_path / "run")


def test_a_config_that_is_none_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text(sealed({"config": [], "run": 3}))
    with pytest.raises(CheckpointError, match="is not the configuration of a run"):
        Run.open(tmp_path)


def test_a_save_that_fails_is_as_if_it_had_not_been(tmp_path, monkeypatch):
    with Run.create(tmp_path / "run", CONFIG) as run:
        kept = save(run, 1, best=True, seed=1)
        rename = Path.rename

        def fail(path, target):
            if path.name == "checkpoints.new":
                raise OSError(28, "No space left on device")
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(OSError, match="No space left"):
                save(run, 2, best=True, seed=2)
        names = sorted(p.name for p in run.path.iterdir())
        assert names == [".lock", "checkpoints", "config.json"]
        assert same(restore(run)[0], kept)
        assert same(restore(run)[0], save(run, 2, best=True, seed=1))


def test_checkpoints_can_be_read_at_every_moment_of_a_save(tmp_path, monkeypatch):
    """A reader that opens at any rename or removal finds a whole checkpoint."""
    seen = []

    def looking(act):
        def acted(*args, **settings):
            result = act(*args, **settings)
            for name in ("last", "best"):
                with open_checkpoint(path, name, read_id(path)) as checkpoint:
                    seen.append(checkpoint.state.step)
            return result

        return acted

    path = tmp_path / "run"
    with Run.create(path, CONFIG) as run:
        save(run, 1, best=True)
        opened = open_checkpoint(path, "best", read_id(path))
        monkeypatch.setattr(Path, "rename", looking(Path.rename))
        monkeypatch.setattr(shutil, "rmtree", looking(shutil.rmtree))
        save(run, 2, best=True)
    assert set(seen) == {1, 2}
    with opened:  # though it is gone
        opened.read_weights(Model(9))
        assert opened.state.step == 1


def test_a_reader_that_comes_while_the_checkpoints_are_exchanged(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with Run.create(path, CONFIG) as run:
        save(run, 1, best=True)
        away = path / "away"
        (path / "checkpoints").rename(away)  # in neither place for a moment
        monkeypatch.setattr(time, "sleep", lambda _: away.exists() and away.rename(run.last.parent))
        with open_checkpoint(path, "best", read_id(path)) as checkpoint:
            assert checkpoint.state.step == 1


def test_no_checkpoint(tmp_path):
    with Run.create(tmp_path / "run", CONFIG) as run:
        with pytest.raises(FileNotFoundError, match=r"checkpoints/best is missing from the run"):
            run.restore_best(Model())
        save(run, 1, best=True)
        shutil.rmtree(run.best)
        with pytest.raises(FileNotFoundError, match=r"checkpoints/best is missing from the run"):
            run.restore_best(Model())
