"""The profiles of a run's tasks, by which `predict` tells the task of images.

========================  =========================================================================
``profiles.json``         names of the tasks, in order; id of the run, digests of the numbers and of
                          the checkpoint
``profiles.safetensors``  the numbers, as `TaskProfiles.to_tensors` names them
========================  =========================================================================

Training writes them last. Runs without them get them from their images, if these are at hand.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import torch
from torch import Tensor

from sparsehyper._util.files import CheckpointError
from sparsehyper.adaptation import TaskProfiles, task_profiles
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, TaskSplit, images_of
from sparsehyper.lab.runs.loading import LoadedRun, recorded_tasks
from sparsehyper.lab.runs.records import read_record, tensors_of, write_record
from sparsehyper.lab.runs.setup import load_tasks
from sparsehyper.training.directory import read_id

_FORMAT = 3
_BEFORE_LABELS = 2  # typical scores were those without labels alone
_BEFORE_HEADS = 1  # models that end in a head had their inputs as features
_ABOUT, _TENSORS = "profiles.json", "profiles.safetensors"
_MOST_IMAGES = 500  # of a task, in each split

Images = dict[str, tuple[Tensor, Tensor]]
"""Normalised images and their classes, by task."""


def make_profiles(model: HyperNetwork, tasks: TaskSet) -> TaskProfiles:
    """Profiles of the tasks that a model was trained on, calibrated on their validation images."""
    return task_profiles(model, _images(tasks, tasks.train), validation=_images(tasks, tasks.val))


def write_profiles(directory: Path, profiles: TaskProfiles, checkpoint: str) -> None:
    """Write profiles into a run directory, in place of older ones.

    Args:
        directory: the run directory.
        profiles: the profiles.
        checkpoint: `Checkpoint.id` of the one that they were made with.
    """
    tensors = {name: t.cpu().contiguous() for name, t in profiles.to_tensors().items()}
    record = {
        "format": _FORMAT,
        "run": read_id(directory),
        "checkpoint": checkpoint,
        "tasks": list(profiles.tasks),
    }
    write_record(directory / _ABOUT, record, tensors)


def find_profiles(loaded: LoadedRun) -> TaskProfiles | None:
    """The profiles of a run's tasks: those in its directory, else from its images.

    Returns:
        The profiles; None if there are none and the images that the run was trained on are not
        where they were, or have changed.

    Raises:
        CheckpointError: the files are damaged.
    """
    return read_profiles(loaded) or _from_images(loaded)


def read_profiles(loaded: LoadedRun) -> TaskProfiles | None:
    """The profiles in a run's directory; None without any, or if the model is another now.

    Raises:
        CheckpointError: the files are damaged.
    """
    path = loaded.directory / _ABOUT
    if not path.exists():
        return None
    record = read_record(path, (_BEFORE_HEADS, _BEFORE_LABELS, _FORMAT))
    if record["format"] == _BEFORE_HEADS and loaded.hypernetwork().head is not None:
        return None
    if record.get("run") != read_id(loaded.directory):
        raise CheckpointError(f"{path} belongs to another run")
    if record.get("checkpoint") != loaded.checkpoint:
        return None  # training went on
    names, tensors = record.get("tasks"), tensors_of(record, path)
    known = loaded.tasks.names
    if not isinstance(names, list) or not names or not all(name in known for name in names):
        raise CheckpointError(f"{path} is damaged: its tasks are not those of the run")
    try:
        profiles = TaskProfiles.from_tensors(names, tensors)
        _check(profiles, tensors.keys(), loaded.hypernetwork())
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{loaded.directory / _TENSORS} is damaged: {error}") from error
    return profiles


def own_images(loaded: LoadedRun, most: int = _MOST_IMAGES) -> dict[str, Images] | None:
    """Images that a run was trained on, normalised, if they are at hand.

    Args:
        loaded: the run.
        most: largest number of images of a task.

    Returns:
        Images of each trained task, by name, in ``"train"`` and ``"val"``; None if they are not
        where they were, or have changed.
    """
    trained = {e.row: e.name for e in loaded.task_list.entries if e.row is not None}
    try:
        tasks = load_tasks(loaded.experiment.data, known=recorded_tasks(loaded.directory))
    except (OSError, KeyError, ValueError):
        return None
    if tasks.fingerprint != loaded.tasks.fingerprint or not trained:
        return None
    kept = tasks.select([tasks.names[row] for row in trained])
    names = dict(zip(kept.names, trained.values(), strict=True))
    return {
        part: {names[name]: own for name, own in _images(kept, split, most).items()}
        for part, split in (("train", kept.train), ("val", kept.val))
    }


def _from_images(loaded: LoadedRun) -> TaskProfiles | None:
    if any(entry.row is None for entry in loaded.task_list.entries):
        return None  # the images of tasks that were added are not part of the run
    images = own_images(loaded)
    if images is None:
        return None
    return task_profiles(loaded.hypernetwork(), images["train"], validation=images["val"])


def _images(tasks: TaskSet, split: TaskSplit, most: int = _MOST_IMAGES) -> Images:
    return {
        name: images_of(split, task, most)
        for task, name in enumerate(tasks.names)
        if split.counts[task]
    }


def _check(profiles: TaskProfiles, names: Set[str], model: HyperNetwork) -> None:
    """Raise ``ValueError`` unless the numbers are finite and fit each other and the model.

    Args:
        profiles: the profiles.
        names: names of the tensors of the file.
        model: the model.
    """
    space, dim = profiles.space, len(profiles.space.centre)
    tensors, kinds = profiles.to_tensors(), 1 if len(profiles.calibration.temperature) == 1 else 2
    target = model.target
    rows = target.statistics.row(target.module, None)
    inputs, features = len(space.input_mean), len(space.feature_mean)
    shapes: dict[str, list[int]] = {
        "space/embedding": [model.conditioner.dim],
        "space/input_mean": [inputs],
        "space/input_basis": [inputs, space.input_basis.shape[-1]],
        "space/feature_mean": [features],
        "space/feature_basis": [features, dim - space.input_basis.shape[-1]],
        "space/whitener": [dim, dim],
        "space/centre": [dim],
        "space/between": [dim],
        "calibration/temperature": [kinds],
        "calibration/most": [kinds],
        "calibration/quantiles": [kinds, 2, profiles.calibration.quantiles.shape[-1]],
    }
    shapes |= {f"space/statistics/{i}": list(row.shape) for i, row in enumerate(rows)}
    for i, profile in enumerate(profiles.tasks.values()):
        classes = profile.counts.numel()
        shapes |= {
            f"tasks/{i}/counts": [classes],
            f"tasks/{i}/means": [classes, dim],
            f"tasks/{i}/score_means": [kinds, 2, classes],
            f"tasks/{i}/score_stds": [kinds, 2],
            f"tasks/{i}/held": [kinds],
        }
    if names != shapes.keys():
        raise ValueError(f"unexpected tensors {sorted(names ^ shapes.keys())}")
    for name, shape in shapes.items():
        found = tensors[name]
        statistic = name.removeprefix("space/statistics/")
        dtype = rows[int(statistic)].dtype if statistic != name else torch.float32
        if list(found.shape) != shape or found.dtype != dtype or not found.isfinite().all():
            raise ValueError(f"tensor {name!r} does not fit")
