"""Runs with more tasks than they were trained on.

`adapt_run` learns new tasks, as `learning` describes, and writes a new run directory. It shares the
weights of the original run, which is left as it is:

======================  =========================================================================
``config.json``         a copy of the original's
``checkpoints/best``    hard links to the original's (copies if the file system has no links)
``tasks.json``,         the tasks and their fitted values, described in `task_list`
``tasks.safetensors``
``profiles.…``          what the images of each task look like, described in `profiles`
======================  =========================================================================
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from sparsehyper._util.files import CheckpointError, check_absent, read_file, whole
from sparsehyper.analysis import nearest_vectors, task_embeddings
from sparsehyper.lab.runs.conditioners import is_by_task
from sparsehyper.lab.runs.learning import fit_tasks
from sparsehyper.lab.runs.loading import LoadedRun, load_run
from sparsehyper.lab.runs.profiles import find_profiles, read_profiles, write_profiles
from sparsehyper.lab.runs.setup import read_new_tasks
from sparsehyper.lab.runs.task_list import write_tasks
from sparsehyper.training import processes
from sparsehyper.training.checkpoint import (
    CHECKPOINTS,
    DIGESTS_FILE,
    checkpoints_of,
    link_checkpoint,
    open_checkpoint,
)
from sparsehyper.training.directory import read_id


def adapt_run(
    directory: str | PathLike[str],
    out: str | PathLike[str],
    data: str | PathLike[str],
    *,
    task: str | None = None,
    resize: bool = False,
    device: str = "auto",
    trust: Collection[str] = (),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Learn new tasks by the best model of a run, and write a new run that has them too.

    Args:
        directory: directory of the run, which is left as it is.
        out: directory of the new run, which shares the weights of the old one.
        data: a folder ``<task>/<class>/*.png``, or with ``task`` ``<class>/*.png``; either with
            or without ``train/`` and ``test/`` above, and ``val/``. Images in ``test/`` are only
            tested on. For a run of a table, a table.
        task: name of the one task that ``data`` holds.
        resize: resize images to the size that the model takes. Always done for a run whose own
            images were resized.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.
        **settings: settings of `learning.fit_tasks`.

    Returns:
        As `learning.fit_tasks`.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError, CheckpointError, UntrustedTargetError: as `load_run`, or ``data`` is
            not a folder.
        ValueError: a name is already taken, images or settings do not fit, or the run's models
            follow from the input.
    """
    check_absent("out", Path(out))
    loaded = load_run(directory, trust=trust)
    model = loaded.model.to(processes(device).device)
    loaded.check_by_task("there is no embedding of a new task to find from its examples")
    told = is_by_task(model) and loaded.tasks.columns is None
    profiles = find_profiles(loaded) if told else None
    resize = resize or loaded.experiment.data.image_size is not None
    with sharing_weights(Path(directory), Path(out), loaded.checkpoint) as partial:
        tasks, rows = fit_tasks(loaded, data, task=task, resize=resize, **settings)
        write_tasks(partial, tasks, loaded.checkpoint)
        if profiles is not None and is_by_task(model):
            labelled = read_new_tasks(loaded.tasks, data, task=task, resize=resize)
            images = {
                one.name: (loaded.tasks.normalise(one.examples.pixels), one.examples.labels)
                for one in labelled
            }
            profiles = profiles.to(model.device).add(model, images)
            write_profiles(partial, profiles, loaded.checkpoint)
    return rows


def change_tasks(
    directory: str | PathLike[str],
    out: str | PathLike[str],
    *,
    rename: tuple[str, str] | None = None,
    remove: Sequence[str] = (),
    trust: Collection[str] = (),
) -> None:
    """Write a new run with a task renamed or some tasks removed.

    Args:
        directory: directory of the run, which is left as it is.
        out: directory of the new run, which shares the weights of the old one.
        rename: a task's name and its new name.
        remove: tasks to leave out.
        trust: as `read_experiment` takes it.

    Raises:
        FileExistsError: ``out`` exists.
        KeyError: an unknown task.
        ValueError: the new name is already taken, or the only task would be removed.
    """
    check_absent("out", Path(out))
    loaded = load_run(directory, trust=trust)
    tasks, profiles = loaded.task_list, read_profiles(loaded)
    if rename is not None:
        tasks = tasks.rename(*rename)
        profiles = profiles and profiles.rename(*rename)
    for name in remove:
        tasks = tasks.remove(name)
        profiles = profiles and profiles.remove(name)
    with sharing_weights(Path(directory), Path(out), loaded.checkpoint) as partial:
        write_tasks(partial, tasks, loaded.checkpoint)
        if profiles is not None:
            write_profiles(partial, profiles, loaded.checkpoint)


def describe_tasks(
    directory: str | PathLike[str], *, trust: Collection[str] = ()
) -> list[dict[str, Any]]:
    """List the tasks of a run.

    Args:
        directory: directory of the run.
        trust: as `read_experiment` takes it.

    Returns:
        One row per task: its name as ``task``, its ``classes``, its ``origin``
        (`TaskEntry.origin`), its ``score`` (``"accuracy"`` or ``"R²"``), what was ``measured`` when
        it was learned (as `Measured`, or None), and the name of the ``nearest`` other task with the
        ``cosine`` of the angle between their normalised embeddings, both None for a task without an
        embedding.
    """
    loaded = load_run(directory, trust=trust)
    nearest = nearest_tasks(loaded)
    rows = []
    for entry in loaded.task_list.entries:
        other, cosine = nearest.get(entry.name, (None, None))
        rows.append(
            {
                "task": entry.name,
                "classes": list(entry.classes),
                "origin": entry.origin,
                "score": loaded.tasks.score,
                "measured": entry.measured and dataclasses.asdict(entry.measured),
                "nearest": other,
                "cosine": cosine,
            }
        )
    return rows


def nearest_tasks(loaded: LoadedRun) -> dict[str, tuple[str, float]]:
    """For each task with an embedding of its own the one with the most similar embedding.

    Embeddings are compared as the generator sees them.

    Returns:
        By name, the other task and the cosine of the two; nothing for a lone task.
    """
    model = loaded.model
    if not is_by_task(model):
        return {}
    own = {entry.name for entry in loaded.task_list.entries if entry.has_embedding}
    rows = [i for i, name in enumerate(model.task_names) if name in own]
    if len(rows) < 2:
        return {}
    indices, cosines = nearest_vectors(task_embeddings(model)[rows])
    names = [model.task_names[row] for row in rows]
    others = zip(indices.tolist(), cosines.tolist(), strict=True)
    return {name: (names[i], cosine) for name, (i, cosine) in zip(names, others, strict=True)}


def shares_weights(run: PathLike[str], out: PathLike[str]) -> bool:
    """Whether two runs share the files of their weights, rather than having copies."""
    files = (checkpoints_of(Path(path)) / "best" / DIGESTS_FILE for path in (run, out))
    try:
        return os.path.samefile(*files)
    except FileNotFoundError:  # one of them is being trained
        return False


@contextmanager
def sharing_weights(run: Path, out: Path, checkpoint: str) -> Iterator[Path]:
    """Make a new run directory that shares the weights of ``run``.

    It becomes ``out`` at the end of the block, whole or not at all.

    Args:
        run: the run directory.
        out: the new run directory.
        checkpoint: `Checkpoint.id` of the one that was loaded.

    Raises:
        FileExistsError: ``out`` exists.
        CheckpointError: the weights of ``run`` are damaged, or have changed since they were loaded.
    """
    with whole("out", out) as partial:
        try:
            best = checkpoints_of(run) / "best"
            link_checkpoint(best, partial / CHECKPOINTS / "best")
            (partial / "config.json").write_bytes(read_file(run / "config.json"))
            with open_checkpoint(partial, "best", read_id(partial)) as shared:
                same = shared.id == checkpoint
        except FileNotFoundError:
            same = False
        if not same:
            raise CheckpointError(
                f"the run in {run} is being trained, and has just got a better checkpoint; try "
                "again"
            )
        yield partial
