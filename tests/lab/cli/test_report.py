from __future__ import annotations

import json
import re
import shutil

import pytest

from helpers.command_line import QUICK


@pytest.fixture
def run(command, folder, tmp_path):
    """A run on a folder of images."""
    assert command("train", "--out", tmp_path / "run", "--data", folder, *QUICK).code == 0
    return tmp_path / "run"


def test_a_report_of_a_run(command, run, tmp_path):
    out = tmp_path / "new" / "report.html"
    done = command("report", run, "--out", out)
    assert done.code == 0, done.err
    assert re.fullmatch(r".*report\.html \(0\.\d MB, \d+\.\d s\)\n", done.out)
    data = re.search(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8"))[1]
    (described,) = json.loads(data)
    result = json.loads((run / "result.json").read_text())
    assert described["evaluation"]["accuracy"] == result["test"]["accuracy"]
    assert oct(out.stat().st_mode)[-3:] == "644"


def test_what_is_missing_is_told(command, run, folder, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    done = command("report", run, "--out", tmp_path / "report.html")
    assert done.code == 0
    assert "run: The images were not found: " in done.err


def test_changed_data_of_one_run_do_not_stop_a_report_of_several(command, run, folder, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    next(folder.rglob("*.png")).unlink()
    done = command("report", run, tmp_path / "other", "--out", tmp_path / "report.html")
    assert done.code == 0, done.err
    for name in ("run", "other"):
        assert f"{name}: The images cannot be used: the data have changed since" in done.err


def test_nothing_is_written_over(command, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    done = command("report", tmp_path, "--out", tmp_path / "report.html")
    assert done.code == 2
    assert "report.html' exists; nothing is ever written over" in done.err
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_directory_of_something_else(command, tmp_path):
    done = command("report", tmp_path, "--out", tmp_path / "report.html")
    assert done.code == 2
    assert f"'{tmp_path}' is not the directory of a run (config.json), a comparison" in done.err
    assert not (tmp_path / "report.html").exists()
