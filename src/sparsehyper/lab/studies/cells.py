"""Cells: the pieces of work of a study, each computed once and kept.

A cell is computed in a process of its own, here or on another machine (`engines`), from its
settings alone. All cells of a study are in one file, ``cells.jsonl.gz``, with a line of JSON for
each: its name, its settings and its result, sorted by name. The file is replaced as a whole
whenever a cell is done. A study that was killed therefore continues with all finished cells, and
the same cells are always the same bytes. A recorded cell of other settings is refused, so that a
study may grow by cells but never mixes results.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sparsehyper._util.checks import MOST_WORKERS, check_integer
from sparsehyper._util.files import parse_json, read_file, replaced
from sparsehyper.lab.data import SharedTasks, Source, is_source
from sparsehyper.lab.runs.config import DataConfig, Experiment, up_to_date
from sparsehyper.lab.runs.setup import source_of, tasks_of
from sparsehyper.lab.studies.engines import calls_by, check_engine
from sparsehyper.training import CheckpointError, Interrupted
from sparsehyper.training.directory import check_same, json_ready
from sparsehyper.training.isolation import ChildError, scratch

CELLS = "cells.jsonl.gz"


class Cell(NamedTuple):
    """A piece of work.

    Attributes:
        name: unique within the study.
        settings: JSON-ready; they determine the result.
    """

    name: str
    settings: dict[str, Any]


class Workspace:
    """The directory, tasks and processes with which a study computes its cells.

    Args:
        directory: study directory; the caller holds its lock.
        files: what the study's cells read, as `Study.files` gives it.
        workers: processes at a time, of one thread each.
        engine: where they run; see `engines`.
        quiet: show no progress.

    Attributes:
        seconds: time spent on all cells so far, by any process that worked on the study.
    """

    def __init__(
        self,
        directory: Path,
        files: Mapping[Any, Any],
        *,
        workers: int = 2,
        engine: str = "local",
        quiet: bool = False,
    ) -> None:
        self.directory, self.files = directory, files
        self.seconds = 0.0
        self._how: dict[str, Any] = {"workers": workers, "engine": engine, "quiet": quiet}

    def run(
        self, cells: Sequence[Cell], work: Callable[..., dict[str, Any]], *arguments: Any
    ) -> dict[str, dict[str, Any]]:
        """`run_cells` in this directory; ``work`` is called with the settings, the files of the
        tasks and the ``arguments``. Its result gets the ``seconds`` it took, unless it has them.
        """
        done = run_cells(cells, _timed, self.directory, work, self.files, *arguments, **self._how)
        self.seconds += sum(cell["seconds"] for cell in done.values())
        return done


def run_cells(
    cells: Sequence[Cell],
    work: Callable[..., dict[str, Any]],
    directory: Path,
    *arguments: Any,
    workers: int = 1,
    engine: str = "local",
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute the cells that have no result yet.

    Args:
        cells: the cells to compute.
        work: called as ``work(settings, *arguments)``, importable by name; returns a JSON-ready
            result.
        directory: study directory; the caller holds its lock.
        arguments: the same for all cells, and without influence on the results.
        workers: processes at a time, of one thread each.
        engine: where they run; see `engines`.
        quiet: show no progress.

    Returns:
        For each cell, by name, its result and its ``settings``.

    Raises:
        ValueError: ``directory`` holds a cell of other settings, ``workers`` is below 1, or there
            is no such engine.
        CheckpointError: the file of cells is damaged.
        RuntimeError: some cells failed, after all others were computed.
        Interrupted: Ctrl-C or SIGTERM.
    """
    check_integer("workers", workers, minimum=1, maximum=MOST_WORKERS)
    check_engine(engine)
    directory.mkdir(parents=True, exist_ok=True)
    recorded = read_cells(directory)
    for cell in cells:
        if cell.name in recorded:
            settings = _with_defaults(up_to_date(recorded[cell.name]["settings"]))
            what = f"cell {cell.name!r} of {directory / CELLS}"
            check_same(what, settings, json_ready(cell.settings), ())
    todo = [cell for cell in cells if cell.name not in recorded]
    started = time.perf_counter()
    failed: dict[str, str] = {}
    calls = ((cell.settings, *arguments) for cell in todo)
    try:
        with closing(calls_by(engine, work, calls, directory, workers=workers)) as outcomes:
            for done, (number, outcome) in enumerate(outcomes, 1):
                cell = todo[number]
                if isinstance(outcome, ChildError):
                    failed[cell.name] = str(outcome)
                else:
                    recorded[cell.name] = json_ready({"settings": cell.settings, **outcome})
                    _write_cells(directory, recorded)
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
    return {
        cell.name: {**result, "settings": up_to_date(result["settings"])}
        for cell in cells
        for result in [recorded[cell.name]]
    }


def read_cells(directory: Path) -> dict[str, dict[str, Any]]:
    """The recorded cells of a study by name: result and ``settings``.

    Raises:
        CheckpointError: their file is damaged.
    """
    path = directory / CELLS
    try:
        content = read_file(path)
    except FileNotFoundError:
        return {}
    remedy = "restore it, or remove it to compute all cells again"
    try:
        if not content:
            raise EOFError("it is empty")
        lines = gzip.decompress(content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged: {error}; {remedy}") from error
    cells = {}
    for number, line in enumerate(lines, 1):
        try:
            cell = parse_json(line, path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {remedy}") from error
        if not (
            isinstance(cell, dict)
            and isinstance(cell.get("name"), str)
            and cell["name"] not in cells
            and isinstance(cell.get("settings"), dict)
        ):
            raise CheckpointError(
                f"{path} is damaged: line {number} is not a cell with settings and a name of its "
                f"own; {remedy}"
            )
        cells[cell.pop("name")] = cell
    return cells


@contextmanager
def shared_tasks(
    directory: Path, data: Iterable[DataConfig], data_dir: str | None
) -> Iterator[dict[DataConfig, SharedTasks]]:
    """Files of tasks that all processes can read; they exist within this context.

    Args:
        directory: study directory; the caller holds its lock.
        data: configurations of the tasks; duplicates are made once.
        data_dir: as `load_tasks` takes it.

    Yields:
        The file of each configuration in ``data``.
    """
    with scratch(directory) as folder:
        files: dict[DataConfig, SharedTasks] = {}
        images: dict[tuple[Any, ...], Source] = {}
        for one in data:
            if one not in files:
                path = folder / f"{len(files)}.pt"
                # only the images of a folder are split by the seed
                key = (one.source, one.image_size, None if is_source(one.source) else one.seed)
                if key not in images:
                    images[key] = source_of(one, data_dir)
                files[one] = SharedTasks.write(tasks_of(one, images[key]), path)
        images.clear()
        yield files


def slug(text: str) -> str:
    """A text as part of a cell's name.

    >>> slug("chunked, 4 N")
    'chunked__4_N'
    """
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)


def _timed(
    settings: dict[str, Any], work: Callable[..., dict[str, Any]], *arguments: Any
) -> dict[str, Any]:
    started = time.perf_counter()
    result = work(settings, *arguments)
    return {**result, "seconds": result.get("seconds", time.perf_counter() - started)}


def _write_cells(directory: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    lines = [
        json.dumps({"name": name, **cells[name]}, allow_nan=False) + "\n" for name in sorted(cells)
    ]
    with (
        replaced(directory / CELLS) as file,
        # no time and no file name, which would differ from one writing to the next
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
    ):
        packed.write("".join(lines).encode())


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings; experiment settings added since get their defaults."""
    if "experiment" not in settings:
        return settings
    experiment = Experiment.from_dict(settings["experiment"])
    return {**settings, "experiment": json_ready(experiment.to_dict())}
