"""What a hypernetwork is made of: parameters, layers and who reaches whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.sparse import SparseLinear

_WORD = 63  # latent units that one int64 holds, a bit each, with the sign left alone


@dataclass(frozen=True)
class Connectivity:
    """Share of the outputs that each latent unit reaches, and of inputs that each layer uses.

    Attributes:
        reach: one share in [0, 1] for each latent unit.
        coverage: for each layer, the share of its inputs that any output is wired to.
    """

    reach: tuple[float, ...]
    coverage: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The mean, least and greatest reach, and the coverage of every layer; JSON-ready."""
        return {
            "reach_mean": sum(self.reach) / len(self.reach),
            "reach_min": min(self.reach),
            "reach_max": max(self.reach),
            "coverage": list(self.coverage),
        }


def connectivity(generator: nn.Module) -> Connectivity:
    """Follow the wiring of a sparse generator from every latent unit to the outputs, exactly.

    Latent units are the bits of a word, so the cost is that of one forward pass for every 63 of
    them, and nothing dense is formed.

    Args:
        generator: a module with ``SparseLinear`` layers, one after the other.

    Raises:
        ValueError: it has none.

    Source: connectivity and coverage as in F. Cubélier, "Sparse hypernetworks for multitasking"
    (Liège, 2022).

    >>> from sparsehyper import Sparse
    >>> connectivity(Sparse(fan_in=8).build(latent_dim=4, numel=100)).reach
    (1.0, 1.0, 1.0, 1.0)
    """
    layers = [module for module in generator.modules() if isinstance(module, SparseLinear)]
    if not layers:
        raise ValueError(f"`generator` has no sparse layers, got a {type(generator).__name__}")
    sources = [layer.connections().long() for layer in layers]
    coverage = [
        taps.unique().numel() / layer.in_features
        for layer, taps in zip(layers, sources, strict=True)
    ]
    latent_dim, numel = layers[0].in_features, layers[-1].out_features
    reach: list[float] = []
    for first in range(0, latent_dim, _WORD):
        units = range(first, min(first + _WORD, latent_dim))
        reached = torch.zeros(latent_dim, dtype=torch.long, device=sources[0].device)
        for bit, unit in enumerate(units):
            reached[unit] = 1 << bit
        for taps in sources:
            reached = _any_bit(reached, taps)
        reach += [float(((reached >> bit) & 1).sum()) / numel for bit in range(len(units))]
    return Connectivity(tuple(reach), tuple(coverage))


def summarize(hnet: HyperNetwork) -> dict[str, Any]:
    """Sizes of a hypernetwork, JSON-ready.

    Returns:
        ``generator`` (its description), ``latent_dim``, ``tasks``, ``numel`` (N), ``tensors``
        (name, shape, initial standard deviation), ``layers`` (type, shape, fan-in, parameters),
        ``trainable`` (of the generator, the embeddings and the rest), ``trainable_per_parameter``
        (all of them ÷ N) and, for a sparse generator, ``wiring``.
    """
    target, generator = hnet.target, hnet.generator
    trainable = {
        "generator": _count(generator),
        "embeddings": _count(hnet.conditioner),
        "shared": _count(target),
    }
    layers = [
        {
            "layer": type(module).__name__,
            "inputs": module.in_features,
            "outputs": module.out_features,
            "fan_in": getattr(module, "fan_in", module.in_features),
            "parameters": _count(module),
        }
        for module in generator.modules()
        if isinstance(module, (SparseLinear, nn.Linear))
    ]
    is_sparse = any(isinstance(module, SparseLinear) for module in generator.modules())
    return {
        "generator": hnet.config["generator"],
        "latent_dim": hnet.conditioner.dim,
        "tasks": len(hnet.task_names),
        "numel": target.numel,
        "tensors": [
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "initial_std": std,
            }
            for spec, std in zip(target.layout, target.moments[1].tolist(), strict=True)
        ],
        "layers": layers,
        "trainable": trainable,
        "trainable_per_parameter": sum(trainable.values()) / target.numel,
        "wiring": connectivity(generator).to_dict() if is_sparse else None,
    }


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _any_bit(reached: Tensor, taps: Tensor) -> Tensor:
    out = reached[taps[0]]
    for tap in taps[1:]:
        out |= reached[tap]
    return out
