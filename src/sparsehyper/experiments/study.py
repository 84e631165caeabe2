"""Studies: many small pieces of work, each done once, and kept.

A study is a list of cells. Each is computed in a process of its own, from its settings alone, and
its result is one file, whole or not there: a study that was stopped goes on where it was, and never
repeats what is done.

==========================  ===================================================================
``study.json``              the study's settings, as it was run last
``cells/<name>.json``       a cell's settings and result; a cell of other settings is refused, so
                            that a study may grow by cells, and never mixes results
``results.json``            what the study makes of all cells
==========================  ===================================================================
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsehyper._extras import require
from sparsehyper.data import TaskSet
from sparsehyper.experiments.config import DataConfig
from sparsehyper.experiments.isolation import context
from sparsehyper.experiments.run import read_json
from sparsehyper.experiments.setup import load_tasks
from sparsehyper.training.run import check_same, json_ready, lock, write_json


class Cell(NamedTuple):
    """A piece of work."""

    name: str  # of its file
    settings: dict[str, Any]  # JSON-ready; all that the result follows from


def run_cells(
    study: Mapping[str, Any],
    cells: Sequence[Cell],
    work: Callable[..., dict[str, Any]],
    directory: Path,
    *arguments: Any,
    workers: int = 1,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute the cells that have no result yet.

    Args:
        study: its settings, JSON-ready.
        cells: what there is to do.
        work: called as ``work(settings, *arguments)``, importable by name; returns a JSON-ready
            result.
        directory: of the study.
        arguments: the same for all cells, and without influence on the results.
        workers: processes, of one thread each.
        quiet: show no progress.

    Returns:
        The result of every cell, by name.

    Raises:
        ValueError: ``directory`` holds a cell of other settings.
        RunInUseError: another process is at work in it.
        RuntimeError: some cells failed, after all others were computed.
    """
    results = directory / "cells"
    results.mkdir(parents=True, exist_ok=True)
    held = lock(directory)
    try:
        paths = {cell.name: results / f"{cell.name}.json" for cell in cells}
        todo = []
        for cell in cells:
            path = paths[cell.name]
            if not path.exists():
                todo.append(cell)
                continue
            recorded = read_json(path)["settings"]
            check_same(f"cell {path}", recorded, json_ready(cell.settings), ())
        write_json(directory / "study.json", study)
        started = time.perf_counter()
        with ProcessPoolExecutor(workers, mp_context=context(), initializer=_start) as pool:
            jobs = {pool.submit(work, cell.settings, *arguments): cell for cell in todo}
            failed: dict[str, BaseException] = {}
            try:
                for number, job in enumerate(as_completed(jobs), 1):
                    cell, error = jobs[job], job.exception()
                    if error is not None:
                        failed[cell.name] = error
                    else:
                        write_json(paths[cell.name], {"settings": cell.settings, **job.result()})
                    if not quiet:
                        seconds = time.perf_counter() - started
                        print(
                            f"[{number}/{len(todo)}] {cell.name} ({seconds:.0f} s)"
                            f"{f': {error!r}' if error else ''}",
                            file=sys.stderr,
                            flush=True,
                        )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failed:
            name, error = next(iter(failed.items()))
            raise RuntimeError(
                f"{len(failed)} of {len(todo)} cells failed; the others are kept. {name}: {error!r}"
            ) from error
        return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items()}
    finally:
        held.release()


@contextmanager
def shared_tasks(
    data: Iterable[DataConfig], data_dir: str | None
) -> Iterator[dict[str, SharedTasks]]:
    """Within, there is a file of every data set's tasks, made once, for all processes.

    Args:
        data: of which each is made once.
        data_dir: as `load_tasks` takes it.

    Returns:
        By `name_of` the data.
    """
    with tempfile.TemporaryDirectory(prefix="sparsehyper-") as scratch:
        files: dict[str, SharedTasks] = {}
        for one in data:
            if name_of(one) not in files:
                path = Path(scratch, f"{len(files)}.pt")
                tasks = load_tasks(one, data_dir)
                torch.save(tasks, path)
                files[name_of(one)] = SharedTasks(str(path), tasks.fingerprint)
        yield files


class SharedTasks(NamedTuple):
    """A file of tasks."""

    path: str
    fingerprint: str

    def load(self) -> TaskSet:
        """The tasks; the images are mapped into memory."""
        # The file is our own.
        tasks: TaskSet = torch.load(self.path, mmap=True, weights_only=False)
        return tasks


def name_of(data: DataConfig) -> str:
    """What tells data sets of tasks apart.

    >>> name_of(DataConfig("digits", "split:2"))
    'digits split:2'
    """
    return f"{data.source} {data.tasks}"


def slug(text: str) -> str:
    """A text as part of a file's name.

    >>> slug("chunked, 4 N")
    'chunked__4_N'
    """
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """The mean of paired differences, with its 95% interval by Student's t over them; one pair has
    none.

    >>> paired([1.0, 2.0, 3.0])
    {'mean': 2.0, 'low': -0.484..., 'high': 4.484..., 'pairs': 3}
    """
    values = torch.tensor(differences, dtype=torch.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None, "pairs": 1}
    stats = require("scipy.stats", "data")
    error = float(values.std()) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(values)}


def verdict(interval: Mapping[str, Any]) -> str:
    """Of the claim that a difference is above zero.

    >>> verdict(paired([1.0, 1.1, 0.9])), verdict(paired([-1.0, 1.0]))
    ('supported', 'undecided')
    """
    if interval["low"] is None:
        return "undecided"
    if interval["low"] > 0:
        return "supported"
    return "not supported" if interval["high"] < 0 else "undecided"


def _start() -> None:
    """What a worker does first: it computes in one thread, and ends with the study's process."""
    torch.set_num_threads(1)
    study = multiprocessing.parent_process()
    assert study is not None

    def watch() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
