"""What ways to adapt are usually worth, for where a task's examples cannot tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usual:
    """What a way is usually worth from one example a class.

    Attributes:
        weight: its weight among all ways.
        loss: its cross entropy, as a share of that of guessing.
        temperature: what its logits are divided by.
        skill: its accuracy, from 0, guessing, to 1.
    """

    weight: float
    loss: float
    temperature: float
    skill: float


# Means over families of tasks: pairs of classes, rotations, permutations and characters.
USUAL = {
    "linear": Usual(0.1, 0.7, 1.0, 0.45),
    "head": Usual(0.2, 0.5, 1.0, 0.55),
    "embedding": Usual(0.2, 0.5, 1.0, 0.6),
    "embedding, all": Usual(0.15, 0.5, 1.3, 0.6),
    "all": Usual(0.25, 0.45, 1.3, 0.65),
    "scratch": Usual(0.1, 0.75, 2.5, 0.4),
}
