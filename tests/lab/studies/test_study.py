"""Studies as wholes: their registry, and what running one leaves."""

from __future__ import annotations

import os
import shutil

import pytest

from sparsehyper.lab.studies import SCALES, STUDIES, run_study
from sparsehyper.training.directory import RunInUseError, json_ready, lock


def test_a_finished_study_is_not_repeated(run, tmp_path):
    results, folder = run("scaling")
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = run_study(STUDIES["scaling"].at_scale("smoke"), out, scale="smoke", quiet=True)
    assert {**json_ready(again), "machine": None} == {**results, "machine": None}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    files = ["cells.jsonl.gz", "results.json", "results.md", "scaling.svg", "study.json"]
    assert sorted(set(os.listdir(out)) - {".lock"}) == files


def test_one_process_runs_a_study(tmp_path):
    held = lock(tmp_path)
    try:
        with pytest.raises(RunInUseError, match="in use by another process"):
            run_study(STUDIES["scaling"].at_scale("smoke"), tmp_path, scale="smoke", quiet=True)
    finally:
        held.release()


@pytest.mark.parametrize("name", STUDIES)
def test_the_registry_has_every_study_at_every_scale(name):
    study = STUDIES[name]
    assert study.name == name
    for scale in SCALES:
        assert study.at_scale(scale).task_sets() or name == "adapters"  # which has sentences
    with pytest.raises(ValueError, match="`scale` must be one of 'smoke', 'cpu', 'full'; got 'x'"):
        study.at_scale("x")
