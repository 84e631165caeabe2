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
from sparsehyper.adaptation import identify_task
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import find_images, load_images
from sparsehyper.lab.runs.loading import LoadedRun, load_run
from sparsehyper.lab.runs.setup import TaskInfo
from sparsehyper.training import processes


@dataclass(frozen=True)
class Prediction:
    """Result of `predict_run`.

    Attributes:
        task: the task whose model was used.
        task_scores: score of every task, lower is likelier; None if the task was given.
        classes: class names of the task.
        files: image files.
        labels: likeliest class of each image.
        probabilities: probability of each class, for each image.
        accuracy: share of correct labels, if every image is in a folder named after a class; else
            None.
    """

    task: str
    task_scores: dict[str, float] | None
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
            "task_scores": self.task_scores,
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
        task: the task whose model to use. None identifies the task from the images, which must all
            be of one task: the task with the most certain predictions. Tasks that were trained on
            altered images are left out.
        resize: resize images to the size that the model takes. Always done for a run whose own
            images were resized.
        device: ``"auto"`` or a device such as ``"cpu"``.
        batch_size: number of images at a time.
        trust: as `load_run` takes it.

    Raises:
        FileNotFoundError: no image, or as `load_run`.
        KeyError: an unknown task.
        ValueError: no task is given and the run is of a baseline, which identifies none, or the
            images are in folders of several tasks; tasks were trained on altered images; or an
            image has another size or cannot be read.
    """
    check_integer("batch_size", batch_size, minimum=1)
    loaded = load_run(directory, trust=trust)
    info = loaded.tasks
    if task is not None:
        loaded.task_list.check_known(task)
        loaded.check_plain(task)
    else:
        model = _identifying(loaded)
        for altered in filter(loaded.altered_by, model.task_names):
            if len(model.task_names) == 1:
                raise ValueError(
                    f"`directory` {directory} knows only tasks trained on images altered by "
                    f"{loaded.altered_by(altered)!r}, which image files are not; export a model, "
                    "and alter its input in the same way"
                )
            model.remove_task(altered)
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
    scores = None
    if task is None:
        model.to(here)
        classes_of = dict(zip(info.names, info.classes, strict=True))
        n_classes = [len(classes_of[name]) for name in model.task_names]
        found = identify_task(model, x.to(here), n_classes=n_classes, batch_size=batch_size)
        task, scores = found.name, found.scores
    classes = info.classes[info.names.index(task)]
    probabilities = _probabilities(loaded, task, x, len(classes), here, batch_size)
    labels = [classes[int(i)] for i in probabilities.argmax(1)]
    folders = [path.parent.name for path in paths]
    right = [label == folder for label, folder in zip(labels, folders, strict=True)]
    return Prediction(
        task,
        scores,
        classes,
        tuple(map(str, paths)),
        tuple(labels),
        tuple(map(tuple, probabilities.tolist())),
        sum(right) / len(right) if set(folders) <= set(classes) else None,
    )


def _identifying(loaded: LoadedRun) -> HyperNetwork:
    """The model that identifies tasks; a warning names those that it does not know."""
    if not isinstance(loaded.model, HyperNetwork):
        raise ValueError(
            f"`task` must be given, as the run in {loaded.directory} has no hypernetwork to "
            f"identify it; the tasks are: {listed(loaded.tasks.names)}"
        )
    if own := [e.name for e in loaded.task_list.entries if e.model is not None]:
        warnings.warn(
            f"tasks with models of their own are not identified, give one as `task`: {listed(own)}",
            stacklevel=3,
        )
    return loaded.model


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
