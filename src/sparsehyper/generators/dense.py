"""The dense generator: its last layer has a weight for every pair of feature and parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from sparsehyper._util.checks import WIDEST, check_integer
from sparsehyper._util.random import seeded
from sparsehyper.generators.base import Generator, dense_layer, largest, too_small
from sparsehyper.layout import Layout, count_numbers


@dataclass(frozen=True)
class Dense(Generator):
    """A linear layer from features to all parameters, with or without a hidden layer before it.

    G(z) = W z, or W ReLU(V z + c) + b.

    Args:
        hidden: width of a hidden layer with ReLU, whose outputs are the features; None for no
            hidden layer, in which case the embedding is the features.

    Raises:
        ValueError: ``hidden`` below 1.

    Source: the *linear* hypernetwork and the *MLP* (30 hidden units) of F. Cubélier, "Sparse
    hypernetworks for multitasking" (Liège, 2022).

    >>> import torch
    >>> generator = Dense(hidden=30).build(latent_dim=16, layout=1000)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1000])
    """

    kind = "dense"

    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.hidden is not None:
            check_integer("hidden", self.hidden, minimum=1, maximum=WIDEST)

    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module."""
        check_integer("latent_dim", latent_dim, minimum=1)
        numel, rng = count_numbers(layout), seeded(seed)
        if self.hidden is None:
            return dense_layer(latent_dim, numel, 1.0, rng, bias=False)
        first = dense_layer(latent_dim, self.hidden, 1.0, rng)
        return nn.Sequential(first, nn.ReLU(), dense_layer(self.hidden, numel, 2.0, rng))

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters."""
        numel = count_numbers(layout)
        if self.hidden is None:
            return latent_dim * numel
        return (latent_dim + 1) * self.hidden + (self.hidden + 1) * numel

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The largest generator within a budget; varies ``hidden``, unless that is None."""
        check_integer("budget", budget, minimum=1)
        narrowest = self if self.hidden is None else replace(self, hidden=1)
        smallest = narrowest.count_parameters(latent_dim, layout)
        if smallest > budget:
            remedy = "a sparse or chunked generator can be smaller"
            raise too_small("dense", budget, smallest, remedy)
        if self.hidden is None:
            return self

        def fits(hidden: int) -> bool:
            return replace(self, hidden=hidden).count_parameters(latent_dim, layout) <= budget

        return replace(self, hidden=largest(fits, 1, min(budget, WIDEST)))
