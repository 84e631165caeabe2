"""A study that is killed takes its workers with it, and goes on where it was."""

from __future__ import annotations

import time

STUDY = """
from pathlib import Path
from helpers.process_calls import nap
from sparsehyper.lab.studies.cells import Cell, run_cells

folder = Path({folder!r})
run_cells([Cell(str(i), {{"i": i}}) for i in range(3)], nap, folder / "study", folder, workers=2)
"""


def test_workers_end_with_a_study_that_is_killed(commands, tmp_path):
    study = commands.start(setup=STUDY.format(folder=str(tmp_path)))
    while len(list(tmp_path.glob("*.pid"))) < 2:
        time.sleep(0.02)
    workers = {int(path.stem) for path in tmp_path.glob("*.pid")}
    assert workers < set(commands.processes(study))
    commands.stop(study)  # returns once the workers have ended too
    assert not list((tmp_path / "study").iterdir())
