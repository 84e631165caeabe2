"""A study that is killed takes its workers with it, and goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import environment

STUDY = """
import sys
from pathlib import Path
from helpers import environment
from helpers.process_calls import nap
from sparsehyper.lab.studies.cells import Cell, run_cells

folder = Path(sys.argv[1])
run_cells([Cell(str(i), {"i": i}) for i in range(3)], nap, folder / "study", folder, workers=2)
"""


def is_running(process):
    """Whether a process is there, and not only waiting to be collected."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_a_study_that_is_killed(tmp_path):
    study = subprocess.Popen([sys.executable, "-c", STUDY, str(tmp_path)], env=environment())
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert all(map(is_running, workers))
    study.send_signal(signal.SIGKILL)
    study.wait()
    wait_until(lambda: not any(map(is_running, workers)))
    assert not list((tmp_path / "study").iterdir())
