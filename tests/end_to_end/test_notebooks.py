"""The notebooks: they are well formed, and their cells run from top to bottom, as in Colab."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from sparsehyper.lab.cli.app import run

ROOT = Path(__file__).parents[2]
BOOKS = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "notebooks").iterdir()}
COLAB = "https://colab.research.google.com/github/sparsehyper/sparsehyper/blob/main/notebooks/"


def run_cells(name: str) -> tuple[dict, str]:
    """The names that the cells leave, and what they print; lines with ``!`` are commands."""
    names: dict = {"__name__": name}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for cell in BOOKS[name]["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] == "markdown" or code.startswith("%pip install "):
                continue
            if code.startswith("!sparsehyper "):
                command, _, file = code.partition(" > ")
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    assert run(shlex.split(command)[1:]) == 0
                if file:
                    Path(file).write_text(out.getvalue())
                else:
                    shown.write(out.getvalue())
                continue
            exec(code, names)
    return names, shown.getvalue()


def test_a_module_becomes_a_hypernetwork_that_learns_a_new_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, shown = run_cells("own_module")
    assert names["known"] > 0.85
    assert names["new"] > max(0.8, names["scratch"])
    assert "machine 50\n" in shown
    x, _ = names["readings"](3, 5)
    assert names["again"](x).allclose(names["model"](x), atol=1e-6)


def test_folders_become_exported_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, shown = run_cells("own_folders")
    assert float(re.search(r"mean\W+([\d.]+)%", shown)[1]) > 95
    lines = Path("predicted.csv").read_text().splitlines()
    assert sum(",digit 9," in line for line in lines) > 0.9 * len(lines) > 100
    assert Path("report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_is_well_formed_and_without_outputs(name):
    book = BOOKS[name]
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    first, install, *_ = book["cells"]
    assert f"({COLAB}{name}.ipynb)" in "".join(first["source"])
    assert "git+https://github.com/sparsehyper/sparsehyper" in "".join(install["source"])
    for cell in book["cells"]:
        text = "".join(cell["source"])
        assert all(len(line) <= 100 for line in text.splitlines() if "colab-badge" not in line)
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            if not text.startswith(("!sparsehyper ", "%pip ")):
                ast.parse(text)
