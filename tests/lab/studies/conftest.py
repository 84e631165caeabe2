from __future__ import annotations

import json

import pytest

from sparsehyper.lab.studies import STUDIES


@pytest.fixture(scope="module")
def run(finished_study):
    """``run(name)``: results and directory of a study; finished, it repeats no cell."""

    def run_study(name):
        settings_of, work = STUDIES[name]
        folder = finished_study(name).folder
        results = json.loads((folder / "results.json").read_text())
        files = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
        again = json.loads(json.dumps(work(settings_of("smoke"), folder, quiet=True)))
        assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == files
        assert results | again | {"machine": None} == results | {"machine": None}
        return results, folder

    return run_study
