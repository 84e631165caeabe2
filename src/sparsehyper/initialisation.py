"""What an ordinary initialisation gives each parameter tensor: its mean and standard deviation.

A generated tensor starts with these moments, so that a generated model starts where an ordinary
copy of the target would. The rules are those of PyTorch's own layers, by fan-in:

    tensor                                    mean   standard deviation
    Linear, Conv*, Bilinear: weight, bias     0      1 / √(3 · fan_in)
    RNN, LSTM, GRU and their cells: all       0      1 / √(3 · hidden_size)
    MultiheadAttention: projections           0      √(2 / (fan_in + fan_out))
    Embedding, EmbeddingBag: weight           0      1
    normalisation layers: weight              1      0.1
    normalisation layers: bias                0      0.1
    anything else, not constant               its own mean and standard deviation now
    anything else, constant c                 c      0.1 · |c|, or 0.02 where c = 0

PyTorch starts norms and constants without any variance; a generated tensor needs some to be
generated at all.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_FAN_IN_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def initial_moments(module: nn.Module, name: str, value: Tensor) -> tuple[float, float]:
    """Mean and standard deviation for the parameter ``name`` of ``module``.

    Args:
        module: the submodule that owns the parameter.
        name: its name there, such as ``"weight"``.
        value: its present value, of any shape.

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
        return 0.0, 1 / math.sqrt(3 * fan_in)
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
