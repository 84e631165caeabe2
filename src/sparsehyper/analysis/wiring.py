"""Connectivity: which parameters depend on which elements of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsehyper.analysis.gram import rows_at_once
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.sparse import SparseLinear


@dataclass(frozen=True)
class Connectivity:
    """How far the elements of an embedding reach, and how much of their inputs layers use.

    Attributes:
        reach: For each element of the embedding, the share in [0, 1] of outputs that depend on it.
        coverage: For each sparse or dense layer, the share of its inputs that some output uses.
    """

    reach: tuple[float, ...]
    coverage: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Mean, minimum and maximum reach, and the coverage of every layer; JSON-ready."""
        return {
            "reach_mean": sum(self.reach) / len(self.reach),
            "reach_min": min(self.reach),
            "reach_max": max(self.reach),
            "coverage": list(self.coverage),
        }


@torch.no_grad()
def connectivity(
    generator: HyperNetwork | nn.Module, latent_dim: int | None = None
) -> Connectivity:
    """Follow the wiring of a generator from every element of the embedding to the outputs.

    NaN stays NaN in products and sums, so for an embedding with one NaN the outputs that depend on
    it are NaN. This is exact for any generator, linear or not. Each element of the embedding costs
    one row of a forward pass, and no dense matrix is formed.

    Args:
        generator: a hypernetwork or a generator's module.
        latent_dim: length of an embedding, for a module; None for the input width of its first
            sparse layer.

    Raises:
        ValueError: ``latent_dim`` is None and there is no sparse layer, or outputs are NaN anyway.

    Source: connectivity and coverage as in F. Cubélier, "Sparse hypernetworks for multitasking"
    (Liège, 2022).

    >>> from sparsehyper import Sparse
    >>> connectivity(Sparse(fan_in=8).build(latent_dim=4, layout=100)).reach
    (1.0, 1.0, 1.0, 1.0)
    """
    if isinstance(generator, HyperNetwork):
        latent_dim, generator = generator.conditioner.dim, generator.generator
    layers = wired_layers(generator)
    if latent_dim is None:
        sparse = [layer for layer in layers if isinstance(layer, SparseLinear)]
        if not sparse:
            raise ValueError(
                f"`generator` has no sparse layers, got a {type(generator).__name__}; "
                "give its `latent_dim`"
            )
        latent_dim = sparse[0].in_features
    z = torch.ones(latent_dim, latent_dim).to(next(generator.parameters()))
    out = generator(z[:1])[0]
    if broken := _count_nan(out):
        raise ValueError(
            f"`generator` must give numbers, got {broken} NaN for an embedding of ones; its "
            "weights are not finite"
        )
    reached: list[int] = []
    for rows in z.fill_diagonal_(torch.nan).split(rows_at_once(len(out))):
        reached += map(_count_nan, generator(rows))
    return Connectivity(tuple(count / len(out) for count in reached), tuple(map(_coverage, layers)))


def trace(layers: Sequence[SparseLinear], output: int) -> list[Tensor]:
    """All connections that one output of a stack of sparse layers depends on.

    Args:
        layers: the layers, first to last.
        output: index of an output of the last layer.

    Returns:
        For each layer its connections that ``output`` depends on, int64 ``[connections, 2]``: a
        source and a unit of the layer.

    Raises:
        IndexError: no such output.

    >>> layers = [SparseLinear(4, 8, 3), SparseLinear(8, 16, 2)]
    >>> [len(connections) for connections in trace(layers, 5)]
    [6, 2]
    """
    last = layers[-1].out_features
    if not 0 <= output < last:
        raise IndexError(f"`output` must be in 0..{last - 1}, got {output}")
    units, connections = torch.tensor([output]), []
    for layer in reversed(layers):
        sources = layer.connections()[:, units].long().cpu()
        connections.append(torch.stack([sources, units.expand_as(sources)], -1).flatten(0, 1))
        units = sources.unique()
    return connections[::-1]


def wired_layers(generator: nn.Module) -> list[SparseLinear | nn.Linear]:
    """The sparse and dense layers of a generator, in order."""
    return [m for m in generator.modules() if isinstance(m, (SparseLinear, nn.Linear))]


def _count_nan(row: Tensor) -> int:
    if row.is_cpu and row.dtype in (torch.float32, torch.float64):
        return int(np.count_nonzero(np.isnan(row.numpy())))  # several times faster
    return int(row.isnan().count_nonzero())


def _coverage(layer: SparseLinear | nn.Linear) -> float:
    if isinstance(layer, nn.Linear):
        return 1.0
    connections = layer.connections()
    used = torch.zeros(layer.in_features, dtype=torch.bool, device=connections.device)
    for sources in connections:
        used[sources.long()] = True
    return int(used.count_nonzero()) / layer.in_features
