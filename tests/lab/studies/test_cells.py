"""Studies continue with their finished cells, and never mix settings."""

from __future__ import annotations

import gzip
import os

import pytest

from helpers.process_calls import half, touch
from sparsehyper.lab.studies.cells import CELLS, Cell, read_cells, run_cells
from sparsehyper.training import CheckpointError

FOUR = [Cell(f"cell-{i}", {"i": i}) for i in range(4)]


def test_every_cell_is_computed_once(tmp_path):
    first = run_cells(FOUR[:2], touch, tmp_path / "s", tmp_path, workers=2, quiet=True)
    assert first["cell-1"] == {"settings": {"i": 1}, "doubled": 2}
    every = run_cells(FOUR, touch, tmp_path / "s", tmp_path, workers=2, quiet=True)
    assert [every[f"cell-{i}"]["doubled"] for i in range(4)] == [0, 2, 4, 6]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "3"]
    assert read_cells(tmp_path / "s") == every


def test_what_does_not_fail_is_kept(tmp_path):
    with pytest.raises(RuntimeError, match=r"1 of 4 cells failed.* cell-0: ZeroDivisionError"):
        run_cells(FOUR, half, tmp_path / "s", tmp_path, workers=2, quiet=True)
    assert list(read_cells(tmp_path / "s")) == ["cell-1", "cell-2", "cell-3"]
    assert os.listdir(tmp_path / "s") == [CELLS]


def test_a_study_may_grow(tmp_path):
    run_cells(FOUR[:1], touch, tmp_path / "s", tmp_path, quiet=True)
    assert len(run_cells(FOUR[:2], touch, tmp_path / "s", tmp_path, quiet=True)) == 2
    assert (tmp_path / "log").read_text().split() == ["0", "1"]


def test_the_same_cells_are_the_same_bytes(tmp_path):
    for name, cells in (("a", FOUR), ("b", FOUR[::-1])):
        run_cells(cells, touch, tmp_path / name, tmp_path, quiet=True)
    written = (tmp_path / "a" / CELLS).stat().st_mtime_ns
    run_cells(FOUR, touch, tmp_path / "a", tmp_path, quiet=True)
    assert (tmp_path / "a" / CELLS).stat().st_mtime_ns == written
    assert (tmp_path / "a" / CELLS).read_bytes() == (tmp_path / "b" / CELLS).read_bytes()


def test_a_cell_of_other_settings_is_refused(tmp_path):
    run_cells(FOUR[:1], touch, tmp_path / "s", tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"cell 'cell-0' of .*its `i` is 0, got 7"):
        run_cells([Cell("cell-0", {"i": 7})], touch, tmp_path / "s", tmp_path, quiet=True)
    assert read_cells(tmp_path / "s") == {"cell-0": {"settings": {"i": 0}, "doubled": 0}}


def test_damage_is_noticed(tmp_path):
    run_cells(FOUR, touch, tmp_path, tmp_path, quiet=True)
    whole = (tmp_path / CELLS).read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in range(10, len(whole))  # behind the header, not all of which counts
    ]
    damaged += [
        gzip.compress(line)
        for line in (b"{", b"[]", b'{"name": "cell-0"}', b'{"name": 3, "settings": {}}', b"\xff")
    ]
    damaged.append(whole + whole)  # every cell twice
    for content in damaged:
        (tmp_path / CELLS).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"jsonl\.gz is damaged: .*; restore it, or remo"):
            run_cells(FOUR, touch, tmp_path, tmp_path, quiet=True)
        assert (tmp_path / CELLS).read_bytes() == content


def test_progress_is_told(tmp_path, capfd):
    run_cells(FOUR[:1], touch, tmp_path / "s", tmp_path)
    assert "[1/1] cell-0" in capfd.readouterr().err
