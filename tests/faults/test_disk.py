"""Full and read-only disks, two processes that start the same run, and locks of dead owners."""

from __future__ import annotations

import random
import shutil
import time

import pytest

from helpers.faults.cases import differences, leftovers
from helpers.faults.commands import FULL, READ_ONLY
from sparsehyper.lab.runs import load_run


@pytest.mark.parametrize(
    ("name", "quick", "many"),
    [
        ("train", 4, 999),
        ("adapt", 2, 999),
        ("export", 1, 999),
        ("tasks", 1, 999),
        ("report", 1, 999),
        ("compare", 0, 12),
        ("study", 0, 12),
    ],
)
def test_a_full_disk(name, quick, many, cases, commands, trials, record_figures, tmp_path):
    """From any call on: one line of error, no temporary file left, nothing lost."""
    case, count = cases[name], trials(quick, many)
    if not count:
        pytest.skip("takes long; with --full-faults only")
    whole = tmp_path / "whole"
    calls = commands.count(whole, FULL, *case.start(whole), setup=case.setup)
    reference = case.end(whole / case.out)
    assert calls > 3
    chosen = sorted(random.sample(range(1, calls + 1), min(calls, count)))
    for at in chosen:
        folder = tmp_path / str(at)
        failed = commands.fail(folder, FULL, at, *case.start(folder), setup=case.setup)
        assert failed.code in (1, 2), f"call {at}: {commands.fault}"
        assert "No space left on device" in failed.line, f"call {at}: {commands.fault}"
        assert not leftovers(folder), f"call {at}: {commands.fault}"
        case.check(folder / case.out)
        case.go_on(commands, folder)
        assert not differences(case.end(folder / case.out), reference), f"call {at}"
        shutil.rmtree(folder)
    record_figures("a full disk at every call that writes", command=name, tried=len(chosen))


@pytest.mark.parametrize("name", ["train", "adapt", "export", "tasks", "report", "compare"])
def test_a_read_only_disk(name, cases, commands, record_figures, tmp_path):
    case = cases[name]
    failed = commands.fail(tmp_path, READ_ONLY, 1, *case.start(tmp_path))
    assert failed.code == 2
    assert failed.line.startswith("error: ")
    assert "Read-only file system" in failed.line
    assert str(tmp_path) in failed.line
    assert not list(tmp_path.iterdir())
    record_figures("a read-only disk", command=name, tried=1)


def test_what_only_reads_needs_no_writing(base, commands, tmp_path):
    """A run on a disk that is read-only can be used."""
    for words in (["evaluate", base], ["inspect", base], ["tasks", base]):
        done = commands.fail(base, READ_ONLY, 1, *words)
        assert done.code == 0, done.err
    file = tmp_path / "model.safetensors"
    done = commands.fail(base, READ_ONLY, 1, "export", base, "--task", "0-1", "--out", file)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("name", "quick", "many"), [("train", 2, 50), ("adapt", 1, 10), ("export", 1, 10)]
)
def test_two_starters(name, quick, many, cases, commands, trials, record_figures, tmp_path):
    """One does the work; the other reports in one line that it does not."""
    case, count = cases[name], trials(quick, many)
    commands.run(*case.start(tmp_path / "whole"))
    reference = case.end(tmp_path / "whole" / case.out)
    for trial in range(count):
        folder = tmp_path / str(trial)
        folder.mkdir()
        started = [commands.start(*case.start(folder)) for _ in range(2)]
        outcomes = [commands.wait(process) for process in started]
        assert sorted(outcome.code for outcome in outcomes) == [0, 2], outcomes
        (loser,) = (outcome for outcome in outcomes if outcome.code == 2)
        assert loser.line.startswith("error: ")
        assert any(why in loser.line for why in ("in use by another", "exists", "holds a run"))
        assert not differences(case.end(folder / case.out), reference)
        assert not leftovers(folder)
        shutil.rmtree(folder)
    record_figures("two starters", command=name, tried=count)


@pytest.mark.parametrize("name", ["compare", "study"])
def test_two_starters_of_many_runs(name, cases, commands, trials, tmp_path):
    if not trials(name == "compare", True):
        pytest.skip("takes long; with --full-faults only")
    case = cases[f"endless {name}"]
    first = commands.start(*case.start(tmp_path), setup=case.setup)
    while not (tmp_path / case.out / ".tasks").exists():
        time.sleep(0.02)
    second = commands.run(*case.start(tmp_path), setup=case.setup)
    assert second.code == 2
    assert "is in use by another process; wait for it, stop it, or choose" in second.line
    commands.stop(first)


def test_dead_owners(commands, cases, record_figures, tmp_path):
    """A lock file alone is not a lock."""
    case = cases["train"]
    out = tmp_path / case.out
    out.mkdir()
    (out / ".lock").write_text("1")
    done = commands.run(*case.start(tmp_path))
    assert done.code == 0, done.err
    load_run(out)
    record_figures("the lock of a dead owner", command="train", tried=1)
