"""What every task is made of: labelled images, held once as uint8.

Images are ``[n, C, H, W]``, labels ``[n]`` int64, indices into the source's class names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Images(NamedTuple):
    """Labelled images."""

    pixels: Tensor  # uint8 [n, C, H, W]
    labels: Tensor  # int64 [n]


@dataclass(frozen=True)
class Task:
    """A classification task over some classes of a source.

    Args:
        name: what people call it.
        classes: the source's classes, as indices; a class's place here is its label in the task.
        class_names: one for each of ``classes``.
        variant: which variant of the images the task sees, for task makers that alter them.
    """

    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    variant: int = 0


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images, parted into those to learn from and those to test on.

    Args:
        name: what people call it.
        classes: names of the classes, unique.
        train: images to train and validate on.
        test: images to test on, of the same shape.
        tasks: the tasks the source itself defines, as a folder of tasks does.

    Raises:
        TypeError: pixels are not uint8, or labels not int64.
        ValueError: shapes disagree, there are no images, or a label is out of range.

    >>> pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> images = Images(pixels, torch.tensor([0, 1, 0, 1]))
    >>> Source("blank", ("left", "right"), train=images, test=images).image_shape
    (1, 8, 8)
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    tasks: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"`classes` must be unique, got {list(self.classes)}")
        for part, images in (("train", self.train), ("test", self.test)):
            _check_images(part, images, len(self.classes))
        if self.train.pixels.shape[1:] != self.test.pixels.shape[1:]:
            raise ValueError(
                f"`train` and `test` must have images of one shape, got "
                f"{tuple(self.train.pixels.shape[1:])} and {tuple(self.test.pixels.shape[1:])}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


def _check_images(part: str, images: Images, n_classes: int) -> None:
    pixels, labels = images
    if pixels.dtype != torch.uint8 or labels.dtype != torch.int64:
        raise TypeError(
            f"`{part}` must have uint8 pixels and int64 labels, got {pixels.dtype} and "
            f"{labels.dtype}"
        )
    if pixels.ndim != 4 or labels.ndim != 1 or len(pixels) != len(labels) or not pixels.numel():
        raise ValueError(
            f"`{part}` must have pixels [n, C, H, W] and labels [n] with n at least 1, got "
            f"{list(pixels.shape)} and {list(labels.shape)}"
        )
    wrong = ((labels < 0) | (labels >= n_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"labels of `{part}` must be in 0..{n_classes - 1}, got {int(labels[row])} in row {row}"
        )
