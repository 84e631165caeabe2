"""The butterfly generator: stages that combine pairs of units, all as wide as the output.

The embedding is repeated to the width P, the smallest power of two that is at least N and at least
the latent size. In stage s every unit is a weighted sum of itself and of the unit whose number
differs in bit s:

    x_s[j] = w[s, 0, j] · x_(s-1)[j] + w[s, 1, j] · x_(s-1)[j xor 2^s]

After ⌈log2(latent_dim)⌉ stages every output depends on every element of the embedding. A full
butterfly has log2(P) stages. A Beneš network, a butterfly and its mirror image, has 2 log2(P) - 1.

Source: the Beneš variation of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022);
V. Beneš, "Mathematical theory of connecting networks and telephone traffic" (1965); butterfly
matrices as in T. Dao et al., "Learning fast algorithms for linear transforms using butterfly
factorizations" (ICML 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer
from sparsehyper._util.random import seeded, uniform
from sparsehyper.generators.base import (
    CALIBRATED_WIDTH,
    Generator,
    calibration_factor,
    largest,
    random_embeddings,
    too_small,
)
from sparsehyper.layout import Layout, count_numbers


@dataclass(frozen=True)
class Butterfly(Generator):
    """A linear generator with two weights per unit and stage, all stages as wide as the output.

    Args:
        stages: number of stages; None for a full butterfly.
        benes: add the mirror image of all stages except the last.

    Raises:
        ValueError: ``stages`` below 1.
        TypeError: ``benes`` is not a bool.

    >>> generator = Butterfly(stages=4).build(latent_dim=16, layout=1000)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1000])
    """

    kind = "butterfly"

    stages: int | None = None
    benes: bool = False

    def __post_init__(self) -> None:
        if self.stages is not None:
            check_integer("stages", self.stages, minimum=1)
        if not isinstance(self.benes, bool):
            raise TypeError(f"`benes` must be true or false, got {self.benes!r}")

    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module."""
        check_integer("latent_dim", latent_dim, minimum=1)
        return ButterflyStages(
            self._bits(latent_dim, layout), latent_dim, count_numbers(layout), seed
        )

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters."""
        return 2 * len(self._bits(latent_dim, layout)) << _width_bits(latent_dim, layout)

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The largest generator within a budget; varies ``stages``."""
        check_integer("budget", budget, minimum=1)

        def count(stages: int) -> int:
            return replace(self, stages=stages).count_parameters(latent_dim, layout)

        if count(1) > budget:
            raise too_small("butterfly", budget, count(1), "a sparse generator can be smaller")
        most = _width_bits(latent_dim, layout)
        return replace(self, stages=largest(lambda s: count(s) <= budget, 1, most))

    def _bits(self, latent_dim: int, layout: Layout) -> list[int]:
        """The bit in which partners differ, for each stage."""
        most = _width_bits(latent_dim, layout)
        bits = list(range(min(self.stages or most, most)))
        return bits + bits[-2::-1] if self.benes else bits


class ButterflyStages(nn.Module):
    """The module that `Butterfly` builds.

    Args:
        bits: the bit in which partners differ, for each stage.
        latent_dim: length of an embedding.
        numel: number of outputs.
        seed: seed of the weights.
    """

    def __init__(self, bits: list[int], latent_dim: int, numel: int, seed: int) -> None:
        super().__init__()
        self.bits, self.numel = bits, numel
        width, rng = 1 << _width_bits(latent_dim, numel), seeded(seed)
        self.weight = nn.Parameter(uniform([len(bits), 2, width], 1 / 2, rng))
        if width <= CALIBRATED_WIDTH:
            self._calibrate(random_embeddings(latent_dim, rng))

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        x = self._repeat(z)
        for bit, weights in zip(self.bits, self.weight, strict=True):
            x = _stage(x, bit, weights)
        return x[:, : self.numel]

    def _repeat(self, z: Tensor) -> Tensor:
        width = self.weight.shape[2]
        return z.repeat(1, -(-width // z.shape[1]))[:, :width]

    @torch.no_grad()
    def _calibrate(self, z: Tensor) -> None:
        """Rescale each stage so that random embeddings leave it with unit second moment."""
        x = self._repeat(z)
        for bit, weights in zip(self.bits, self.weight, strict=True):
            y = _stage(x, bit, weights.double())
            factor = calibration_factor(y)
            weights.mul_(factor)
            x = y * factor


def _stage(x: Tensor, bit: int, weights: Tensor) -> Tensor:
    batch, width = x.shape
    partner = x.reshape(batch, width >> (bit + 1), 2, 1 << bit).flip(2).reshape(batch, width)
    return torch.addcmul(x * weights[0], partner, weights[1])


def _width_bits(latent_dim: int, layout: Layout) -> int:
    return max(1, (max(latent_dim, count_numbers(layout)) - 1).bit_length())
