"""The chunked generator: one small MLP makes every chunk of the parameter vector in turn.

The vector is cut into equal chunks, each with a learned embedding c of the latent size; chunk i is
``MLP([z, c_i])``, the same MLP for all: two hidden layers with ReLU, then the chunk.

Sources: J. von Oswald et al., "Continual learning with hypernetworks" (ICLR 2020) for chunking;
F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022) for this MLP and the size of
the embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._checks import check_integer
from sparsehyper._random import normal, seeded, uniform
from sparsehyper.generators.base import Generator, largest, too_small


@dataclass(frozen=True)
class Chunked(Generator):
    """A shared MLP that produces the parameter vector chunk by chunk.

    Args:
        chunks: number of chunks, reduced to N where it exceeds that; the last may be shorter.
        hidden: width of the two hidden layers; None for twice the latent size, as in the thesis.

    Raises:
        ValueError: ``chunks`` or ``hidden`` below 1.

    >>> generator = Chunked(chunks=7).build(latent_dim=16, numel=1000)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1000])
    """

    kind = "chunked"

    chunks: int = 32
    hidden: int | None = None

    def __post_init__(self) -> None:
        check_integer("chunks", self.chunks, minimum=1)
        if self.hidden is not None:
            check_integer("hidden", self.hidden, minimum=1)

    def build(self, latent_dim: int, numel: int, seed: int = 0) -> nn.Module:
        """The generator, an ``nn.Module``."""
        return _ChunkedMLP(*self._sizes(latent_dim, numel), latent_dim, numel, seed)

    def count_parameters(self, latent_dim: int, numel: int) -> int:
        """Trainable parameters."""
        chunks, chunk, hidden = self._sizes(latent_dim, numel)
        widths = [2 * latent_dim, hidden, hidden, chunk]
        mlp = sum((n_in + 1) * n_out for n_in, n_out in pairwise(widths))
        return chunks * latent_dim + mlp

    def with_budget(self, budget: int, latent_dim: int, numel: int) -> Self:
        """Varies ``chunks``: the fewest, and so the largest, that fit."""

        def count(chunks: int) -> int:
            return replace(self, chunks=chunks).count_parameters(latent_dim, numel)

        check_integer("budget", budget, minimum=1)
        # Fewer chunks cost a larger output layer, more cost their embeddings: one minimum between.
        width = self.hidden or 2 * latent_dim
        best = min(
            {1, *(max(1, min(numel, c)) for c in _near((width + 1) * numel / latent_dim))},
            key=count,
        )
        if count(best) > budget:
            raise too_small("chunked", budget, count(best), "lower `hidden` for a smaller one")
        return replace(
            self, chunks=best - largest(lambda k: count(best - k) <= budget, 0, best - 1)
        )

    def _sizes(self, latent_dim: int, numel: int) -> tuple[int, int, int]:
        """Chunks, parameters a chunk, hidden width."""
        check_integer("latent_dim", latent_dim, minimum=1)
        check_integer("numel", numel, minimum=1)
        chunk = math.ceil(numel / min(self.chunks, numel))
        return math.ceil(numel / chunk), chunk, self.hidden or 2 * latent_dim


class _ChunkedMLP(nn.Module):
    def __init__(
        self, chunks: int, chunk: int, hidden: int, latent_dim: int, numel: int, seed: int
    ) -> None:
        super().__init__()
        self.numel = numel
        rng = seeded(seed)
        self.embedding = nn.Parameter(normal([chunks, latent_dim], rng).float())
        # The input has unit second moment; what follows a ReLU has half of its input's.
        self.mlp = nn.Sequential(
            _linear(2 * latent_dim, hidden, 1.0, rng),
            nn.ReLU(),
            _linear(hidden, hidden, 2.0, rng),
            nn.ReLU(),
            _linear(hidden, chunk, 2.0, rng),
        )

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        # A linear layer of [z, c] is one of z plus one of c: no pair has to be formed.
        of_z, of_c = first.weight.split(z.shape[1], dim=1)
        x = F.linear(z, of_z)[:, None] + F.linear(self.embedding, of_c, first.bias)
        return self.mlp[1:](x).flatten(1)[:, : self.numel]


def _linear(n_in: int, n_out: int, gain: float, rng: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(uniform(layer.weight.shape, gain / n_in, rng))
        layer.bias.zero_()
    return layer


def _near(square: float) -> range:
    root = round(math.sqrt(square))
    return range(max(1, root - 8), root + 9)
