"""Predictions of a run's models on image files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from sparsehyper._util.checks import check_integer
from sparsehyper.adaptation import identify_task
from sparsehyper.lab.data import find_images, load_images
from sparsehyper.lab.runs.loading import LoadedRun, load_run
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
        ValueError: the run is of a baseline, its tasks were trained on altered images, or an image
            has another size or cannot be read.
    """
    check_integer("batch_size", batch_size, minimum=1)
    loaded = load_run(directory, trust=trust)
    model, info = loaded.hypernetwork(), loaded.tasks
    if task is not None:
        loaded.task_list.check_known(task)
        loaded.check_plain(task)
    else:
        for altered in filter(loaded.altered_by, info.names):
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
