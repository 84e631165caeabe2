from collections.abc import Callable

import pytest
import torch

from sparsehyper.lab.data import Images, Source


def _noise(
    n: int = 120, n_classes: int = 4, shape: tuple[int, int, int] = (1, 6, 5), seed: int = 0
) -> Source:
    rng = torch.Generator().manual_seed(seed)

    def images() -> Images:
        pixels = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=rng)
        return Images(pixels, torch.arange(n) % n_classes)

    return Source("noise", tuple("abcdefghij"[:n_classes]), images(), images())


@pytest.fixture
def noise() -> Callable[..., Source]:
    """Makes a source of random images that all differ."""
    return _noise
