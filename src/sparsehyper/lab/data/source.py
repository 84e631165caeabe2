"""Sources: the labelled images that tasks are made of, held once as uint8.

Images are ``[n, C, H, W]``; labels are integers ``[n]``, indices into the source's class names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from sparsehyper._util.checks import check_type, is_whole


class Images(NamedTuple):
    """Labelled images."""

    pixels: Tensor  # uint8 [n, C, H, W]
    labels: Tensor  # integers [n], in a `Source` int64


@dataclass(frozen=True)
class Task:
    """A classification task over some classes of a source.

    Args:
        name: name of the task.
        classes: class numbers in the source; a class's position here is its label in the task.
        class_names: name of each of ``classes``.
        variant: number of the variant of the images that the task sees, for makers that alter them.
    """

    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    variant: int = 0


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images, divided into training and test images, and maybe validation images.

    Args:
        name: name of the source.
        classes: class names, unique.
        train: images to train and validate on.
        test: images to test on, of the same shape.
        tasks: tasks that the source itself defines, as a folder of tasks does.
        val: images to validate on; None to take some of ``train``.

    Raises:
        TypeError: pixels are not uint8, or labels are not integers.
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
    val: Images | None = None

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"`classes` must be unique, got {list(self.classes)}")
        for part, images in (("train", self.train), ("test", self.test), ("val", self.val)):
            if images is None:
                continue
            _check_images(part, images, len(self.classes))
            object.__setattr__(self, part, Images(images.pixels, images.labels.long()))
            if images.pixels.shape[1:] != self.train.pixels.shape[1:]:
                raise ValueError(
                    f"`train` and `{part}` must have images of one shape, got "
                    f"{tuple(self.train.pixels.shape[1:])} and {tuple(images.pixels.shape[1:])}"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


def join_sources(sources: Sequence[Source]) -> Source:
    """Join several sources into one, in which each of them is a task.

    Images are centred on black at the largest height and width, in colour if any source has colour.
    Class names get their source's name in front, as in ``mnist 3``.

    Raises:
        ValueError: fewer than two sources, or the same one twice.

    >>> images = Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> wide = Images(torch.zeros(2, 3, 8, 9, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> both = join_sources([
    ...     Source("grey", ("a", "b"), images, images), Source("wide", ("a", "b"), wide, wide)
    ... ])
    >>> both.name, both.classes, both.image_shape
    ('grey+wide', ('grey a', 'grey b', 'wide a', 'wide b'), (3, 8, 9))
    """
    names = [source.name for source in sources]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`sources` must be at least 2 different sources, got {names}")
    shapes = [source.image_shape for source in sources]
    shape = (max(s[0] for s in shapes), max(s[1] for s in shapes), max(s[2] for s in shapes))
    validation = [source.val for source in sources if source.val is not None]
    if validation and len(validation) < len(sources):
        raise ValueError("`sources` must all have validation images, or none of them")
    starts = [0, *accumulate(len(source.classes) for source in sources)]
    classes = [tuple(f"{s.name} {name}" for name in s.classes) for s in sources]
    return Source(
        "+".join(names),
        tuple(chain(*classes)),
        _merge([source.train for source in sources], shape, starts),
        _merge([source.test for source in sources], shape, starts),
        tuple(
            Task(name, tuple(range(start, start + len(of_source))), of_source)
            for name, start, of_source in zip(names, starts, classes, strict=False)
        ),
        _merge(validation, shape, starts) if validation else None,
    )


def _merge(parts: Sequence[Images], shape: tuple[int, int, int], starts: Sequence[int]) -> Images:
    pixels = torch.zeros(sum(len(p.labels) for p in parts), *shape, dtype=torch.uint8)
    first = 0
    for part in parts:
        end = first + len(part.labels)
        height, width = part.pixels.shape[2:]
        top, left = (shape[1] - height) // 2, (shape[2] - width) // 2
        # A grey image is copied into every channel.
        pixels[first:end, :, top : top + height, left : left + width] = part.pixels
        first = end
    labels = [part.labels + start for part, start in zip(parts, starts, strict=False)]
    return Images(pixels, torch.cat(labels))


def _check_images(part: str, images: Images, n_classes: int) -> None:
    pixels, labels = images
    for of_images in images:
        check_type(part, of_images, Tensor, "tensors of pixels and labels")
    if pixels.dtype != torch.uint8 or not is_whole(labels):
        raise TypeError(
            f"`{part}` must have uint8 pixels and integer labels, got {pixels.dtype} and "
            f"{labels.dtype}"
        )
    if pixels.ndim != 4 or labels.ndim != 1 or len(pixels) != len(labels) or not pixels.numel():
        raise ValueError(
            f"`{part}` must have pixels [n, C, H, W] and labels [n] with n at least 1, got "
            f"{list(pixels.shape)} and {list(labels.shape)}"
        )
    labels = labels.long()
    wrong = ((labels < 0) | (labels >= n_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"labels of `{part}` must be in 0..{n_classes - 1}, got {int(labels[row])} in row {row}"
        )
