"""The dense generator: the last layer has a weight for every pair of a feature and a parameter."""

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

    G(z) = W z, or W ReLU(V z + c) + b. The heads of the target's tensors lie side by side in W.

    Args:
        hidden: width of a hidden layer with ReLU, which is the features; None for none, so that
            the embedding is.

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
        """The generator, an ``nn.Module``."""
        check_integer("latent_dim", latent_dim, minimum=1)
        numel, rng = count_numbers(layout), seeded(seed)
        if self.hidden is None:
            return dense_layer(latent_dim, numel, 1.0, rng, bias=False)
        first = dense_layer(latent_dim, self.hidden, 1.0, rng)
        return nn.Sequential(first, nn.ReLU(), dense_layer(self.hidden, numel, 2.0, rng))

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Trainable parameters."""
        numel = count_numbers(layout)
        if self.hidden is None:
            return latent_dim * numel
        return (latent_dim + 1) * self.hidden + (self.hidden + 1) * numel

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """Varies ``hidden``; without a hidden layer there is nothing to vary."""
        check_integer("budget", budget, minimum=1)
        one = self if self.hidden is None else replace(self, hidden=1)
        smallest = one.count_parameters(latent_dim, layout)
        if smallest > budget:
            remedy = "a sparse or chunked generator can be smaller"
            raise too_small("dense", budget, smallest, remedy)
        if self.hidden is None:
            return self

        def fits(hidden: int) -> bool:
            return replace(self, hidden=hidden).count_parameters(latent_dim, layout) <= budget

        return replace(self, hidden=largest(fits, 1, budget))
