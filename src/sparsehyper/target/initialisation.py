"""What an ordinary initialisation gives each parameter tensor: its mean and standard deviation.

A generated tensor starts with these moments, so that a generated model starts where an ordinary
copy of the target would. The rules are those of PyTorch's own layers, by fan-in:

    tensor                                    mean   standard deviation
    Linear, Conv*, Bilinear: weight, bias     0      1 / √(3 · fan_in)
      a weight that is all 0                  0      0.02
    RNN, LSTM, GRU and their cells: all       0      1 / √(3 · hidden_size)
    MultiheadAttention: projections           0      √(2 / (fan_in + fan_out))
    Embedding, EmbeddingBag: weight           0      1
    normalisation layers: weight              1      0.1
    normalisation layers: bias                0      0.1
    anything else, not constant               its own mean and standard deviation now
    anything else, constant c                 c      0.1 · |c|, at least 0.02

Weights that the module itself starts much wider or narrower than these rules (SIREN, language
models) keep their own mean and deviation, where they have enough numbers to tell.

PyTorch starts norms and constants without any variance; a generated tensor needs some to be
generated at all.

Hyperfan-in and hyperfan-out have other variances for the first line, in which n_in and n_out are
the fans of the layer's weight, and 2 is for the ReLU that is assumed to follow:

    rule           weight                             bias
    hyperfan_in    2 / n_in, half of it with a        1
                   generated bias
    hyperfan_out   2 / n_out                          2 (1 - n_in / n_out), at least 0.02²

They are the variances that the generated tensors get; by which weights of the generator that is
brought about does not matter here, since its outputs have unit variance and are scaled tensor by
tensor. So the chunk-aware form of it, of generators that make several tensors by one head, is the
same. The floor for biases, which would be exactly 0, is this library's.

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
INITS = ("torch", "hyperfan_in", "hyperfan_out")
_TELLING = 32  # numbers, of which the deviation is known well enough
_FAN_IN_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def initial_moments(
    module: nn.Module, name: str, value: Tensor, rule: str = "torch", *, with_bias: bool = True
) -> tuple[float, float]:
    """Mean and standard deviation for the parameter ``name`` of ``module``.

    Args:
        module: the submodule that owns the parameter.
        name: its name there, such as ``"weight"``.
        value: its present value, of any shape.
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
    is_own = rule == "torch" and value.numel() >= _TELLING and not isinstance(module, NORMS)
    if is_own and std and not 1 / 2 < std / usual[1] < 2:
        return mean, std
    return usual


def _usual_moments(
    module: nn.Module, name: str, value: Tensor, rule: str, with_bias: bool
) -> tuple[float, float] | None:
    if isinstance(module, NORMS):
        return (1.0 if name == "weight" else 0.0), 0.1
    if isinstance(module, _FAN_IN_LAYERS) and name in ("weight", "bias"):
        if name == "weight" and not value.any():  # meant to start without effect, as LoRA's B
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


# Fans go by a layer's settings: to look at a parametrised weight may change it.


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
    """The variance of a weight or bias."""
    fan_in, fan_out = float(_fan_in(layer)), float(_fan_out(layer))
    if getattr(layer, "transposed", False):  # of which PyTorch's fans are the other way round
        overlaps = math.prod(layer.stride)
        fan_in, fan_out = fan_out / overlaps, float(fan_in)
    if rule == "hyperfan_in":
        has_bias = with_bias and layer.bias is not None
        return 1.0 if name == "bias" else (1 if has_bias else 2) / fan_in
    return max(2 * (1 - fan_in / fan_out), 0.02**2) if name == "bias" else 2 / fan_out
