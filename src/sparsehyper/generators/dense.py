"""The dense generator: one linear layer from the embedding to all parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._checks import check_integer
from sparsehyper._random import seeded, uniform
from sparsehyper.generators.base import Generator, too_small


@dataclass(frozen=True)
class Dense(Generator):
    """One linear layer, ``latent_dim`` weights per generated parameter.

    Source: the *linear* hypernetwork of F. Cubélier, "Sparse hypernetworks for multitasking"
    (Liège, 2022); its heads, one a tensor, together are this layer.

    >>> import torch
    >>> generator = Dense().build(latent_dim=16, numel=1000)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1000])
    """

    kind = "dense"

    def build(self, latent_dim: int, numel: int, seed: int = 0) -> nn.Module:
        """The generator, an ``nn.Module``."""
        check_integer("latent_dim", latent_dim, minimum=1)
        check_integer("numel", numel, minimum=1)
        return _DenseLinear(latent_dim, numel, seed)

    def count_parameters(self, latent_dim: int, numel: int) -> int:
        """Trainable parameters."""
        return latent_dim * numel

    def with_budget(self, budget: int, latent_dim: int, numel: int) -> Self:
        """There is nothing to vary: it fits or it does not."""
        check_integer("budget", budget, minimum=1)
        smallest = self.count_parameters(latent_dim, numel)
        if smallest > budget:
            raise too_small("dense", budget, smallest, "only a smaller `latent_dim` reduces it")
        return self


class _DenseLinear(nn.Module):
    def __init__(self, latent_dim: int, numel: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform([numel, latent_dim], 1 / latent_dim, seeded(seed)))

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        return F.linear(z, self.weight)
