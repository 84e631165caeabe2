"""Commands that are killed, at every call that changes a file and at any moment.

What is there afterwards is whole or absent, and the same command, run again, ends as if nothing
had happened.
"""

from __future__ import annotations

import random
import shutil
import signal
import time

import pytest

from helpers.faults.cases import differences, leftovers
from helpers.faults.commands import KILL


@pytest.mark.parametrize(
    ("name", "quick"), [("train", 4), ("adapt", 1), ("export", 1), ("tasks", 1), ("report", 1)]
)
def test_killed_at_every_call_that_changes_a_file(
    name, quick, cases, commands, trials, record_figures, tmp_path
):
    case = cases[name]
    calls = commands.count(tmp_path / "whole", KILL, *case.start(tmp_path / "whole"))
    reference = case.end(tmp_path / "whole" / case.out)
    assert calls > 5
    chosen = sorted(random.sample(range(1, calls + 1), min(calls, trials(quick, calls))))
    for at in chosen:
        folder = tmp_path / str(at)
        killed = commands.fail(folder, KILL, at, *case.start(folder))
        assert killed.code == -signal.SIGKILL, f"call {at}"
        case.check(folder / case.out)
        case.go_on(commands, folder)
        assert not differences(case.end(folder / case.out), reference), f"call {at}"
        assert not leftovers(folder / case.out)
        shutil.rmtree(folder)
    record_figures("kills at every call that changes a file", command=name, tried=len(chosen))


@pytest.mark.parametrize(
    ("name", "quick", "many"),
    [("train", 1, 60), ("adapt", 0, 45), ("export", 0, 45), ("compare", 0, 25), ("study", 0, 25)],
)
def test_killed_at_any_moment(name, quick, many, cases, commands, trials, record_figures, tmp_path):
    case, count = cases[name], trials(quick, many)
    if not count:
        pytest.skip("takes long; with --full-faults only")
    seconds, reference = case.undisturbed(commands, tmp_path / "whole")
    killed = 0
    for trial in range(count):
        folder = tmp_path / str(trial)
        process = commands.start(*case.start(folder), setup=case.setup)
        time.sleep(random.uniform(0, seconds))
        killed += commands.stop(process).code == -signal.SIGKILL  # its children end with it
        case.check(folder / case.out)
        case.go_on(commands, folder)
        assert not differences(case.end(folder / case.out), reference)
        assert not leftovers(folder / case.out)
        shutil.rmtree(folder)
    record_figures("kills at any moment", command=name, tried=count, killed=killed)
