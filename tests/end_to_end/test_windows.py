"""Models and runs on Windows; elsewhere, with what Windows refuses refused."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.without_posix import pretend_windows
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper._util import files
from sparsehyper._util.files import CheckpointError, open_file, rename, replaced


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    if os.name == "nt":
        return
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not say which files are open")
    pretend_windows(monkeypatch)


def make() -> HyperNetwork:
    target = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    return HyperNetwork(target, Sparse(), TaskEmbedding(["shoes", "büge"], dim=8))


def test_a_model_is_saved_written_over_and_loaded(tmp_path):
    x = torch.randn(3, 4)
    for hnet in (make(), make()):
        hnet.save(tmp_path / "model", overwrite=True)
        again = HyperNetwork.load(tmp_path / "model")
        assert torch.equal(hnet(x, task="büge"), again(x, task="büge"))
    with pytest.raises(FileExistsError, match="nothing is ever written over"):
        make().save(tmp_path / "model")


def test_a_run_trains_and_goes_on(tmp_path):
    pytest.importorskip("accelerate")
    from helpers.toy import N_CLASSES, NAMES, Model, Source
    from sparsehyper.training import Run, TrainConfig, train

    results = []
    for steps in (4, 8):
        config = TrainConfig(steps=steps, eval_every=2, device="cpu")
        new = steps == 4
        with Run.create(tmp_path / "run", {}) if new else Run.open(tmp_path / "run") as run:
            results.append(
                train(
                    *(Model(), Source(), Source(), config),
                    names=NAMES,
                    n_classes=N_CLASSES,
                    run=run,
                    quiet=True,
                )
            )
            run.write_result({})
            assert run.read_result() == {}
            assert [line["step"] for line in run.read_metrics()][-1] == steps
    assert [result.steps for result in results] == [4, 8]
    assert results[0].peak_memory > 10**7


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates(tmp_path, capsys):
    for module in ("typer", "accelerate", "sklearn", "datasets"):
        pytest.importorskip(module)
    from sparsehyper.lab.cli.app import run

    out = str(tmp_path / "run")
    train = ["train", "--out", out, "--target", "mlp:8", "--eval-every", "4", "--device", "cpu"]
    assert run([*train, "--data", "digits", "--tasks", "split:5", "--steps", "4", "--quiet"]) == 0
    assert run(["train", "--out", out, "--resume", "--steps", "8", "--quiet"]) == 0
    assert run(["evaluate", out, "--device", "cpu"]) == 0
    assert "mean" in capsys.readouterr().out


def test_links_and_folders_are_no_files(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"kept\r\n")
    with open_file(mine) as file:
        assert file.read() == b"kept\r\n"
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(CheckpointError, match="link is a link"):
        open_file(tmp_path / "link")
    with open_file(tmp_path / "link", follow_links=True) as file:
        assert file.read() == b"kept\r\n"
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_file(tmp_path)


def test_what_another_has_open_moves_once_it_is_closed(tmp_path, monkeypatch):
    path = tmp_path / "table"
    path.write_bytes(b"old")
    reader = open_file(path)
    threading.Timer(0.3, reader.close).start()
    with replaced(path) as file:
        file.write(b"new")
    assert reader.closed
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(files, "_TRIES", 2)
    with open_file(path), pytest.raises(PermissionError):
        rename(path, tmp_path / "other")
    started = time.monotonic()
    with pytest.raises(FileNotFoundError):  # not tried again
        rename(tmp_path / "none", path)
    assert time.monotonic() - started < 1
