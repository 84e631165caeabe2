"""The low-rank generator: matrices as products of generated factors.

A tensor of shape ``[m, …]`` with n elements per row is U V / √r. Another generator makes the
factors U ``[m, r]`` and V ``[r, n]``, and also the tensors that factors would not make smaller.

Source: low-rank factors as in E. Hu et al., "LoRA: Low-rank adaptation of large language models"
(ICLR 2022), here of the tensor itself and not of a change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import WIDEST, check_integer
from sparsehyper.generators.base import Generator
from sparsehyper.generators.sparse import Sparse
from sparsehyper.layout import Layout, TensorSpec, as_tensors, pack


@dataclass(frozen=True)
class LowRank(Generator):
    """Every matrix as a product of two factors, which another generator makes.

    Args:
        rank: rank r of every product.
        of: the generator of the factors.

    Raises:
        ValueError: ``rank`` below 1.
        TypeError: ``of`` is not a generator.

    >>> from sparsehyper.layout import pack
    >>> layout = pack([("weight", torch.Size([30, 40])), ("bias", torch.Size([30]))])
    >>> generator = LowRank(rank=2).build(latent_dim=16, layout=layout)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1230])
    """

    kind = "low_rank"

    rank: int = 4
    of: Generator = field(default_factory=Sparse)

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, minimum=1, maximum=WIDEST)
        if not isinstance(self.of, Generator):
            raise TypeError(f"`of` must be a generator, got {self.of!r}")

    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module."""
        factors = self.of.build(latent_dim, self._factors(layout), seed)
        return _Products(factors, [self._sizes(spec) for spec in as_tensors(layout)])

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters."""
        return self.of.count_parameters(latent_dim, self._factors(layout))

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The largest generator within a budget; varies what ``of`` varies."""
        return replace(self, of=self.of.with_budget(budget, latent_dim, self._factors(layout)))

    def _factors(self, layout: Layout) -> tuple[TensorSpec, ...]:
        """Layout of the factors, and of the tensors that have none."""
        tensors = []
        for spec in as_tensors(layout):
            m, r, n = self._sizes(spec)
            if r == 0:
                tensors.append((spec.name, spec.shape, spec.aliases))
                continue
            for factor, shape in ("u", [m, r]), ("v", [r, n]):
                name, *aliases = (f"{each}.{factor}" for each in (spec.name, *spec.aliases))
                tensors.append((name, torch.Size(shape), tuple(aliases)))
        return pack(tensors)

    def _sizes(self, spec: TensorSpec) -> tuple[int, int, int]:
        """The sizes m, r and n of a tensor; r = 0 for a tensor without factors."""
        m = spec.shape[0] if spec.shape else 1
        n = spec.numel // m
        return m, self.rank if self.rank * (m + n) < m * n else 0, n


class _Products(nn.Module):
    def __init__(self, factors: nn.Module, sizes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.factors = factors
        self._sizes = sizes

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        numbers = [n for m, r, k in self._sizes for n in ((m * r, r * k) if r else (m * k,))]
        pieces = iter(self.factors(z).split(numbers, 1))
        tensors = []
        for m, r, k in self._sizes:
            piece = next(pieces)
            if r:
                u, v = piece.view(-1, m, r) / math.sqrt(r), next(pieces).view(-1, r, k)
                piece = (u @ v).flatten(1)
            tensors.append(piece)
        return torch.cat(tensors, 1)
