"""The sizes of a hypernetwork at a glance."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparsehyper.analysis.wiring import connectivity, wired_layers
from sparsehyper.hypernetwork import HyperNetwork


def summarize(hnet: HyperNetwork) -> dict[str, Any]:
    """Sizes of a hypernetwork.

    Returns:
        A JSON-ready dict: ``generator`` (its configuration), ``latent_dim``, ``tasks``, ``numel``
        (N), ``tensors`` (name, shape and initial standard deviation of each), ``layers`` (type,
        shape, fan-in and parameters of each), ``trainable`` (parameters of the generator, the
        conditioner and the target), ``trainable_per_parameter`` (their sum ÷ N) and ``wiring`` (as
        `Connectivity.to_dict`).

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> summarize(HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(2, dim=8)))["numel"]
    12
    """
    target, generator = hnet.target, hnet.generator
    trainable = {
        "generator": _count_trainable(generator),
        "embeddings": _count_trainable(hnet.conditioner),
        "shared": _count_trainable(target),
    }
    return {
        "generator": hnet.settings["generator"],
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
                "parameters": _count_trainable(layer),
            }
            for layer in wired_layers(generator)
        ],
        "trainable": trainable,
        "trainable_per_parameter": sum(trainable.values()) / target.numel,
        "wiring": connectivity(hnet).to_dict(),
    }


def _count_trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
