"""FiLM: a scale and a shift of every output channel of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from sparsehyper.target.adapters.layers import Layers
from sparsehyper.target.adapters.parametrized import Adapter, copy_with_layers


def film(module: nn.Module, layers: Layers = "*") -> nn.Module:
    """A frozen copy whose layers have a trainable scale and shift of every output channel.

    y = gamma ⊙ layer(x) + beta, computed as a change of the layer's weight and bias. Gamma
    ``[out]`` starts at one and beta ``[out]`` at zero. Their names end in ``.gamma`` and
    ``.beta``. A layer without a bias gets one.

    Args:
        module: any module; copied.
        layers: layers to change: a glob on their names, or several.

    Returns:
        A copy in which only gamma and beta are trainable.

    Raises:
        TypeError, ValueError: a pattern that matches no layer, or a layer that cannot be adapted.

    Source: E. Perez et al., "FiLM: Visual reasoning with a general conditioning layer" (AAAI
    2018); here scale and shift are applied directly after the layer.

    >>> adapted = film(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)), "0")
    >>> [tuple(p.shape) for p in adapted.parameters() if p.requires_grad]
    [(3,), (3,)]
    """
    adapted, chosen = copy_with_layers(module, layers)
    adapted.requires_grad_(False)
    for layer in chosen.values():
        scale, added = _Scale(layer.weight), layer.bias is None
        register_parametrization(layer, "weight", scale)
        if added:
            layer.bias = nn.Parameter(torch.zeros_like(scale.gamma), requires_grad=False)
        register_parametrization(layer, "bias", scale)
        register_parametrization(layer, "bias", _Shift(layer.bias, added))
    return adapted


class _Scale(Adapter):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(weight.new_ones(len(weight)))

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * self.gamma.view(-1, *[1] * (tensor.ndim - 1))


class _Shift(Adapter):
    def __init__(self, bias: Tensor, added: bool) -> None:
        super().__init__()
        self.added = added  # the layer had no bias of its own
        self.beta = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        return bias + self.beta
