"""Runs with more tasks than they were trained on.

`adapt_run` learns new tasks and writes a new run directory. A hypernetwork learns an embedding; a
baseline learns a last layer on its shared trunk, or on the best of its experts. The new directory
shares the weights of the original run, which is left as it is:

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
import inspect
import os
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.files import CheckpointError, check_absent, read_file, whole
from sparsehyper.adaptation import fine_tune, fit_embeddings
from sparsehyper.adaptation.tune import tuned_parameters
from sparsehyper.analysis import nearest_vectors, task_embeddings
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import LabelledTask, load_new_tasks
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.lab.runs.loading import LoadedRun, load_run
from sparsehyper.lab.runs.ordinary import ModelForm, tensors_of
from sparsehyper.lab.runs.probes import best_of
from sparsehyper.lab.runs.profiles import find_profiles, read_profiles, write_profiles
from sparsehyper.lab.runs.task_list import (
    Measured,
    TaskEntry,
    TaskList,
    fitted_tensors,
    write_tasks,
)
from sparsehyper.training import processes
from sparsehyper.training.checkpoint import (
    CHECKPOINTS,
    DIGESTS_FILE,
    checkpoints_of,
    link_checkpoint,
    open_checkpoint,
)
from sparsehyper.training.directory import read_id

# Share of the way from the commonest class to all images right below which a task was not learned.
_LEAST_LEARNED = 0.2


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
        ValueError: a name is already taken, or images or settings do not fit.
    """
    check_absent("out", Path(out))
    loaded = load_run(directory, trust=trust)
    model = loaded.model.to(processes(device).device)
    profiles = find_profiles(loaded) if isinstance(model, HyperNetwork) else None
    resize = resize or loaded.experiment.data.image_size is not None
    with sharing_weights(Path(directory), Path(out), loaded.digests) as partial:
        tasks, rows = fit_tasks(loaded, data, task=task, resize=resize, **settings)
        write_tasks(partial, tasks, loaded.digests)
        if profiles is not None and isinstance(model, HyperNetwork):
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
        One row per task: its name as ``task``, its ``classes``, its ``origin``
        (`TaskEntry.origin`), what was ``measured`` when it was learned (as `Measured`, or None),
        and the name of the ``nearest`` other task with the ``cosine`` of the angle between their
        normalised embeddings, both None for a task without an embedding.
    """
    loaded = load_run(directory, trust=trust)
    model = loaded.model
    nearest: dict[str, tuple[str | None, float | None]] = {}
    if isinstance(model, HyperNetwork):
        nearest = dict(zip(model.task_names, nearest_tasks(model), strict=True))
    rows = []
    for entry in loaded.task_list.entries:
        other, cosine = nearest.get(entry.name, (None, None))
        rows.append(
            {
                "task": entry.name,
                "classes": list(entry.classes),
                "origin": entry.origin,
                "measured": entry.measured and dataclasses.asdict(entry.measured),
                "nearest": other,
                "cosine": cosine,
            }
        )
    return rows


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
    loaded: LoadedRun,
    data: str | PathLike[str],
    *,
    task: str | None = None,
    tune: str | None = None,
    tune_steps: int = 100,
    tune_lr: float = 1e-3,
    resize: bool = False,
    **settings: Any,
) -> tuple[TaskList, list[dict[str, Any]]]:
    """Learn all tasks of a folder.

    Args:
        loaded: the run; a hypernetwork gets the new tasks.
        data: the folder, as `adapt_run` takes it.
        task: name of the one task that the folder holds.
        tune: part of each new task's model to train further, as `fine_tune` takes it.
        tune_steps: number of updates of this training.
        tune_lr: its learning rate.
        resize: resize images to the size that the model takes.
        **settings: settings of `fit_embeddings`; a baseline takes ``seed`` alone.

    Returns:
        The tasks with the new ones added, and one row per new task: ``task``, ``classes``,
        ``method``, ``images``, ``accuracy`` on them, ``test_images`` and ``test_accuracy`` (None
        without ``test/``) and ``seconds``. A warning tells of a task that was hardly learned.
    """
    model, info, tasks = loaded.model, loaded.tasks, loaded.task_list
    if not isinstance(model, HyperNetwork):
        defaults = inspect.signature(fit_embeddings).parameters
        for name, value in settings.items():
            if name != "seed" and value != defaults[name].default:
                raise ValueError(
                    f"`{name}` is for embeddings, which a run of {type(model).__name__} has not; "
                    f"got {value!r}"
                )
    check_integer("tune_steps", tune_steps, minimum=1)
    check_number("tune_lr", tune_lr, above=0)
    device = next(model.parameters()).device
    if tune is not None:
        some = torch.zeros(2, *info.image_shape, device=device)
        tuned_parameters(_materialized(model, 0), tune, some)  # raises before any work is lost
    if task is not None:
        tasks.check_new(task)
    labelled = load_new_tasks(data, info.image_shape, task=task, resize=resize)
    for one in labelled:
        tasks.check_new(one.name)
    samples = {
        one.name: (info.normalise(one.train.pixels).to(device), one.train.labels.to(device))
        for one in labelled
    }
    classes = {one.name: len(one.classes) for one in labelled}
    method, seconds = None, 0.0
    if isinstance(model, HyperNetwork):
        fits = fit_embeddings(model, samples, n_classes=classes, **settings)
        seconds = max(fit.seconds for fit in fits.values()) / len(labelled)
    else:
        method = "last layer on the shared trunk"
        if isinstance(model, Experts):
            method = "last layer on the nearest expert"
    rows = []
    for one in labelled:
        started = time.perf_counter()
        x, y = samples[one.name]
        module = _fitted(model, one.name, x, y, classes[one.name])
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        if tune is not None:
            fine_tune(
                module,
                (x, y),
                tune=tune,
                n_classes=classes[one.name],
                steps=tune_steps,
                lr=tune_lr,
                seed=settings.get("seed", 0),
            )
        module.eval()
        form = None
        if isinstance(model, HyperNetwork):
            tensors = fitted_tensors(model, model.tasks.index(one.name))
            for name, parameter in module.named_parameters():
                if not torch.equal(parameter, before[name]):
                    tensors[f"tuned/{name}"] = parameter.detach()
        else:
            form, tensors = ModelForm((classes[one.name],)), tensors_of([module])
        measured = _measured(module, one, (x, y), loaded)
        entry = TaskEntry(one.name, one.classes, None, None, tune, method, form, measured)
        tasks = tasks.add(entry, {k: t.cpu().clone() for k, t in tensors.items()})
        _warn_if_hardly_learned(one, measured)
        rows.append(
            {
                "task": one.name,
                "classes": list(one.classes),
                "method": tasks.entries[-1].origin,
                **dataclasses.asdict(measured),
                "seconds": seconds + time.perf_counter() - started,
            }
        )
    return tasks, rows


def _materialized(model: nn.Module, task: int | str) -> nn.Module:
    assert isinstance(model, (HyperNetwork, Experts, SharedTrunk))
    return model.materialize(task)


def _fitted(model: nn.Module, name: str, x: Tensor, y: Tensor, n_classes: int) -> nn.Module:
    """A new task's ordinary model, before it is tuned; a hypernetwork has its embedding already."""
    if isinstance(model, HyperNetwork):
        return model.materialize(name)
    assert isinstance(model, (Experts, SharedTrunk))
    known = range(len(model.task_names) if isinstance(model, Experts) else 1)
    return best_of((model.materialize(task).eval() for task in known), x, y, n_classes)


def _measured(
    module: nn.Module, one: LabelledTask, own: tuple[Tensor, Tensor], loaded: LoadedRun
) -> Measured:
    own_accuracy = accuracy(module, *own, len(one.classes))
    if one.test is None:
        return Measured(len(own[1]), own_accuracy)
    x, y = loaded.tasks.normalise(one.test.pixels).to(own[0]), one.test.labels.to(own[1])
    return Measured(len(own[1]), own_accuracy, len(y), accuracy(module, x, y, len(one.classes)))


def _warn_if_hardly_learned(one: LabelledTask, measured: Measured) -> None:
    """Warn of a model that knows hardly more of its own images than their commonest class."""
    commonest = float(one.train.labels.bincount().max()) / len(one.train.labels)
    if measured.accuracy < commonest + _LEAST_LEARNED * (1 - commonest):
        warnings.warn(
            f"the new task {one.name!r} was hardly learned: {measured.accuracy:.0%} of its own "
            f"{measured.images} images are right, and {commonest:.0%} are of one class; train more "
            "of its model (`--tune all`), or adapt a run of shared_trunk",
            stacklevel=3,
        )
