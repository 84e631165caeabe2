"""Predictions of a run's models on image files."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sparsehyper._util.checks import check_integer
from sparsehyper._util.text import listed
from sparsehyper.adaptation import Identified, TaskProfiles, identify_task
from sparsehyper.lab.data import TaskInfo, find_images, load_images
from sparsehyper.lab.runs.conditioners import is_by_task
from sparsehyper.lab.runs.loading import LoadedRun, load_run
from sparsehyper.lab.runs.profiles import find_profiles
from sparsehyper.training import processes

_LARGE_SHARE = 0.1  # of the images, which is worth telling


@dataclass(frozen=True)
class Prediction:
    """Result of `predict_run`.

    Attributes:
        task: the task whose model was used.
        identified: how the task was told from the images; None if it was given.
        classes: class names of the task.
        files: image files.
        labels: likeliest class of each image.
        probabilities: probability of each class, for each image.
        accuracy: share of correct labels, if every image is in a folder named after a class; else
            None.
    """

    task: str
    identified: Identified | None
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with one entry per image."""
        images = [
            {
                "file": file,
                "label": label,
                "probability": max(values),
                "probabilities": dict(zip(self.classes, values, strict=True)),
            }
            for file, label, values in zip(self.files, self.labels, self.probabilities, strict=True)
        ]
        return {
            "task": self.task,
            "task_probabilities": self.identified and self.identified.probabilities,
            "p_value": self.identified and self.identified.p_value,
            "accuracy": self.accuracy,
            "images": images,
        }


@torch.no_grad()
def predict_run(
    directory: str | PathLike[str],
    images: Sequence[str | PathLike[str]],
    *,
    task: str | None = None,
    resize: bool = False,
    device: str = "auto",
    batch_size: int = 500,
    trust: Collection[str] = (),
) -> Prediction:
    """Classify images with the best model of a run.

    Args:
        directory: directory of the run, adapted or not.
        images: files, folders (searched recursively) and globs.
        task: the task whose model to use. None tells it from the images, which must all be of one
            task, by what those of each task look like. Tasks that were trained on altered images
            are left out.
        resize: resize images to the size that the model takes. Always done for a run whose own
            images were resized.
        device: ``"auto"`` or a device such as ``"cpu"``.
        batch_size: number of images at a time.
        trust: as `load_run` takes it.

    Raises:
        FileNotFoundError: no image, or as `load_run`.
        KeyError: an unknown task.
        ValueError: no task is given and the run has no hypernetwork with one model a task; images
            are in folders of several tasks, or not like those of any one; tasks were trained on
            altered images; or an image has another size or cannot be read.
    """
    check_integer("batch_size", batch_size, minimum=1)
    loaded = load_run(directory, trust=trust)
    info, profiles = loaded.tasks, None
    if task is not None:
        loaded.check_plain(task)
    else:
        profiles = _profiles(loaded)
    paths = [path for pattern in images for path in find_images(pattern)]
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise FileNotFoundError("`images` must name at least one image, got none")
    _check_one_task(paths, info, task)
    resize = resize or loaded.experiment.data.image_size is not None
    x = torch.cat(
        [
            info.normalise(load_images(paths[i : i + batch_size], info.image_shape, resize=resize))
            for i in range(0, len(paths), batch_size)
        ]
    )
    here = processes(device).device
    identified = None
    if profiles is not None:
        identified = _identify(loaded, profiles, x, here)
        task = identified.likeliest
    assert task is not None
    classes = loaded.task_list.entry(task).classes
    probabilities = _probabilities(loaded, task, x, len(classes), here, batch_size)
    labels = [classes[int(i)] for i in probabilities.argmax(1)]
    folders = [path.absolute().parent.name for path in paths]
    right = [label == folder for label, folder in zip(labels, folders, strict=True)]
    return Prediction(
        task,
        identified,
        classes,
        tuple(map(str, paths)),
        tuple(labels),
        tuple(map(tuple, probabilities.tolist())),
        sum(right) / len(right) if set(folders) <= set(classes) else None,
    )


def _profiles(loaded: LoadedRun) -> TaskProfiles:
    """The profiles of the tasks whose images were not altered."""
    if not is_by_task(loaded.model):
        raise ValueError(
            f"`task` must be given, as the run in {loaded.directory} has no hypernetwork with one "
            f"model a task to tell it by; the tasks are: {listed(loaded.tasks.names)}"
        )
    if made := _only_altered(loaded):
        raise ValueError(
            f"`directory` {loaded.directory} knows only tasks trained on images altered by "
            f"{made!r}, which image files are not; export a model, and alter its input in the same "
            "way"
        )
    profiles = find_profiles(loaded)
    names = loaded.tasks.names
    missing = [name for name in names if profiles is None or name not in profiles.tasks]
    if profiles is None or missing:
        raise ValueError(
            f"`task` is needed: what the images of {listed(missing)} look like is not stored in "
            f"{loaded.directory}, and the images that it was trained on are not at hand"
        )
    for name in filter(loaded.altered_by, names):
        profiles = profiles.remove(name)
    return profiles


def _only_altered(loaded: LoadedRun) -> str | None:
    """How the images of all tasks were altered; None if those of some were not."""
    made = [loaded.altered_by(name) for name in loaded.tasks.names]
    return made[0] if all(made) else None


def _identify(
    loaded: LoadedRun, profiles: TaskProfiles, x: torch.Tensor, device: torch.device
) -> Identified:
    """Tell the task of images; raise ``ValueError`` if they are not like those of one."""
    model = loaded.hypernetwork().to(device)
    found = identify_task(model, profiles.to(device), x.to(device))
    if found.name is not None:
        return found
    shares = sorted(((share, name) for name, share in found.shares.items()), reverse=True)
    several = [f"{share:.0%} {name!r}" for share, name in shares if share >= _LARGE_SHARE]
    alike = f"the task most like them is {found.likeliest!r}"
    if len(several) > 1:
        alike = f"if they are of several tasks, about {', '.join(several)}: predict each alone"
    raise ValueError(
        f"the images are not like those of any one task of {loaded.directory} (p = "
        f"{found.p_value:.2g}); {alike}; name the task by `task`, or learn a new one by `adapt`"
    )


def _check_one_task(paths: Sequence[Path], info: TaskInfo, task: str | None) -> None:
    """Tell of images in folders ``<task>/<class>`` of several tasks, or of others than ``task``.

    Raises:
        ValueError: there are several, and no task is given.
    """
    classes = dict(zip(info.names, info.classes, strict=True))
    folders = dict.fromkeys(path.absolute().parent for path in paths)
    found = {f.parent.name for f in folders if f.name in classes.get(f.parent.name, ())}
    if task is None and len(found) > 1:
        raise ValueError(
            f"`images` must all be of one task, got the folders of {listed(sorted(found))}; give "
            "one of them at a time"
        )
    if task is not None and (others := sorted(found - {task})):
        warnings.warn(
            f"`task` is {task!r}, but images are in the folders of {listed(others)}", stacklevel=3
        )


def _probabilities(
    loaded: LoadedRun,
    task: str,
    x: torch.Tensor,
    n_classes: int,
    device: torch.device,
    batch_size: int,
) -> torch.Tensor:
    module = loaded.materialize(task).to(device)
    logits = [module(some.to(device))[:, :n_classes].cpu() for some in x.split(batch_size)]
    return torch.cat(logits).float().softmax(1)
