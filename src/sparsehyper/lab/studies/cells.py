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

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsehyper._util.checks import MOST_REPEATS, MOST_WORKERS, check_integer
from sparsehyper.lab.data import Source, TaskSet
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.runs.run import read_json
from sparsehyper.lab.runs.setup import source_of, tasks_of
from sparsehyper.training import CheckpointError, Interrupted
from sparsehyper.training.isolation import ChildError, calls_in_processes, scratch
from sparsehyper.training.run import check_same, json_ready, write_json

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
        directory: of the study; the caller holds its lock.
        arguments: the same for all cells, and without influence on the results.
        workers: processes at a time, of one thread each.
        quiet: show no progress.

    Returns:
        The result of every cell, by name.

    Raises:
        ValueError: ``directory`` holds a cell of other settings, or ``workers`` is below 1.
        CheckpointError: the file of a cell is damaged.
        RuntimeError: some cells failed, after all others were computed.
        Interrupted: Ctrl-C or SIGTERM.
    """
    check_integer("workers", workers, minimum=1, maximum=MOST_WORKERS)
    results = directory / "cells"
    results.mkdir(parents=True, exist_ok=True)
    paths = {cell.name: results / f"{cell.name}.json" for cell in cells}
    todo = []
    for cell in cells:
        path = paths[cell.name]
        if path.exists():
            recorded = _completed(_read(path)["settings"])
            check_same(f"cell {path}", recorded, json_ready(cell.settings), ())
        else:
            todo.append(cell)
    started = time.perf_counter()
    failed: dict[str, str] = {}
    calls = ((cell.settings, *arguments) for cell in todo)
    try:
        with closing(calls_in_processes(work, calls, workers=workers, threads=1)) as outcomes:
            for done, (number, outcome) in enumerate(outcomes, 1):
                cell = todo[number]
                if isinstance(outcome, ChildError):
                    failed[cell.name] = str(outcome)
                else:
                    write_json(paths[cell.name], {"settings": cell.settings, **outcome})
                if not quiet:
                    reason = f": {outcome}" if cell.name in failed else ""
                    seconds = time.perf_counter() - started
                    print(
                        f"[{done}/{len(todo)}] {cell.name} ({seconds:.0f} s){reason}",
                        file=sys.stderr,
                        flush=True,
                    )
    except Interrupted:
        again = f"stopped; the same study in {directory} goes on where it was"
        raise Interrupted(again, 0) from None
    if failed:
        name, error = next(iter(failed.items()))
        raise RuntimeError(
            f"{len(failed)} of {len(todo)} cells failed; the others are kept. {name}: {error}"
        )
    return {name: _read(path) for name, path in paths.items()}


@contextmanager
def shared_tasks(
    directory: Path, data: Iterable[DataConfig], data_dir: str | None
) -> Iterator[dict[DataConfig, SharedTasks]]:
    """Within, there is a file of every data set's tasks, made once, for all processes.

    Args:
        directory: of the study; the caller holds its lock.
        data: of which each is made once.
        data_dir: as `load_tasks` takes it.

    Returns:
        By the data.
    """
    with scratch(directory) as folder:
        files: dict[DataConfig, SharedTasks] = {}
        images: dict[tuple[Any, ...], Source] = {}
        for one in data:
            if one not in files:
                path = folder / f"{len(files)}.pt"
                key = (one.source, one.image_size, one.seed)
                if key not in images:
                    images[key] = source_of(one, data_dir)
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


def _read(path: Path) -> dict[str, Any]:
    try:
        cell = read_json(path)
        if not isinstance(cell.get("settings"), dict):
            raise CheckpointError(f"{path} is damaged: it has no settings")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove the file to compute the cell again") from error
    return cell
