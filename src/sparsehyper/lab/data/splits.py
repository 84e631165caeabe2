"""The choice of held-out images, by their content.

Whether an image is held out depends on its pixels, its class and the seed alone. So copies of an
image always stay together, and neither the order of the images nor the tasks made of them matter.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsehyper._util.checks import check_integer, check_number


def digests(pixels: Tensor) -> NDArray[np.uint64]:
    """Hash each image of ``[n, C, H, W]``; images with the same pixels have the same hash."""
    rows = pixels.flatten(1).numpy()
    numbers = (_hash(row) for row in np.ascontiguousarray(rows))
    return np.fromiter(numbers, dtype=np.uint64, count=len(rows))


def hold_out(
    digest: NDArray[np.uint64], labels: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Choose a fraction of the distinct images of every class.

    At least one image is held out of every class with two or more distinct images, and never all of
    a class, except where an image belongs to two classes.

    Args:
        digest: ``[n]``, from `digests`.
        labels: ``[n]``.
        fraction: share to hold out, in [0, 1).
        seed: at least 0.

    Returns:
        ``[n]``, true for held-out images. Images with the same digest have the same value.

    Raises:
        ValueError: ``fraction`` or ``seed`` is out of range.

    >>> digest = np.arange(10, dtype=np.uint64)
    >>> int(hold_out(digest, digest.astype(np.int64) % 2, fraction=0.4, seed=0).sum())
    4
    """
    check_fraction("fraction", fraction)
    check_integer("seed", seed, minimum=0)
    if fraction == 0:
        return np.zeros(len(digest), dtype=bool)
    key = seed.to_bytes(8, "little")
    distinct, inverse = np.unique(digest, return_inverse=True)
    rank = np.array([_hash(d, key) for d in distinct], dtype=np.uint64)[inverse]
    held: list[NDArray[np.uint64]] = []
    for label in np.unique(labels):
        ranks = np.unique(rank[labels == label])
        share = max(1, math.floor(fraction * len(ranks) + 0.5))
        held.append(ranks[: min(share, len(ranks) - 1)])
    return np.isin(rank, np.concatenate(held))


def check_fraction(argument: str, fraction: float) -> None:
    """Raise unless ``fraction`` is in [0, 1)."""
    check_number(argument, fraction, minimum=0)
    if fraction >= 1:
        raise ValueError(f"`{argument}` must be less than 1, got {fraction}")


def _hash(data: NDArray[np.generic] | np.uint64, key: bytes = b"") -> int:
    return int.from_bytes(blake2b(data.tobytes(), digest_size=8, key=key).digest(), "little")
