"""``sparsehyper study``: every study at its smallest, from the command to its page."""

from __future__ import annotations

import json

import pytest

from sparsehyper.lab.studies import STUDIES
from sparsehyper.lab.studies.cells import CELLS


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_run_and_shown(finished_study, name):
    out, shown = finished_study(name)
    results = json.loads((out / "results.json").read_text())
    page = (out / "results.md").read_text()
    study = STUDIES[name]
    assert page.startswith(f"# {study.title}\n")
    assert study.question in page
    assert f"`sparsehyper study {name} --out FOLDER --scale smoke`" in page
    for title, columns, rows, _ in study.tables(results):
        assert f"**{title}**" in page
        assert rows
        assert all(len(row) == len(columns) for row in rows)
        assert "| " + " | ".join(map(str, rows[0])) + " |" in page
    claims = results.get("claims", [])
    for verdict in {claim["verdict"] for claim in claims}:
        assert f"{sum(c['verdict'] == verdict for c in claims)} {verdict}" in page
    picture = (out / study.picture).read_bytes()
    assert picture.startswith(b"<?xml")
    assert len(picture) > 10_000
    assert str(out / "results.md") in shown


def test_a_directory_of_another_study_or_scale_is_refused(command, tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    (out / "study.json").write_text('{"name": "compare", "scale": "cpu", "settings": {}}')
    (out / "results.json").write_text("mine")
    for name, reason in (
        ("compare", "its `--scale` is 'cpu', got 'smoke'"),
        ("scaling", "its `NAME` is 'compare', got 'scaling'"),
    ):
        done = command("study", name, "--out", out, "--scale", "smoke")
        assert done.code == 2
        assert reason in done.err
    assert (out / "results.json").read_text() == "mine"
    assert not (out / CELLS).exists()


def test_what_a_study_cannot_take_is_refused(command, tmp_path):
    done = command("study", "compere", "--out", tmp_path / "a")
    assert done.code == 2
    assert "`NAME` must be one of 'variations', 'compare', " in done.err
    assert "got 'compere'" in done.err
    done = command("study", "scaling", "--out", tmp_path / "a", "--scale", "smoke", "--workers", 0)
    assert done.code == 2
    assert "`--workers` must be at least 1, got 0" in done.err
    done = command("study", "variations", "--out", tmp_path / "a", "--seeds", 3)
    assert done.code == 2
    assert "`--seeds` is not for variations" in done.err
    assert not (tmp_path / "a").exists()
