from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def run(finished_study):
    """``run(name)``: results and directory of a study at its smallest."""

    def run_study(name):
        folder = finished_study(name).folder
        return json.loads((folder / "results.json").read_text()), folder

    return run_study
