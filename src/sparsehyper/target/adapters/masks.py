"""Masks: layers most of whose weights are zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper.target.adapters.layers import Layers
from sparsehyper.target.adapters.parametrized import (
    Adapter,
    copy_with_layers,
    kaiming_uniform,
    offset_seeded,
    parametrizations,
)


def masked(
    module: nn.Module,
    sparsity: float,
    layers: Layers = "*",
    *,
    learned: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A copy in whose weights most entries are zero.

    Exactly ``round(sparsity · numel)`` entries of each weight are zero. The others are multiplied
    by √(numel / others), so that the variance of the layer's output stays about the same. Biases
    and other layers are not masked.

    The mask is random and fixed by default. The weight's trainable parameter is then the vector of
    the other entries, row by row. A ``learned`` mask selects the entries whose ``scores`` have the
    largest magnitude. Scores have the weight's shape, and get a straight-through gradient. All
    tasks share a learned mask, so generate everything except the scores:
    ``HyperNetwork(…, generate=lambda name, p: not name.endswith("scores"))``. In either case the
    trainable weight's name ends in ``.original``.

    Args:
        module: any module; copied. Trainable parameters stay trainable.
        sparsity: share of zeros, at least 0 and below 1.
        layers: layers to mask: a glob on their names, or several.
        learned: learn the mask.
        seed: seed of the mask or of the initial scores.

    Raises:
        TypeError, ValueError: a setting of a wrong type or outside its range, a pattern that
            matches no layer, a layer that cannot be masked, or one that would lose all weights.

    Source of the learned mask: V. Ramanujan et al., "What's hidden in a randomly weighted neural
    network?" (CVPR 2020), where weights are not trained.

    >>> adapted = masked(nn.Linear(10, 4), sparsity=0.75)
    >>> [tuple(p.shape) for p in adapted.parameters()], int((adapted.weight != 0).sum())
    ([(4,), (10,)], 10)
    """
    check_number("sparsity", sparsity)
    check_integer("seed", seed, minimum=0)
    if not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be at least 0 and below 1, got {sparsity}")
    adapted, chosen = copy_with_layers(module, layers)
    rng = offset_seeded(seed)
    for name, layer in chosen.items():
        if "weight" in parametrizations(layer):
            raise ValueError(
                f"layer {name!r} of `module` has an adapted weight, which cannot be masked; "
                "call `masked` first and the other adapter on what it returns"
            )
        weight: Tensor = layer.weight
        kept = weight.numel() - round(sparsity * weight.numel())
        if not kept:
            raise ValueError(
                f"`sparsity` {sparsity} leaves none of the {weight.numel()} weights of layer "
                f"{name!r}; choose other `layers` or a lower one"
            )
        # A new parameter, because another layer may use the old one too.
        values = weight.detach() * math.sqrt(weight.numel() / kept)
        layer.weight = nn.Parameter(values, requires_grad=weight.requires_grad)
        mask = _TopScores if learned else Scatter
        register_parametrization(layer, "weight", mask(values, kept, rng))
    return adapted


def mask_first(layer: nn.Module, kept: int) -> None:
    """Give a layer, in place, a fixed mask that leaves the first entries of its weight.

    Which entries `masked` left is in the state dict, so this is the layer to load that into.

    Args:
        layer: a layer with a ``weight``.
        kept: number of entries.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    check_integer("kept", kept, minimum=1, maximum=weight.numel())
    register_parametrization(layer, "weight", Scatter(weight, kept, None))


class Scatter(Adapter):
    """A weight from the values of some of its entries: random ones, or without `rng` the first."""

    index: Tensor

    def __init__(self, weight: Tensor, kept: int, rng: torch.Generator | None) -> None:
        super().__init__()
        self.shape = weight.shape
        if rng is None:
            index = torch.arange(kept)
        else:
            index = torch.randperm(weight.numel(), generator=rng, device="cpu")[:kept].sort().values
        self.register_buffer("index", index.to(weight.device))

    def forward(self, values: Tensor) -> Tensor:
        whole = values.new_zeros(self.shape.numel())
        return whole.scatter(0, self.index, values).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten()[self.index]


class _TopScores(Adapter):
    """A weight's entries with the largest scores."""

    def __init__(self, weight: Tensor, kept: int, rng: torch.Generator) -> None:
        super().__init__()
        self.kept = kept
        self.scores = nn.Parameter(kaiming_uniform(weight, weight.shape, rng))

    def forward(self, weight: Tensor) -> Tensor:
        sizes = self.scores.abs()
        top = sizes.flatten().topk(self.kept).indices
        mask = torch.zeros_like(sizes).flatten().scatter(0, top, 1.0).view_as(sizes)
        # The difference is 0, so the mask is exact, and passes its gradient to the scores.
        return weight * (mask + (sizes - sizes.detach()))
