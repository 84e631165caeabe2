from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from sparsehyper.lab.cli.app import run
from sparsehyper.lab.runs import DataConfig, Experiment, load_tasks, parse_method
from sparsehyper.training import TrainConfig

TRAINING = TrainConfig(steps=4, eval_every=2, log_every=2, device="cpu")


class Finished(NamedTuple):
    folder: Path
    shown: str


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory) -> Callable[[str], Finished]:
    """``finished_study(name)``: a study at its smallest, run once; do not change it."""

    @cache
    def finish(name: str) -> Finished:
        folder = tmp_path_factory.mktemp("studies") / name
        with redirect_stdout(StringIO()) as shown:
            code = run(["study", name, "--out", str(folder), "--scale", "smoke", "--quiet"])
        assert code == 0
        return Finished(folder, shown.getvalue())

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
