"""The examples: each runs at a small size, through the public interface, and is on the page."""

from __future__ import annotations

import ast
import math
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "continual": {"steps": 3},
    "ensemble": {"images": 50, "steps": 5, "draws": 2},
    "federated": {"number": 4, "images": 10, "rounds": 8, "steps": 2},
    "hyperparameters": {"steps": 5, "alone_steps": 5},
    "implicit_images": {"images": 11, "steps": 5},
    "own_folders": {"epochs": 1, "most": 150, "seconds": 0.3},
    "own_module": {"steps": 8, "restarts": 1},
    "sites": {"sites": 12, "new": 2, "rows": 10, "few": 8, "steps": 15},
}

NEED_DATA = {"intents"}


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs_and_prints_what_it_measured(name, capsys):
    found = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](**SMALL[name])
    shown = capsys.readouterr().out
    for what, value in found.items():
        assert what in shown
        assert all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))


def test_the_examples_are_short_public_and_on_the_page():
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    files = sorted((ROOT / "examples").glob("*.py"))
    assert {file.stem for file in files} == SMALL.keys() | NEED_DATA
    for file in files:
        text = file.read_text("utf-8")
        assert len(text.splitlines()) <= 150
        assert f"python examples/{file.name}" in page
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sparsehyper"):
                assert node.module in ("sparsehyper", "sparsehyper.adapters"), file
