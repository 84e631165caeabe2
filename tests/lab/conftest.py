from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from sparsehyper.lab.cli.app import run
from sparsehyper.lab.runs import DataConfig, Experiment, load_tasks, parse_method
from sparsehyper.training import TrainConfig

TRAINING = TrainConfig(steps=4, eval_every=2, log_every=2, device="cpu")


class Finished(NamedTuple):
    folder: Path
    shown: str


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory, worker_id) -> Callable[[str], Finished]:
    """``finished_study(name)``: a study at its smallest, run once; do not change it."""
    base = tmp_path_factory.getbasetemp()
    if worker_id == "master":  # there is no other process
        base, locked = base / "studies", nullcontext
    else:
        base, locked = base.parent / "studies", FileLock
    base.mkdir(exist_ok=True)

    @cache
    def finish(name: str) -> Finished:
        folder, screen = base / name, base / f"{name}.txt"
        with locked(base / f"{name}.lock"):
            if not screen.exists():
                with redirect_stdout(StringIO()) as shown:
                    small = ["--out", str(folder), "--scale", "smoke", "--quiet"]
                    code = run(["study", name, *small])
                assert code == 0
                screen.write_text(shown.getvalue(), encoding="utf-8")
        return Finished(folder, screen.read_text(encoding="utf-8"))

    return finish


@pytest.fixture(scope="session")
def experiment():
    return Experiment(
        DataConfig(tasks="split:2"), TRAINING, target="mlp:16", latent_dim=8, batch_size=20
    )


@pytest.fixture(scope="session")
def with_method(experiment):
    return lambda text, **changes: replace(experiment, method=parse_method(text), **changes)


@pytest.fixture(scope="session")
def tasks(experiment):
    return load_tasks(experiment.data)
