from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.pictures import write_task
from sparsehyper.lab.cli.app import run


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Run a command line as the shell would, in this process."""
    monkeypatch.delenv("SPARSEHYPER_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks of two classes, of 10 images each."""
    root = tmp_path / "shop"
    for seed, task in enumerate(("shoes", "bags")):
        write_task(root / task, {"new": 60, "worn": 190}, count=10, seed=seed)
    return root
