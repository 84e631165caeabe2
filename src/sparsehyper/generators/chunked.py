"""Chunked generators: one small MLP makes the parameters chunk by chunk.

Chunk i is ``MLP([z, c_i])``, where c_i is a learned embedding. The MLP has one or two hidden layers
with ReLU, shared by all chunks, and a last layer of the chunk's size. A chunk is:

- ``flat``: one of the equal parts of the whole vector, whatever the tensors;
- ``tensor``: a part of one tensor; all parts have the same size;
- ``filter``: a filter (a row of a matrix, or the kernel of an output channel); a tensor with one
  dimension is one chunk. The last layer is then one for each tensor, shared by its filters.

Sources: D. Ha et al., "HyperNetworks" (ICLR 2017) for filters and their shared generator; J. von
Oswald et al., "Continual learning with hypernetworks" (ICLR 2020) for flat chunks; F. Cubélier,
"Sparse hypernetworks for multitasking" (Liège, 2022) for the defaults: two hidden layers, and
embeddings of the latent size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import WIDEST, check_choice, check_integer
from sparsehyper._util.random import normal, seeded
from sparsehyper.generators.base import Generator, dense_layer, largest, too_small
from sparsehyper.layout import Layout, as_tensors, count_numbers

CHUNKINGS = ("flat", "tensor", "filter")


@dataclass(frozen=True)
class Chunked(Generator):
    """A shared MLP that produces the parameters chunk by chunk.

    Args:
        chunks: number of chunks of the whole vector, at most N; it determines their size. Ignored
            if ``by="filter"``.
        hidden: width of the hidden layers; None for twice the latent size, as in the thesis;
            a budget may halve it.
        by: the kind of chunks: ``"flat"``, ``"tensor"`` or ``"filter"``.
        layers: number of hidden layers, 1 or 2.
        embedding: length of a chunk's embedding; None for the latent size.

    Raises:
        ValueError: ``chunks``, ``hidden`` or ``embedding`` below 1, ``layers`` not 1 or 2, or an
            unknown ``by``.

    >>> generator = Chunked(chunks=7).build(latent_dim=16, layout=1000)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1000])
    """

    kind = "chunked"

    chunks: int = 32
    hidden: int | None = None
    by: str = "flat"
    layers: int = 2
    embedding: int | None = None

    def __post_init__(self) -> None:
        check_integer("chunks", self.chunks, minimum=1, maximum=WIDEST)
        for name in ("hidden", "embedding"):
            if (value := getattr(self, name)) is not None:
                check_integer(name, value, minimum=1, maximum=WIDEST)
        check_choice("by", self.by, CHUNKINGS)
        check_integer("layers", self.layers, minimum=1, maximum=2)

    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module."""
        return _ChunkedMLP(self, self._heads(latent_dim, layout), latent_dim, seed)

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters."""
        heads, width = self._heads(latent_dim, layout), self.width(latent_dim)
        length = self._embedding(latent_dim)
        trunk = (latent_dim + length + 1) * width + (self.layers - 1) * (width + 1) * width
        widths = [head.width for head in heads] if self.by == "filter" else [heads[0].width]
        return trunk + length * sum(h.chunks for h in heads) + (width + 1) * sum(widths)

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """About the largest generator within a budget.

        Varies ``chunks``, to the fewest that fit; with ``by="filter"``, ``hidden``. If ``hidden``
        is None and its width does not fit, it is halved until it does.
        """
        check_integer("budget", budget, minimum=1)
        if self.by == "filter":
            return self._with_hidden(budget, latent_dim, layout)
        width = self.width(latent_dim)
        halves = [] if self.hidden else [width >> k for k in range(1, width.bit_length())]
        for hidden in (self.hidden, *halves):
            spec = replace(self, hidden=hidden)._smallest(latent_dim, layout)
            if (smallest := spec.count_parameters(latent_dim, layout)) <= budget:
                return spec._with_fewer_chunks(budget, latent_dim, layout)
        lower = "hidden" if self.hidden else "latent_dim"
        raise too_small("chunked", budget, smallest, f"lower `{lower}` for a smaller one")

    def width(self, latent_dim: int) -> int:
        """Width of the hidden layers."""
        check_integer("latent_dim", latent_dim, minimum=1)
        return self.hidden or 2 * latent_dim

    def _embedding(self, latent_dim: int) -> int:
        return self.embedding or latent_dim

    def _smallest(self, latent_dim: int, layout: Layout) -> Self:
        """The smallest generator that differs in ``chunks`` only."""
        numel = count_numbers(layout)
        # Fewer chunks need a larger output layer, more need more embeddings: one minimum between.
        middle = (self.width(latent_dim) + 1) * numel / self._embedding(latent_dim)
        counts = {1, *(max(1, min(numel, WIDEST, c)) for c in _near(middle))}
        specs = [replace(self, chunks=chunks) for chunks in sorted(counts)]
        return min(specs, key=lambda spec: spec.count_parameters(latent_dim, layout))

    def _with_fewer_chunks(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The generator with the fewest chunks within a budget."""

        def fits(chunks: int) -> bool:
            spec = replace(self, chunks=chunks)
            return spec.count_parameters(latent_dim, layout) <= budget

        chunks = self.chunks - largest(lambda k: fits(self.chunks - k), 0, self.chunks - 1)
        # Borders of tensors make the count of parameters uneven, so some steps may be missing.
        while not fits(chunks):
            chunks += 1
        return replace(self, chunks=chunks)

    def _with_hidden(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        def count(hidden: int) -> int:
            return replace(self, hidden=hidden).count_parameters(latent_dim, layout)

        if count(1) > budget:
            raise too_small("chunked", budget, count(1), "lower `latent_dim` for a smaller one")
        most = min(budget, WIDEST)
        return replace(self, hidden=largest(lambda h: count(h) <= budget, 1, most))

    def _heads(self, latent_dim: int, layout: Layout) -> list[_Head]:
        self.width(latent_dim)
        tensors, numel = as_tensors(layout), count_numbers(layout)
        if self.by == "filter":
            rows = [spec.shape[0] if len(spec.shape) > 1 else 1 for spec in tensors]
            return [
                _Head(count, spec.numel // count, spec.numel)
                for count, spec in zip(rows, tensors, strict=True)
            ]
        size = math.ceil(numel / min(self.chunks, numel))
        numels = [numel] if self.by == "flat" else [spec.numel for spec in tensors]
        return [_Head(math.ceil(n / size), size, n) for n in numels]


@dataclass(frozen=True)
class _Head:
    """A group of chunks that are made together.

    Attributes:
        chunks: Number of chunks.
        width: Number of elements of a chunk.
        numel: Number of elements of all chunks that are used.
    """

    chunks: int
    width: int
    numel: int


class _ChunkedMLP(nn.Module):
    def __init__(self, spec: Chunked, heads: list[_Head], latent_dim: int, seed: int) -> None:
        super().__init__()
        rng, width, length = seeded(seed), spec.width(latent_dim), spec._embedding(latent_dim)
        chunks = sum(head.chunks for head in heads)
        self.embedding = nn.Parameter(normal([chunks, length], rng).float())
        # The input has unit second moment; a ReLU halves it.
        self.mlp = nn.Sequential(dense_layer(latent_dim + length, width, 1.0, rng), nn.ReLU())
        if spec.layers == 2:
            self.mlp.extend([dense_layer(width, width, 2.0, rng), nn.ReLU()])
        widths = [head.width for head in heads] if spec.by == "filter" else [heads[0].width]
        self.heads = nn.ModuleList(dense_layer(width, w, 2.0, rng) for w in widths)
        self._plan = heads

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        # A linear layer of [z, c] is one of z plus one of c, so no pairs need to be formed.
        of_z, of_c = first.weight.split([z.shape[1], self.embedding.shape[1]], dim=1)
        x = F.linear(z, of_z)[:, None] + F.linear(self.embedding, of_c, first.bias)
        x = self.mlp[1:](x)
        if len(self.heads) == 1:
            x = self.heads[0](x)
        if len(self._plan) == 1:
            return x.flatten(1)[:, : self._plan[0].numel]
        parts = x.split([head.chunks for head in self._plan], 1)
        if len(self.heads) > 1:
            parts = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        pairs = zip(parts, self._plan, strict=True)
        return torch.cat([part.flatten(1)[:, : head.numel] for part, head in pairs], 1)


def _near(square: float) -> range:
    """Integers around the square root."""
    root = round(math.sqrt(square))
    return range(max(1, root - 8), root + 9)
