from __future__ import annotations

import json

import pytest

from sparsehyper.lab.studies import STUDIES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a study at its smallest, twice, and returns its results and its directory."""

    def run_study(name):
        settings_of, work = STUDIES[name]
        folder = tmp_path_factory.mktemp("study")
        first = work(settings_of("smoke"), folder, quiet=True)
        files = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
        again = work(settings_of("smoke"), folder, quiet=True)
        assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == files
        assert {**first, "machine": None} == {**again, "machine": None}
        return json.loads(json.dumps(first)), folder

    return run_study
