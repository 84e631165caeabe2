"""Studies: many small pieces of work, each done once, and kept.

A study is a list of cells. Each is computed in a process of its own, from its settings alone, and
its result is one file, whole or not there: a study that was stopped goes on where it was, and never
repeats what is done.

==========================  ===================================================================
``cells/<name>.json``       a cell's settings and result; a cell of other settings is refused, so
                            that a study may grow by cells, and never mixes results
``results.json``            what the study makes of all cells
==========================  ===================================================================
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from sparsehyper._checks import MOST_REPEATS, MOST_WORKERS, check_integer
from sparsehyper.data import Source, TaskSet
from sparsehyper.experiments.config import DataConfig, Experiment
from sparsehyper.experiments.isolation import context
from sparsehyper.experiments.run import read_json
from sparsehyper.experiments.setup import load_images, tasks_of
from sparsehyper.training.run import check_same, json_ready, lock, write_json

SCALES = ("smoke", "cpu", "full")


class Settings:
    """What the settings of all studies, frozen dataclasses, have in common."""

    def __post_init__(self) -> None:
        check_integer("seeds", getattr(self, "seeds", 1), minimum=1, maximum=MOST_REPEATS)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)  # type: ignore[call-overload]


class Cell(NamedTuple):
    """A piece of work."""

    name: str  # of its file
    settings: dict[str, Any]  # JSON-ready; all that the result follows from


def run_cells(
    cells: Sequence[Cell],
    work: Callable[..., dict[str, Any]],
    directory: Path,
    *arguments: Any,
    workers: int = 1,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute the cells that have no result yet.

    Args:
        cells: what there is to do.
        work: called as ``work(settings, *arguments)``, importable by name; returns a JSON-ready
            result.
        directory: of the study.
        arguments: the same for all cells, and without influence on the results.
        workers: processes at a time, of one thread each.
        quiet: show no progress.

    Returns:
        The result of every cell, by name.

    Raises:
        ValueError: ``directory`` holds a cell of other settings, or ``workers`` is below 1.
        RunInUseError: another process is at work in it.
        RuntimeError: some cells failed, after all others were computed.
    """
    check_integer("workers", workers, minimum=1, maximum=MOST_WORKERS)
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
            recorded = _completed(read_json(path)["settings"])
            check_same(f"cell {path}", recorded, json_ready(cell.settings), ())
        started = time.perf_counter()
        failed: dict[str, str] = {}
        outcomes = _outcomes(todo, work, arguments, workers)
        for number, (cell, succeeded, value) in enumerate(outcomes, 1):
            if succeeded:
                write_json(paths[cell.name], {"settings": cell.settings, **value})
            else:
                failed[cell.name] = value
            if not quiet:
                print(
                    f"[{number}/{len(todo)}] {cell.name} ({time.perf_counter() - started:.0f} s)"
                    f"{'' if succeeded else f': {value}'}",
                    file=sys.stderr,
                    flush=True,
                )
        if failed:
            name, error = next(iter(failed.items()))
            raise RuntimeError(
                f"{len(failed)} of {len(todo)} cells failed; the others are kept. {name}: {error}"
            )
        return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items()}
    finally:
        held.release()


@contextmanager
def shared_tasks(
    data: Iterable[DataConfig], data_dir: str | None
) -> Iterator[dict[DataConfig, SharedTasks]]:
    """Within, there is a file of every data set's tasks, made once, for all processes.

    Args:
        data: of which each is made once.
        data_dir: as `load_tasks` takes it.

    Returns:
        By the data.
    """
    with tempfile.TemporaryDirectory(prefix="sparsehyper-") as scratch:
        files: dict[DataConfig, SharedTasks] = {}
        images: dict[tuple[Any, ...], Source] = {}
        for one in data:
            if one not in files:
                path = Path(scratch, f"{len(files)}.pt")
                key = (one.source, one.image_size, one.seed)
                if key not in images:
                    images[key] = load_images(one, data_dir)
                tasks = tasks_of(one, images[key])
                torch.save(tasks, path)
                files[one] = SharedTasks(str(path), tasks.fingerprint)
        images.clear()
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


def slug(text: str) -> str:
    """A text as part of a file's name.

    >>> slug("chunked, 4 N")
    'chunked__4_N'
    """
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings, those of an experiment that did not exist yet at their defaults."""
    if "experiment" not in settings:
        return settings
    experiment = Experiment.from_dict(settings["experiment"])
    return {**settings, "experiment": json_ready(experiment.to_dict())}


def _outcomes(
    cells: Iterable[Cell], work: Callable[..., Any], arguments: tuple[Any, ...], workers: int
) -> Iterator[tuple[Cell, bool, Any]]:
    """Each cell as it ends, whether it succeeded, and its result or the error's text."""
    waiting = iter(cells)
    running: dict[Connection, tuple[Cell, Any]] = {}
    try:
        while True:
            while len(running) < workers and (cell := next(waiting, None)):
                receiver, sender = multiprocessing.Pipe(duplex=False)
                process = context().Process(
                    target=_compute, args=(sender, work, cell.settings, arguments)
                )
                process.start()
                sender.close()
                running[receiver] = cell, process
            if not running:
                return
            for ready in wait(list(running)):
                receiver = cast(Connection, ready)
                cell, process = running.pop(receiver)
                try:
                    succeeded, value = receiver.recv()
                except EOFError:
                    process.join()
                    succeeded, value = False, f"its process died, exit code {process.exitcode}"
                process.join()
                yield cell, succeeded, value
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _compute(
    sender: Connection, work: Callable[..., Any], settings: dict[str, Any], arguments: Any
) -> None:
    """A cell's process: it computes in one thread, and ends with the study's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the study's process acts on
    torch.set_num_threads(1)
    study = multiprocessing.parent_process()
    assert study is not None

    def watch() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        sender.send((True, work(settings, *arguments)))
    except Exception as error:
        sender.send((False, f"{type(error).__name__}: {error}"))
