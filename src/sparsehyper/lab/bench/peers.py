"""Other libraries: their generators, each in a process with its own environment, take turns.

The folder holds ``worker.py`` and its environment in ``.venv``. A worker is started with the name
of a library, the numbers of generated and of trainable parameters, the latent size, the number of
threads and a seed. It answers with one line of JSON: ``{"library": …, "trainable": …}`` or
``{"error": …}``. Then, for every line it reads, it runs one forward and backward pass for one
embedding, and answers with the seconds that it took.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch

from sparsehyper.lab.bench.generators import BUDGET, LATENT, build, one_pass
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.timing import TimedRun, alternate, spread, timed, times

PEERS = ("hypnettorch", "hyperlight")
_OURS = ("sparse", "sparse, growth 8", "chunked")
_PAUSE = 0.02  # seconds; OpenMP's threads spin for a few milliseconds


def peer_command(folder: str | PathLike[str]) -> list[str]:
    """The command that starts a worker.

    Raises:
        FileNotFoundError: the folder has no worker or no environment.
    """
    worker = Path(folder) / "worker.py"
    python = Path(folder) / ".venv" / "bin" / "python"
    if not worker.exists():
        raise FileNotFoundError(f"`peers` {folder} has no worker.py; give benchmarks/peers")
    if not python.exists():
        raise FileNotFoundError(
            f"`peers` {folder} has no environment; make it with: python -m venv {folder}/.venv && "
            f"{folder}/.venv/bin/pip install -r {folder}/requirements.txt"
        )
    return [str(python), str(worker)]


def measure_peers(command: Sequence[str], sizes: Sizes, rounds: int, seed: int) -> dict[str, Any]:
    """One row for every N and library, including this one.

    ``over`` has its ratio to each other library, round by round. A library that cannot be used is
    listed in ``skipped`` with its error.
    """
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for numel in sizes.peers:
        runs: dict[str, TimedRun] = {}
        trainable: dict[str, int] = {}
        with ExitStack() as stack:
            for name in _OURS:
                module = build(name, numel, seed)
                trainable[name] = sum(p.numel() for p in module.parameters())
                runs[name] = timed(one_pass(module, numel, seed))
            for peer in PEERS:
                options = [peer, numel, BUDGET * numel, LATENT, torch.get_num_threads(), seed]
                run, told = stack.enter_context(_worker([*command, *map(str, options)]))
                if "error" in told:
                    skipped.append({"numel": numel, "method": peer, "reason": told["error"]})
                    continue
                trainable[peer], runs[peer] = told["trainable"], run
            taken = alternate(runs, rounds, pause=_PAUSE)
        for name, seconds in taken.items():
            rows.append(
                {
                    "numel": numel,
                    "method": name,
                    "trainable": trainable[name],
                    "seconds": seconds,
                    "ms": spread([1e3 * s for s in seconds]),
                    "over": {p: times(seconds, taken[p]) for p in PEERS if p in taken},
                }
            )
    return {"rows": rows, "skipped": skipped}


@contextmanager
def _worker(command: list[str]) -> Iterator[tuple[TimedRun, dict[str, Any]]]:
    """Start a worker; yields its run and its first answer."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answers = process.stdin, process.stdout
        try:
            yield (lambda: float(_ask(asking, answers))), json.loads(_answer(answers))
        finally:
            process.kill()


def _ask(asking: IO[str], answers: IO[str]) -> str:
    asking.write("\n")
    return _answer(answers)


def _answer(answers: IO[str]) -> str:
    line = answers.readline()
    if not line:
        raise RuntimeError("a worker of `peers` died; see its error above")
    return line
