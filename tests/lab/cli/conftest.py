from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

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
    """Two tasks of two classes, 10 grey 8 × 8 images each, darker for the second class."""
    rng = np.random.default_rng(0)
    root = tmp_path / "shop"
    for task in ("shoes", "bags"):
        for shade, name in ((60, "new"), (190, "worn")):
            (root / task / name).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(shade - 40, shade + 40, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(root / task / name / f"{i}.png")
    return root
