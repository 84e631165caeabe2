"""Small tables of windows of a machine's sensors on disk."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

COLUMNS = ("machine", "window", "time", "vibration", "heat", "mode")


def write_windows(
    path: Path,
    machines: range,
    windows: int,
    *,
    steps: tuple[int, int] = (24, 24),
    seed: int = 0,
    numbers: bool = False,
) -> Path:
    """Write a table of windows whose vibration has a second harmonic where the machine is worn.

    Each machine has a speed and a phase between the two waves of its own; windows start anywhere,
    so that no single step tells anything.

    Args:
        path: The CSV file; its rows are shuffled, and one number in twenty is missing.
        machines: Numbers of the machines.
        windows: Windows of each; every machine counts its own from 0.
        steps: Fewest and most steps of a window.
        seed: Seed of the windows; a machine's formula depends on its number alone.
        numbers: Whether the last column is the wear, from 0 to 100, in place of the state, good or
            worn.
    """
    rng, rows = np.random.default_rng(seed), []
    for machine in machines:
        own = np.random.default_rng(machine)
        speed, shift = own.uniform(0.5, 0.9), own.uniform(0, 2 * np.pi)
        for window in range(windows):
            start, heat = rng.uniform(0, 100), rng.normal()
            wear = rng.uniform() if numbers else float(rng.integers(2))
            target = f"{100 * wear:.1f}" if numbers else ("good", "worn")[int(wear)]
            time = np.arange(rng.integers(steps[0], steps[1] + 1))
            angle = speed * (start + time)
            wave = np.sin(angle) + wear * np.sin(2 * angle + shift)
            for t, x in zip(time, wave + 0.2 * rng.normal(size=len(time)), strict=True):
                cells = [f"{5 + 3 * x:.3f}", f"{20 + heat + 0.1 * rng.normal():.2f}"]
                cells = ["" if rng.random() < 0.05 else cell for cell in cells]
                mode = ("auto", "manual")[int(rng.integers(2))]
                rows.append([f"m{machine:02}", window, t, *cells, mode, target])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "wear" if numbers else "state"])
        writer.writerows(rows[i] for i in rng.permutation(len(rows)))
    return path
