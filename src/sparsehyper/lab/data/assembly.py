"""`make_tasks`: from a source and a task maker to a `TaskSet`.

The split into training, validation and test images is made on the images, before any task. So no
image is ever in two splits, whatever images the tasks share.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsehyper._util.checks import check_type
from sparsehyper.lab.data.makers import TaskMaker
from sparsehyper.lab.data.source import Source, Task
from sparsehyper.lab.data.splits import check_fraction, digests, hold_out
from sparsehyper.lab.data.tasks import TaskSet, TaskSplit
from sparsehyper.lab.data.transforms import Transform

log = logging.getLogger(__name__)


def make_tasks(
    source: Source, maker: TaskMaker | None = None, *, val_fraction: float = 0.1, seed: int = 0
) -> TaskSet:
    """Make tasks of a source's images.

    An image is in one split only. Of an image in several, copies are dropped from the training
    images first (``copies_dropped`` counts these), then from the source's own validation images.
    If the source has no validation images of its own, some training images are held out for
    validation; copies of an image then stay together.

    Args:
        source: a source from `load_source` or `load_folder`, or your own.
        maker: description of the tasks; None for the tasks that the source itself defines.
        val_fraction: share of the training images of each class to validate on, in [0, 1). This
            and ``seed`` are for a source without validation images of its own.
        seed: seed of the choice of validation images, at least 0.

    Raises:
        ValueError: the maker does not fit the source, or a task is left without images.

    >>> from sparsehyper.lab.data import Split, load_source, make_tasks
    >>> tasks = make_tasks(load_source("digits"), Split(2))
    >>> tasks.names
    ('0-1', '2-3', '4-5', '6-7', '8-9')
    >>> tasks.train.batch(task=torch.tensor([0, 4]), index=torch.tensor([7, 7])).x.shape
    torch.Size([2, 1, 8, 8])
    """
    check_fraction("val_fraction", val_fraction)
    tasks, transform = _plan(source, maker)
    digest, test_digest = digests(source.train.pixels), digests(source.test.pixels)
    labels = source.train.labels.numpy()
    validation = source.val or source.train
    val_digest = digest if source.val is None else digests(validation.pixels)
    held_out = [test_digest] if source.val is None else [test_digest, val_digest]
    pool = np.flatnonzero(~np.isin(digest, np.concatenate(held_out)))
    copies = len(digest) - len(pool)
    if copies:
        log.info("%s: dropped %d training images that are held out too", source.name, copies)
    if not len(pool):
        raise ValueError(f"every training image of `source` {source.name!r} is held out too")
    if source.val is None:
        held = hold_out(digest[pool], labels[pool], val_fraction, seed)
        pool, val = pool[~held], pool[held]
    else:
        val = np.flatnonzero(~np.isin(val_digest, test_digest))
    rows = torch.from_numpy(pool), torch.from_numpy(val), torch.arange(len(source.test.labels))
    train = rows[0]
    mean, std = _channel_statistics(source.train.pixels, train)
    splits = [
        TaskSplit(images, own_rows, tasks, transform, mean, std)
        for images, own_rows in zip((source.train, validation, source.test), rows, strict=True)
    ]
    _check_counts(tasks, source, train, splits, source.val is None and val_fraction == 0)
    given = () if source.val is None else (val_digest, validation.labels.numpy())
    return TaskSet(
        names=tuple(task.name for task in tasks),
        classes=tuple(task.class_names for task in tasks),
        image_shape=source.image_shape,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(
            tasks,
            transform,
            source.image_shape,
            digest,
            labels,
            test_digest,
            source.test.labels.numpy(),
            pool,
            val,
            *given,
        ),
        copies_dropped=copies,
        train=splits[0],
        val=splits[1],
        test=splits[2],
    )


def _plan(source: Source, maker: TaskMaker | None) -> tuple[Sequence[Task], Transform | None]:
    if maker is not None:
        check_type("maker", maker, TaskMaker, "tasks such as Split(2), or None")
        return maker.tasks(source), maker.transform(source)
    if not source.tasks:
        raise ValueError(
            f"`maker` is needed, as source {source.name!r} defines no tasks itself; "
            f"for example Split(2)"
        )
    return source.tasks, None


def _check_counts(
    tasks: Sequence[Task],
    source: Source,
    train: Tensor,
    splits: Sequence[TaskSplit],
    without_validation: bool,
) -> None:
    trained = set(source.train.labels[train].tolist())
    for task in tasks:
        for index, name in zip(task.classes, task.class_names, strict=True):
            if index not in trained:
                raise ValueError(f"class {name!r} of task {task.name!r} has no training images")
    for part, split in zip(("training", "validation", "test"), splits, strict=True):
        if 0 in split.counts and not (part == "validation" and without_validation):
            name = tasks[split.counts.index(0)].name
            raise ValueError(
                f"task {name!r} has no {part} images; give its classes more different images"
            )


def _channel_statistics(
    pixels: Tensor, rows: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = [], []
    for channel in range(pixels.shape[1]):
        # Integers up to the last step are exact: the result is the same on every machine, and a
        # constant channel has variance 0.
        counts = torch.bincount(pixels[rows, channel].flatten(), minlength=256).tolist()
        n = sum(counts)
        total = sum(count * value for value, count in enumerate(counts))
        squares = sum(count * value**2 for value, count in enumerate(counts))
        mean.append(total / (n * 255))
        std.append(math.sqrt(n * squares - total**2) / (n * 255) or 1.0)
    return tuple(mean), tuple(std)


def _fingerprint(tasks: Sequence[Task], transform: Transform | None, *parts: Any) -> str:
    digest = blake2b(digest_size=8)
    described = [(t.name, t.classes, t.class_names, t.variant) for t in tasks]
    digest.update(json.dumps([described, type(transform).__name__]).encode())
    if transform is not None:
        digest.update(transform.settings.numpy().tobytes())
    for part in parts:
        digest.update(np.asarray(part).tobytes())
    return digest.hexdigest()
