"""Small tables of sites on disk."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

COLUMNS = ("site", "size", "age", "state", "price")


def write_sites(
    path: Path, sites: range, rows: int, *, seed: int = 0, graded: bool = False
) -> Path:
    """Write a table whose price depends on size, age and state, a little differently at each site.

    Args:
        path: The CSV file; one number and one text in twenty are missing.
        sites: Numbers of the sites.
        rows: Rows of each.
        seed: Seed of the rows; a site's formula depends on its number alone.
        graded: Whether the last column is a grade, high or low, in place of the price.
    """
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(size=3)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS[:-1], "grade" if graded else "price"])
        for site in sites:
            slopes = common + 0.2 * np.random.default_rng(site).normal(size=3)
            for _ in range(rows):
                x = [*rng.normal(size=2), rng.integers(2)]
                value = float(slopes @ x) + 0.1 * rng.normal()
                cells = [f"{x[0]:.3f}", f"{x[1]:.3f}", ("new", "old")[int(x[2])]]
                cells = ["" if rng.random() < 0.05 else cell for cell in cells]
                grade = "high" if value > 0 else "low"
                writer.writerow(
                    [f"{site:03}", *cells, grade if graded else f"{100 + 20 * value:.2f}"]
                )
    return path
