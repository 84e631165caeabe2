"""The interface of generators: a description that builds a module from embeddings to parameters.

A description is a small frozen dataclass. The module that it builds maps embeddings
``[batch, latent_dim]`` of unit second moment to ``[batch, numel]``, of unit variance at
initialisation. The command line parses descriptions, and checkpoints store them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.random import normal, uniform
from sparsehyper.layout import Layout

# Layers up to this width are rescaled at construction so that their outputs have unit second
# moment; in wider layers the law of large numbers sees to that.
CALIBRATED_WIDTH = 1 << 13
_CALIBRATION_BATCH = 512
_FACTOR_STEPS = 256


class Generator(ABC):
    """A frozen dataclass that describes a generator of all parameters of a target."""

    kind: ClassVar[str]

    @abstractmethod
    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module from ``[batch, latent_dim]`` to ``[batch, numel]``.

        Args:
            latent_dim: length of an embedding.
            layout: the tensors to generate; or a number of parameters, for kinds that ignore
                shapes.
            seed: seed of all randomness.
        """

    @abstractmethod
    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters of the module that ``build`` would return."""

    @abstractmethod
    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The largest generator of this kind with at most ``budget`` trainable parameters.

        Each kind varies one setting and keeps all others.

        Raises:
            ValueError: no setting is that small; the message gives the smallest budget.
        """

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, with the kind under ``"kind"``."""
        config: dict[str, Any] = {"kind": self.kind}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            config[field.name] = _plain(getattr(self, field.name))
        return config


def _plain(value: Any) -> Any:
    if isinstance(value, Generator):
        return value.to_config()
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest integer in [low, high] that fits; all smaller ones in the range must fit."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def random_embeddings(latent_dim: int, rng: torch.Generator) -> Tensor:
    """Embeddings of unit second moment to calibrate with: float64 ``[batch, latent_dim]``."""
    z = normal([_CALIBRATION_BATCH, latent_dim], rng)
    return z / z.square().mean(1, keepdim=True).sqrt()


def calibration_factor(y: Tensor) -> float:
    """The factor that gives outputs unit second moment, rounded to be the same on any machine."""
    return round(_FACTOR_STEPS / float(y.square().mean().sqrt())) / _FACTOR_STEPS


def dense_layer(
    n_in: int, n_out: int, gain: float, rng: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """A linear layer whose outputs have ``gain`` times the inputs' second moment; its bias is 0."""
    layer = nn.Linear(n_in, n_out, bias, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(uniform(layer.weight.shape, gain / n_in, rng))
        if bias:
            layer.bias.zero_()
    return layer


class BudgetError(ValueError):
    """No setting of a kind of generator meets a budget.

    Attributes:
        smallest: The smallest budget that a setting meets.
        remedy: Advice for a smaller one.
    """

    smallest: int
    remedy: str


def too_small(kind: str, budget: int, smallest: int, remedy: str) -> BudgetError:
    """The error for a budget that no setting of a kind meets."""
    error = BudgetError(
        f"`budget` must be at least {smallest} for a {kind} generator here, got {budget}; {remedy}"
    )
    error.smallest, error.remedy = smallest, remedy
    return error
