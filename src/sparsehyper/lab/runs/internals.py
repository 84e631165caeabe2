"""The inside of a run's models: filters of the first layer, and the generator's wiring."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper.analysis import trace
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.sparse import SparseLinear

_FILTERS, _SIDE = 12, 32  # filters per task, and the most pixels of a side
_TRACED, _CONNECTIONS = 8, 150  # traced outputs, and the most connections of each per layer


def filters(
    model: nn.Module, image_shape: tuple[int, ...], chosen: Sequence[int]
) -> dict[str, Any] | None:
    """Filters of the first layer, for the chosen tasks; JSON-ready, see `describe_run`.

    None if no tensor has the image's channels, or its pixels, as inputs.
    """
    models: dict[int | None, Mapping[str, Tensor]]
    if isinstance(model, SharedTrunk):
        models = {None: dict(model.trunk.named_parameters())}
    elif isinstance(model, Experts):
        models = {i: dict(model.experts[i].named_parameters()) for i in chosen}
    else:
        assert isinstance(model, HyperNetwork)
        models = {i: model.generate(i) for i in chosen}
    channels, height, width = image_shape
    pixels = channels * height * width
    for name, tensor in next(iter(models.values())).items():
        if tensor.ndim == 4 and tensor.shape[1] == channels:
            shape = tensor.shape[1:]
        elif tensor.ndim == 2 and tensor.shape[1] == pixels:
            shape = torch.Size(image_shape)
        else:
            continue
        side = (min(shape[1], _SIDE), min(shape[2], _SIDE))
        rows = []
        for task, tensors in models.items():
            weights = tensors[name].detach()[:_FILTERS].reshape(-1, *shape).float()
            weights = F.adaptive_avg_pool2d(weights, side)
            scale = max(float(weights.abs().max()), 1e-12)
            raw = (weights / scale * 127).round().to(torch.int8).numpy().tobytes()
            encoded = base64.b64encode(raw).decode()
            rows.append({"task": task, "pixels": encoded, "scale": scale})
        return {"tensor": name, "shape": [len(weights), channels, *side], "rows": rows}
    return None


def wiring(model: HyperNetwork) -> dict[str, Any] | None:
    """Connections that lead to the middle of some generated tensors; see `describe_run`.

    None unless the generator is a chain of sparse layers.
    """
    layers = list(getattr(model.generator, "layers", []))
    if not layers or not all(isinstance(layer, SparseLinear) for layer in layers):
        return None
    specs = [spec for spec in model.target.layout if spec.numel]
    n = min(_TRACED, len(specs))
    traces = []
    for spec in (specs[i * len(specs) // n] for i in range(n)):
        output = spec.offset + spec.numel // 2
        ways = trace(layers, output)
        traces.append(
            {
                "tensor": spec.name,
                "output": output,
                "reached": [len(way[:, 0].unique()) for way in ways],
                "connections": [_thinned(way).tolist() for way in ways],
            }
        )
    return {
        "sizes": [layers[0].in_features, *(layer.out_features for layer in layers)],
        "fan_ins": [layer.fan_in for layer in layers],
        "topology": layers[0].topology,
        "traces": traces,
    }


def _thinned(connections: Tensor) -> Tensor:
    n = len(connections)
    return connections if n <= _CONNECTIONS else connections[:: -(-n // _CONNECTIONS)]
