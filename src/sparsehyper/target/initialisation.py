"""Initial mean and standard deviation of each generated tensor.

A generated tensor starts with these moments, so that a generated model starts where an ordinary
copy of the target would. The rules are PyTorch's own, by fan-in:

    tensor                                    mean   standard deviation
    Linear, Conv*, Bilinear: weight, bias     0      1 / √(3 · fan_in)
      an all-zero weight                      0      0.02
    RNN, LSTM, GRU and their cells: all       0      1 / √(3 · hidden_size)
    MultiheadAttention: projections           0      √(2 / (fan_in + fan_out))
    Embedding, EmbeddingBag: weight           0      1
    normalisation layers: weight              1      0.1
    normalisation layers: bias                0      0.1
    anything else, not constant               its present mean and standard deviation
    anything else, constant c                 c      0.1 · |c|, at least 0.02

Weights that the module itself starts much wider or narrower than these rules (SIREN, language
models) keep their own mean and standard deviation, if they have enough elements to estimate them.

PyTorch starts norms and constants without variance. A generated tensor needs some, or the
generator would have no influence on it.

Hyperfan-in and hyperfan-out have other variances for the first line. In these, n_in and n_out are
the fans of the layer's weight, and the factor 2 is for the ReLU that is assumed to follow:

    rule           weight                             bias
    hyperfan_in    2 / n_in; 1 / n_in with a          1
                   generated bias
    hyperfan_out   2 / n_out                          2 (1 - n_in / n_out), at least 0.02²

These are the variances of the generated tensors. The generator's own weights do not matter here,
since its outputs have unit variance and are scaled tensor by tensor; the paper's special case for
chunked generators is therefore the same. The floor of the bias's variance, which could be exactly
0, is this library's.

Source: O. Chang et al., "Principled weight initialization for hypernetworks" (ICLR 2020).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
INIT_RULES = ("torch", "hyperfan_in", "hyperfan_out")
_MIN_FOR_STD = 32  # fewer values give too noisy a standard deviation
_FAN_IN_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def initial_moments(
    module: nn.Module, name: str, value: Tensor, rule: str = "torch", *, with_bias: bool = True
) -> tuple[float, float]:
    """Mean and standard deviation for the parameter ``name`` of ``module``.

    Args:
        module: the submodule that owns the parameter.
        name: the parameter's name in it, such as ``"weight"``.
        value: the parameter's present value, of any shape.
        rule: ``"torch"``, ``"hyperfan_in"`` or ``"hyperfan_out"``.
        with_bias: whether the layer's bias, if it has one, is generated too.

    >>> initial_moments(nn.LayerNorm(8), "weight", nn.LayerNorm(8).weight)
    (1.0, 0.1)
    """
    if not value.numel():
        return 0.0, 1.0
    usual = _usual_moments(module, name, value, rule, with_bias)
    numbers = value.detach().double()
    mean, std = float(numbers.mean()), float(numbers.std(correction=0))
    if usual is None:
        return mean, std or max(0.1 * abs(mean), 0.02)
    may_differ = rule == "torch" and value.numel() >= _MIN_FOR_STD and not isinstance(module, NORMS)
    if may_differ and std and not 1 / 2 < std / usual[1] < 2:
        return mean, std
    return usual


def padding_row(module: nn.Module, name: str) -> int | None:
    """The row of an embedding that stands for padding, if it is zero: kept zero for every task."""
    row = getattr(module, "padding_idx", None)
    if not isinstance(module, _EMBEDDINGS) or row is None or name != "weight":
        return None
    return None if module.weight[row].any() else row % len(module.weight)


def _usual_moments(
    module: nn.Module, name: str, value: Tensor, rule: str, with_bias: bool
) -> tuple[float, float] | None:
    if isinstance(module, NORMS):
        return (1.0 if name == "weight" else 0.0), 0.1
    if isinstance(module, _FAN_IN_LAYERS) and name in ("weight", "bias"):
        if name == "weight" and not value.any():  # meant to start without effect, like LoRA's B
            return 0.0, 0.02
        if rule == "torch":
            return 0.0, 1 / math.sqrt(3 * _fan_in(module))
        return 0.0, math.sqrt(_hyperfan(module, name, rule, with_bias))
    if isinstance(module, _RECURRENT):
        return 0.0, 1 / math.sqrt(3 * module.hidden_size)
    if isinstance(module, _EMBEDDINGS):
        return 0.0, 1.0
    if isinstance(module, nn.MultiheadAttention) and value.ndim == 2:
        return 0.0, math.sqrt(2 / sum(value.shape))
    return None


# Fans follow from a layer's settings: reading a parametrised weight may change it.


def _fan_in(layer: Any) -> int:
    if isinstance(layer, nn.Bilinear):
        return layer.in1_features
    if isinstance(layer, nn.Linear):
        return layer.in_features
    channels = layer.out_channels if layer.transposed else layer.in_channels
    return channels // layer.groups * math.prod(layer.kernel_size)


def _fan_out(layer: Any) -> int:
    if isinstance(layer, (nn.Linear, nn.Bilinear)):
        return layer.out_features
    channels = layer.in_channels if layer.transposed else layer.out_channels
    return channels // layer.groups * math.prod(layer.kernel_size)


def _hyperfan(layer: Any, name: str, rule: str, with_bias: bool) -> float:
    """Variance of a weight or bias by the rules hyperfan-in and hyperfan-out."""
    fan_in, fan_out = float(_fan_in(layer)), float(_fan_out(layer))
    if getattr(layer, "transposed", False):  # PyTorch's fans are the other way round
        overlaps = math.prod(layer.stride)
        fan_in, fan_out = fan_out / overlaps, float(fan_in)
    if rule == "hyperfan_in":
        has_bias = with_bias and layer.bias is not None
        return 1.0 if name == "bias" else (1 if has_bias else 2) / fan_in
    return max(2 * (1 - fan_in / fan_out), 0.02**2) if name == "bias" else 2 / fan_out
