"""Studies go on where they were, and never mix settings."""

from __future__ import annotations

import json

import pytest

from helpers.process_calls import half, touch
from sparsehyper.lab.studies.cells import Cell, run_cells

CELLS = [Cell(f"cell-{i}", {"i": i}) for i in range(4)]


def test_every_cell_is_computed_once(tmp_path):
    first = run_cells(CELLS[:2], touch, tmp_path / "s", tmp_path, workers=2, quiet=True)
    assert first["cell-1"] == {"settings": {"i": 1}, "doubled": 2}
    every = run_cells(CELLS, touch, tmp_path / "s", tmp_path, workers=2, quiet=True)
    assert [every[f"cell-{i}"]["doubled"] for i in range(4)] == [0, 2, 4, 6]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "3"]


def test_what_does_not_fail_is_kept(tmp_path):
    with pytest.raises(RuntimeError, match=r"1 of 4 cells failed.* cell-0: ZeroDivisionError"):
        run_cells(CELLS, half, tmp_path / "s", tmp_path, workers=2, quiet=True)
    kept = sorted(path.stem for path in (tmp_path / "s" / "cells").glob("*.json"))
    assert kept == ["cell-1", "cell-2", "cell-3"]
    assert not list((tmp_path / "s").rglob("*.new"))


def test_a_study_may_grow(tmp_path):
    run_cells(CELLS[:1], touch, tmp_path / "s", tmp_path, quiet=True)
    assert len(run_cells(CELLS[:2], touch, tmp_path / "s", tmp_path, quiet=True)) == 2
    assert (tmp_path / "log").read_text().split() == ["0", "1"]


def test_a_cell_of_other_settings_is_refused(tmp_path):
    run_cells(CELLS[:1], touch, tmp_path / "s", tmp_path, quiet=True)
    with pytest.raises(ValueError, match="its `i` is 0, got 7"):
        run_cells([Cell("cell-0", {"i": 7})], touch, tmp_path / "s", tmp_path, quiet=True)
    cell = json.loads((tmp_path / "s" / "cells" / "cell-0.json").read_text())
    assert cell == {"settings": {"i": 0}, "doubled": 0}


def test_progress_is_told(tmp_path, capfd):
    run_cells(CELLS[:1], touch, tmp_path / "s", tmp_path)
    assert "[1/1] cell-0" in capfd.readouterr().err
