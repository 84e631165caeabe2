"""The sizes of a hypernetwork at a glance."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparsehyper.analysis.wiring import connectivity, wired_layers
from sparsehyper.hypernetwork import HyperNetwork


def summarize(hnet: HyperNetwork) -> dict[str, Any]:
    """Sizes of a hypernetwork, JSON-ready.

    Returns:
        ``generator`` (its description), ``latent_dim``, ``tasks``, ``numel`` (N), ``tensors``
        (name, shape, initial standard deviation), ``layers`` (type, shape, fan-in, parameters),
        ``trainable`` (of the generator, the conditioner and the rest), ``trainable_per_parameter``
        (all of them ÷ N) and ``wiring`` (as `Connectivity.to_dict`, one coverage for each layer).

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> summarize(HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(2, dim=8)))["numel"]
    12
    """
    target, generator = hnet.target, hnet.generator
    trainable = {
        "generator": _count(generator),
        "embeddings": _count(hnet.conditioner),
        "shared": _count(target),
    }
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
        "layers": [
            {
                "layer": type(layer).__name__,
                "inputs": layer.in_features,
                "outputs": layer.out_features,
                "fan_in": getattr(layer, "fan_in", layer.in_features),
                "parameters": _count(layer),
            }
            for layer in wired_layers(generator)
        ],
        "trainable": trainable,
        "trainable_per_parameter": sum(trainable.values()) / target.numel,
        "wiring": connectivity(hnet).to_dict(),
    }


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
