"""Functions that two processes call together, each with a rank of its own."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sparsehyper.training import processes
from sparsehyper.training.isolation import DiedError, calls_in_processes

LIMIT = 300  # seconds after which a process that hangs tells where it does, and ends
GRACE = 5  # seconds for the other to do so too


def in_two(function: Callable[..., Any], folder: Path, *args: Any) -> tuple[Any, Any]:
    """Call ``function(here, *args)`` in two processes that have joined.

    Args:
        function: importable by name; its first argument is the `Processes` it is one of.
        folder: where the processes meet.
        *args: picklable, as the results must be too.

    Returns:
        The results of the first process and of the second.

    Raises:
        AssertionError: a process failed; the other, which may wait for it, is ended.
    """
    found: dict[int, Any] = {}
    calls = [(function, rank, folder, *args) for rank in range(2)]
    with closing(calls_in_processes(_join_and_call, calls, workers=2)) as outcomes:
        for rank, outcome in outcomes:
            if isinstance(outcome, Exception):
                if isinstance(outcome, DiedError):
                    time.sleep(GRACE)
                stacks = [file.read_text() for file in sorted(folder.glob("process-*.txt"))]
                raise AssertionError("\n".join([f"process {rank}: {outcome}", *stacks]))
            found[rank] = outcome
    return found[0], found[1]


def _join_and_call(function: Callable[..., Any], rank: int, folder: Path, *args: Any) -> Any:
    # Open to the end of the process, which may hang too.
    stacks = os.open(folder / f"process-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=stacks)
    # Accelerate insists on an address and a port, though the group already exists.
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    return function(processes("cpu"), *args)
