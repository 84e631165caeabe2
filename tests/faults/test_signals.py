"""Signals at any moment, lack of memory, losses that are not finite, processes that fail."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers import environment
from helpers.faults import fatal_target
from helpers.faults.cases import differences, leftovers
from helpers.faults.commands import QUICK, SMALL


@pytest.mark.parametrize(
    ("name", "quick", "many"),
    [
        ("train", 1, 60),
        ("adapt", 1, 30),
        ("export", 1, 30),
        ("report", 0, 10),
        ("compare", 0, 15),
        ("study", 0, 15),
    ],
)
def test_asked_to_stop_at_any_moment(
    name, quick, many, cases, commands, trials, record_figures, tmp_path
):
    """One line, exit code 130, nothing left over, and the same command goes on when run again."""
    case, count = cases[name], trials(quick, many)
    if not count:
        pytest.skip("takes long; with --full-faults only")
    seconds, reference = case.undisturbed(commands, tmp_path / "whole")
    stopped = 0
    for trial in range(count):
        folder = tmp_path / str(trial)
        process = commands.start(*case.start(folder), setup=case.setup)
        time.sleep(random.uniform(0, seconds))
        os.kill(process, random.choice([signal.SIGINT, signal.SIGTERM]))
        done = commands.wait(process)
        if done.code:  # it may have been too late
            assert done.code == 130, done
            assert "stopped" in done.line or done.line == "interrupted"
            stopped += 1
        commands.wait_for_processes(process)
        assert not leftovers(folder)
        case.check(folder / case.out)
        case.go_on(commands, folder)
        assert not differences(case.end(folder / case.out), reference)
        shutil.rmtree(folder)
    record_figures("signals at any moment", command=name, tried=count, stopped=stopped)


@pytest.mark.parametrize("name", ["compare", "study"])
def test_ctrl_c_of_a_terminal(name, cases, commands, trials, tmp_path):
    """A terminal sends it to all processes at once, also to those that are just starting."""
    if not trials(name == "study", True):
        pytest.skip("takes long; with --full-faults only")
    case = cases[f"endless {name}"]
    process = commands.start(*case.start(tmp_path), setup=case.setup)
    while len(commands.processes(process)) < 4:  # the command, two of multiprocessing, a worker
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    os.killpg(process, signal.SIGINT)
    done = commands.wait(process)
    assert done.code == 130, done
    assert "goes on where it was" in done.line or done.line == "interrupted"
    commands.wait_for_processes(process)


MEMORY = """
import sparsehyper.training.loop as loop
steps = []

class Measures(loop.Measures):
    def losses(self, logits, *args):
        steps.append(None)
        if len(steps) == 5:
            {fault}
        return super().losses(logits, *args)

loop.Measures = Measures
"""
FAULTS = {
    "Python": "raise MemoryError",
    "accelerator": "raise loop.torch.OutOfMemoryError('CUDA out of memory. Tried to …')",
    "CPU": "loop.torch.empty(1 << 60)",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_out_of_memory(kind, cases, commands, record_figures, tmp_path):
    """One line says what to do, and the run goes on from its last checkpoint."""
    case = cases["train"]
    commands.run(*case.start(tmp_path / "whole"))
    failed = commands.run(*case.start(tmp_path), setup=MEMORY.format(fault=FAULTS[kind]))
    assert failed.code == 1
    assert failed.line.startswith("error: out of memory")
    assert "give a smaller --batch-size or --tasks-per-batch or --budget" in failed.line
    case.check(tmp_path / case.out)
    case.go_on(commands, tmp_path)
    reference = case.end(tmp_path / "whole" / case.out)
    assert not differences(case.end(tmp_path / case.out), reference)
    record_figures("out of memory", what=kind, tried=1)


def test_a_worker_killed_for_want_of_memory(commands, trials, record_figures, tmp_path):
    """The other runs of a comparison go on."""
    if not trials(0, 1):
        pytest.skip("takes long; with --full-faults only")
    methods = ["--method", "dense", "--method", "experts", "--seeds", 1]
    target = ["--target", f"{fatal_target.__name__}:net"]
    done = commands.run(
        *("compare", *SMALL, *target, *methods, "--steps", 6, "--out", tmp_path / "out"),
        setup=f"import os; os.environ[{fatal_target.MARKER!r}] = {str(tmp_path / 'killed')!r}",
    )
    assert done.code == 1
    assert "dense, seed 0: the process died with exit code -9, killed, most likely" in done.line
    assert (tmp_path / "out" / "runs" / "experts-0" / "result.json").exists()
    record_figures("out of memory", what="a run of compare is killed", tried=1)


def test_a_loss_that_is_not_finite(commands, record_figures, tmp_path):
    poison = MEMORY.format(fault="logits = logits * float('nan')")
    failed = commands.run("train", *QUICK, "--out", tmp_path / "run", setup=poison)
    assert failed.code == 1
    assert "the loss is nan at step 5, on task '" in failed.line
    assert f"The last good checkpoint is {tmp_path / 'run'}" in failed.line
    record_figures("a loss that is not finite", command="train", tried=1)


ON_ONE = """
import os, signal, sys
import sparsehyper.training.loop as loop
real, steps = loop._seed_step, []

def seed_step(seed, step, here):
    if step == 4 and here.rank == {rank}:
        {fault}
    return real(seed, step, here)

loop._seed_step = seed_step
from sparsehyper.lab.cli import main
main()
"""
ENDS = {
    "signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "death": "os.kill(os.getpid(), signal.SIGKILL)",
    "memory": "raise MemoryError",
    "error": "raise ValueError('a fault of one process')",
}


@pytest.mark.parametrize(
    ("kind", "rank"), [("signal", 1), ("death", 0), ("memory", 1), ("error", 0)]
)
def test_a_fault_of_one_of_two_processes(kind, rank, commands, trials, record_figures, tmp_path):
    """Both end, neither hangs, and the run can go on, here in one process."""
    if not trials(kind == "signal", True):
        pytest.skip("takes long; with --full-faults only")
    program = tmp_path / "program.py"
    program.write_text(ON_ONE.format(rank=rank, fault=ENDS[kind]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = ["train", *QUICK, "--out", tmp_path / "run", "--tasks-per-batch", "2"]
    done = subprocess.run(
        [*launch, "--nproc-per-node", "2", program, *arguments],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert done.returncode != 0
    expected = {
        "signal": "stopped after step 5",
        "memory": "error: out of memory",
        "error": "error: a fault of one process",
    }
    assert expected.get(kind, "") in done.stderr
    again = commands.run(*arguments, "--resume")
    assert again.code == 0, again.err
    record_figures("a fault of one of two processes", what=f"{kind}, process {rank}", tried=1)
