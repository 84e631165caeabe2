"""The contract of a generator: a description that builds a module from embeddings to parameters.

A description is a small frozen dataclass. What it builds maps embeddings ``[batch, latent_dim]``,
of unit second moment, to ``[batch, numel]``, of unit variance at initialisation. The same object
is what the command line parses and what a checkpoint stores.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import nn


class Generator(ABC):
    """A frozen dataclass that describes how all parameters of a target come out."""

    kind: ClassVar[str]

    @abstractmethod
    def build(self, latent_dim: int, numel: int, seed: int = 0) -> nn.Module:
        """The module ``[batch, latent_dim]`` → ``[batch, numel]``; all randomness from ``seed``."""

    @abstractmethod
    def count_parameters(self, latent_dim: int, numel: int) -> int:
        """Trainable parameters of what ``build`` would return, without building it."""

    @abstractmethod
    def with_budget(self, budget: int, latent_dim: int, numel: int) -> Self:
        """The largest generator of this kind with at most ``budget`` trainable parameters.

        One setting is varied, named by each kind; the others stay.

        Raises:
            ValueError: no setting is that small; the message gives the smallest there is.
        """

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, with the kind under ``"kind"``."""
        return {"kind": self.kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest integer in [low, high] that fits, where all below it do; ``fits(low)`` holds."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def too_small(kind: str, budget: int, smallest: int, remedy: str) -> ValueError:
    """The error of a budget that no setting of a kind meets."""
    return ValueError(
        f"`budget` must be at least {smallest} for a {kind} generator here, got {budget}; {remedy}"
    )
