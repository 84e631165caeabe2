"""The composed generator: different generators for different tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer
from sparsehyper._util.random import spawn_seeds
from sparsehyper.generators.base import BudgetError, Generator, too_small
from sparsehyper.layout import Layout, TensorSpec, as_tensors, matches, pack


@dataclass(frozen=True)
class Composed(Generator):
    """Several generators side by side.

    Args:
        parts: a generator for each glob of tensor names; the first glob that matches a tensor
            counts. A tied tensor matches by any name, but by the first only where a module is used
            twice.

    Raises:
        TypeError: ``parts`` is not a mapping from globs to generators.
        ValueError: no parts; in ``build``, a tensor that no glob matches, or a glob that gets no
            tensor.

    >>> from sparsehyper import Dense, Sparse
    >>> from sparsehyper.layout import pack
    >>> layout = pack([("weight", torch.Size([30, 40])), ("bias", torch.Size([30]))])
    >>> generator = Composed({"bias": Dense(), "*": Sparse()}).build(16, layout)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1230])
    """

    kind = "composed"

    parts: Mapping[str, Generator] | Sequence[tuple[str, Generator]]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, (Mapping, Sequence)) or isinstance(self.parts, str):
            raise TypeError(f"`parts` must map globs to generators, got {self.parts!r}")
        pairs = self.parts.items() if isinstance(self.parts, Mapping) else self.parts
        parts = tuple((pattern, generator) for pattern, generator in pairs)
        if not parts:
            raise ValueError("`parts` must have at least one generator, got none")
        for pattern, generator in parts:
            if not isinstance(pattern, str) or not isinstance(generator, Generator):
                raise TypeError(
                    "`parts` must map globs of tensor names to generators, got "
                    f"{pattern!r}: {generator!r}"
                )
        object.__setattr__(self, "parts", parts)

    @property
    def _pairs(self) -> tuple[tuple[str, Generator], ...]:
        assert isinstance(self.parts, tuple)  # `__post_init__` made it one
        return self.parts

    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module."""
        groups = self._groups(layout)
        seeds = spawn_seeds(seed, len(groups))
        built = [
            generator.build(latent_dim, _repacked(own), seed)
            for (generator, own), seed in zip(groups, seeds, strict=True)
        ]
        return _Parts(built, [own for _, own in groups])

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters."""
        return sum(
            generator.count_parameters(latent_dim, _repacked(own))
            for generator, own in self._groups(layout)
        )

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The largest generator within a budget; varies what each part varies.

        A part's share of the budget is its share of the generated parameters.
        """
        check_integer("budget", budget, minimum=1)
        groups = self._groups(layout)
        numels = [sum(spec.numel for spec in own) for _, own in groups]
        parts, errors = [], []
        for (pattern, _), (g, own), n in zip(self._pairs, groups, numels, strict=True):
            share = max(1, budget * n // sum(numels))
            try:
                parts.append((pattern, g.with_budget(share, latent_dim, _repacked(own))))
            except BudgetError as error:
                smallest = -(-error.smallest * sum(numels) // n)
                remedy = f"the share of {pattern!r} is then {error.smallest}; {error.remedy}"
                errors.append((smallest, remedy))
        if errors:
            raise too_small(self.kind, budget, *max(errors))
        return replace(self, parts=parts)

    def _groups(self, layout: Layout) -> list[tuple[Generator, list[TensorSpec]]]:
        """The generator of each part with its tensors."""
        tensors = as_tensors(layout)
        groups: list[tuple[Generator, list[TensorSpec]]] = [(g, []) for _, g in self._pairs]
        for spec in tensors:
            for (pattern, _), (_, own) in zip(self._pairs, groups, strict=True):
                if matches((spec.name, *spec.aliases), pattern):
                    own.append(spec)
                    break
            else:
                patterns = ", ".join(repr(pattern) for pattern, _ in self._pairs)
                raise ValueError(f"`parts` has no generator for {spec.name!r}; it has: {patterns}")
        for (pattern, _), (_, own) in zip(self._pairs, groups, strict=True):
            if not own:
                names = ", ".join(spec.name for spec in tensors)
                raise ValueError(f"`parts` leaves nothing to {pattern!r}; the tensors are: {names}")
        return groups


class _Parts(nn.Module):
    def __init__(self, parts: list[nn.Module], groups: list[list[TensorSpec]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._sizes = [[spec.numel for spec in own] for own in groups]
        offsets = [spec.offset for own in groups for spec in own]
        self._order = sorted(range(len(offsets)), key=offsets.__getitem__)

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        pieces: list[Tensor] = []
        for part, sizes in zip(self.parts, self._sizes, strict=True):
            pieces += part(z).split(sizes, 1)
        return torch.cat([pieces[i] for i in self._order], 1)


def _repacked(own: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return pack((spec.name, spec.shape, spec.aliases) for spec in own)
