"""Runs with more tasks than they were trained on.

`adapt_run` fits new tasks and writes a new run directory. It shares the weights of the original
run, which is left as it is:

======================  =========================================================================
``config.json``         a copy of the original's
``checkpoints/best``    hard links to the original's (copies if the file system has no links)
``tasks.json``,         the tasks and their fitted values, described in `task_list`
``tasks.safetensors``
``profiles.…``          what the images of each task look like, described in `profiles`
======================  =========================================================================
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.files import CheckpointError, check_absent, read_file, whole
from sparsehyper.adaptation import fine_tune, fit_embeddings
from sparsehyper.adaptation.tune import tuned_parameters
from sparsehyper.analysis import nearest_vectors, task_embeddings
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import load_new_tasks
from sparsehyper.lab.runs.loading import load_run
from sparsehyper.lab.runs.profiles import find_profiles, read_profiles, write_profiles
from sparsehyper.lab.runs.setup import TaskInfo
from sparsehyper.lab.runs.task_list import TaskEntry, TaskList, fitted_tensors, write_tasks
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
    """Fit new tasks to the best model of a run, and write a new run that has them too.

    Args:
        directory: directory of the run, which is left as it is.
        out: directory of the new run, which shares the weights of the old one.
        data: a folder ``<task>/<class>/*.png``, or with ``task`` ``<class>/*.png``; either with
            or without ``train/`` and ``test/`` above. Images in ``test/`` are only tested on.
        task: name of the one task that the folder holds.
        resize: resize images to the size that the model takes. Always done for a run whose own
            images were resized.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.
        **settings: settings of `adapted.fit_tasks` and `fit_embeddings`.

    Returns:
        As `adapted.fit_tasks`.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError, CheckpointError, UntrustedTargetError: as `load_run`, or ``data`` is
            not a folder.
        ValueError: the run is of a baseline, a name is already taken, or images or settings do not
            fit.
    """
    check_absent("out", Path(out))
    loaded = load_run(directory, trust=trust)
    profiles = find_profiles(loaded)
    model = loaded.hypernetwork().to(processes(device).device)
    resize = resize or loaded.experiment.data.image_size is not None
    with sharing_weights(Path(directory), Path(out), loaded.digests) as partial:
        tasks, rows = fit_tasks(
            model, loaded.tasks, loaded.task_list, data, task=task, resize=resize, **settings
        )
        write_tasks(partial, tasks, loaded.digests)
        if profiles is not None:
            labelled = load_new_tasks(data, loaded.tasks.image_shape, task=task, resize=resize)
            images = {
                one.name: (loaded.tasks.normalise(one.train.pixels), one.train.labels)
                for one in labelled
            }
            profiles = profiles.to(model.target.moments.device).add(model, images)
            write_profiles(partial, profiles, loaded.digests)
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
    loaded.hypernetwork()
    tasks, profiles = loaded.task_list, read_profiles(loaded)
    if rename is not None:
        tasks = tasks.rename(*rename)
        profiles = profiles and profiles.rename(*rename)
    for name in remove:
        tasks = tasks.remove(name)
        profiles = profiles and profiles.remove(name)
    with sharing_weights(Path(directory), Path(out), loaded.digests) as partial:
        write_tasks(partial, tasks, loaded.digests)
        if profiles is not None:
            write_profiles(partial, profiles, loaded.digests)


def describe_tasks(
    directory: str | PathLike[str], *, trust: Collection[str] = ()
) -> list[dict[str, Any]]:
    """List the tasks of a run.

    Args:
        directory: directory of the run.
        trust: as `read_experiment` takes it.

    Returns:
        One row per task: its name as ``task``, its ``classes``, its ``origin`` (``"trained"``,
        ``"embedding"``, or ``"embedding + "`` and what was tuned), and the name of the ``nearest``
        other task with the ``cosine`` of the angle between their normalised embeddings.
    """
    loaded = load_run(directory, trust=trust)
    nearest = nearest_tasks(loaded.hypernetwork())
    return [
        {
            "task": entry.name,
            "classes": list(entry.classes),
            "origin": entry.origin,
            "nearest": other,
            "cosine": cosine,
        }
        for entry, (other, cosine) in zip(loaded.task_list.entries, nearest, strict=True)
    ]


def nearest_tasks(model: HyperNetwork) -> list[tuple[str, float]] | list[tuple[None, None]]:
    """For each task the task with the most similar embedding, and the cosine of the two.

    Embeddings are compared as the generator sees them. Both values are None for a lone task.
    """
    names = model.task_names
    if len(names) == 1:
        return [(None, None)]
    indices, cosines = nearest_vectors(task_embeddings(model))
    return [
        (names[i], cosine) for i, cosine in zip(indices.tolist(), cosines.tolist(), strict=True)
    ]


def shares_weights(run: PathLike[str], out: PathLike[str]) -> bool:
    """Whether two runs share the files of their weights, rather than having copies."""
    files = (checkpoints_of(Path(path)) / "best" / DIGESTS_FILE for path in (run, out))
    try:
        return os.path.samefile(*files)
    except FileNotFoundError:  # one of them is being trained
        return False


@contextmanager
def sharing_weights(run: Path, out: Path, digests: str) -> Iterator[Path]:
    """Make a new run directory that shares the weights of ``run``.

    It becomes ``out`` at the end of the block, whole or not at all.

    Args:
        run: the run directory.
        out: the new run directory.
        digests: ``SHA256SUMS`` of the checkpoint that was loaded.

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
                same = shared.digests == digests
        except FileNotFoundError:
            same = False
        if not same:
            raise CheckpointError(
                f"the run in {run} is being trained, and has just got a better checkpoint; try "
                "again"
            )
        yield partial


def fit_tasks(
    model: HyperNetwork,
    info: TaskInfo,
    tasks: TaskList,
    data: str | PathLike[str],
    *,
    task: str | None = None,
    tune: str | None = None,
    tune_steps: int = 100,
    tune_lr: float = 1e-3,
    resize: bool = False,
    **settings: Any,
) -> tuple[TaskList, list[dict[str, Any]]]:
    """Fit all tasks of a folder together.

    Args:
        model: the hypernetwork, which gets the new tasks.
        info: the known tasks.
        tasks: the known tasks, as the run lists them.
        data: the folder, as `adapt_run` takes it.
        task: name of the one task that the folder holds.
        tune: part of each new task's model to train further, as `fine_tune` takes it.
        tune_steps: number of updates of this training.
        tune_lr: its learning rate.
        resize: resize images to the size that the model takes.
        **settings: settings of `fit_embeddings`.

    Returns:
        The tasks with the new ones added, and one row per new task: ``task``, ``classes``,
        ``images``, ``accuracy`` on them, ``test_images`` and ``test_accuracy`` (None
        without ``test/``) and ``seconds``.
    """
    check_integer("tune_steps", tune_steps, minimum=1)
    check_number("tune_lr", tune_lr, above=0)
    if tune is not None:
        some = torch.zeros(2, *info.image_shape, device=model.target.moments.device)
        tuned_parameters(model.materialize(0), tune, some)  # raises before any work is lost
    if task is not None:
        tasks.check_new(task)
    labelled = load_new_tasks(data, info.image_shape, task=task, resize=resize)
    for one in labelled:
        tasks.check_new(one.name)
    device = model.task_embedding.weight.device
    samples = {
        one.name: (info.normalise(one.train.pixels).to(device), one.train.labels.to(device))
        for one in labelled
    }
    classes = {one.name: len(one.classes) for one in labelled}
    fits = fit_embeddings(model, samples, n_classes=classes, **settings)
    rows = []
    for one in labelled:
        started = time.perf_counter()
        module, number = model.materialize(one.name), model.tasks.index(one.name)
        tensors = fitted_tensors(model, number)
        if tune is not None:
            before = {name: p.detach().clone() for name, p in module.named_parameters()}
            fine_tune(
                module,
                samples[one.name],
                tune=tune,
                n_classes=len(one.classes),
                steps=tune_steps,
                lr=tune_lr,
                seed=settings.get("seed", 0),
            )
            for name, parameter in module.named_parameters():
                if not torch.equal(parameter, before[name]):
                    tensors[f"tuned/{name}"] = parameter.detach()
        entry = TaskEntry(one.name, one.classes, tune=tune)
        tasks = tasks.add(entry, {k: t.cpu().clone() for k, t in tensors.items()})
        seconds = fits[one.name].seconds / len(labelled) + time.perf_counter() - started
        module.eval()
        row = {
            "task": one.name,
            "classes": list(one.classes),
            "images": len(one.train.labels),
            "accuracy": accuracy(module, *samples[one.name], len(one.classes)),
            "test_images": 0,
            "test_accuracy": None,
            "seconds": seconds,
        }
        if one.test is not None:
            test = info.normalise(one.test.pixels).to(device), one.test.labels.to(device)
            row["test_images"] = len(one.test.labels)
            row["test_accuracy"] = accuracy(module, *test, len(one.classes))
        rows.append(row)
    return tasks, rows
