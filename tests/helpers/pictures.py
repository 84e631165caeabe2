"""Small pictures on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_task(folder: Path, shades: Mapping[str, int], count: int, seed: int = 0) -> None:
    """Write the images of a task: a folder for each class, of grey 8 × 8 noise around its shade.

    Args:
        folder: The task's folder.
        shades: Mean grey value of each class, in [40, 215], by name.
        count: Images in each class.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    for name, shade in shades.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(shade - 40, shade + 40, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
