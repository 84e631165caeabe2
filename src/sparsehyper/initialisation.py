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
    anything else, constant c                 c      0.1 · |c|, or 0.02 where c = 0

PyTorch starts norms and constants without any variance; a generated tensor needs some to be
generated at all.

Hyperfan-in and hyperfan-out have other variances for the first line, in which n_in and n_out are
the fans of the layer's weight, and 2 is for the ReLU that is assumed to follow:

    rule           weight                             bias
    hyperfan_in    2 / n_in, half of it with a bias   1
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
_FAN_IN_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def initial_moments(
    module: nn.Module, name: str, value: Tensor, rule: str = "torch"
) -> tuple[float, float]:
    """Mean and standard deviation for the parameter ``name`` of ``module``.

    Args:
        module: the submodule that owns the parameter.
        name: its name there, such as ``"weight"``.
        value: its present value, of any shape.
        rule: ``"torch"``, ``"hyperfan_in"`` or ``"hyperfan_out"``.

    >>> initial_moments(nn.LayerNorm(8), "weight", nn.LayerNorm(8).weight)
    (1.0, 0.1)
    """
    if isinstance(module, NORMS):
        return (1.0 if name == "weight" else 0.0), 0.1
    if isinstance(module, _FAN_IN_LAYERS) and name in ("weight", "bias"):
        weight = module.weight if name == "bias" else value
        assert isinstance(weight, Tensor)
        sizes = weight.shape[1:2] if isinstance(module, nn.Bilinear) else weight.shape[1:]
        fan_in = math.prod(sizes)
        if name == "weight" and not value.any():  # meant to start without effect, as LoRA's B
            return 0.0, 0.02
        if rule == "torch":
            return 0.0, 1 / math.sqrt(3 * fan_in)
        return 0.0, math.sqrt(_hyperfan(module, name, weight, fan_in, rule))
    if isinstance(module, _RECURRENT):
        return 0.0, 1 / math.sqrt(3 * module.hidden_size)
    if isinstance(module, _EMBEDDINGS):
        return 0.0, 1.0
    if isinstance(module, nn.MultiheadAttention) and value.ndim == 2:
        return 0.0, math.sqrt(2 / sum(value.shape))
    numbers = value.detach().double()
    mean, std = float(numbers.mean()), float(numbers.std(correction=0))
    if std > 0:
        return mean, std
    return mean, 0.1 * abs(mean) or 0.02


def _hyperfan(module: Any, name: str, weight: Tensor, fan_in: int, rule: str) -> float:
    """The variance of a weight or bias."""
    if rule == "hyperfan_in":
        return 1.0 if name == "bias" else (2 if module.bias is None else 1) / fan_in
    groups = getattr(module, "groups", 1)
    fan_out = weight.numel() // (weight.shape[1] * groups)  # what an input reaches
    if isinstance(module, nn.Linear):
        fan_out = module.out_features
    return max(2 * (1 - fan_in / fan_out), 0.02**2) if name == "bias" else 2 / fan_out
