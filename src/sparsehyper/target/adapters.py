"""Adapters: targets in which only a change of a module is generated.

Each function returns an adapted copy of a module. Its trainable parameters are those to generate,
so ``HyperNetwork(lora(module, 4), …)`` needs no other setting.

    function   weight and bias of an adapted layer                  generated, per layer
    lora       W0 + (alpha / rank) · B A,  b0                       rank · (out + in · kernel)
    film       gamma ⊙ W0,  gamma ⊙ b0 + beta                       2 · out
    masked     values at random places, zeros elsewhere,  b         (1 - sparsity) · numel(W) + out

Layers are ``nn.Linear`` and ``nn.Conv1d``, ``2d`` and ``3d``, with groups too, and subclasses.
Adapters are parametrizations of ``torch.nn.utils.parametrize``: layers keep their names, and remain
instances of their classes. `merge` turns the parametrizations into ordinary weights.

Two layers with a tied weight are adapted separately, and `merge` unties them.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper.target.copying import copy_module

Layers = str | Sequence[str]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def lora(
    module: nn.Module, rank: int, layers: Layers = "*", *, alpha: float | None = None, seed: int = 0
) -> nn.Module:
    """A frozen copy whose weights W0 have a trainable change of low rank.

    W = W0 + (alpha / rank) · (B @ A).view_as(W0). A ``[rank, in · kernel]`` starts from Kaiming's
    uniform distribution with variance 1 / (3 · in · kernel), as in the authors' code; the paper
    says Gaussian. B ``[out, rank]`` starts at zero. Their names end in ``.A`` and ``.B``.

    Args:
        module: any module; copied.
        rank: rank of the change, at least 1.
        layers: layers to change: a glob on their names, or several.
        alpha: the change is multiplied by ``alpha / rank``; None for a factor of 1.
        seed: seed of A.

    Returns:
        A copy in which only A and B are trainable; call ``requires_grad_()`` on anything else to
        train or generate, such as the last layer.

    Raises:
        TypeError, ValueError: a setting of a wrong type or outside its range, a pattern that
            matches no layer, or a layer that cannot be adapted.

    Source: E. Hu et al., "LoRA: Low-rank adaptation of large language models" (ICLR 2022).

    >>> adapted = lora(nn.Linear(5, 3), rank=2)
    >>> [(name[-1:], *p.shape) for name, p in adapted.named_parameters() if p.requires_grad]
    [('A', 2, 5), ('B', 3, 2)]
    """
    check_integer("rank", rank, minimum=1)
    check_integer("seed", seed, minimum=0)
    alpha = rank if alpha is None else alpha
    check_number("alpha", alpha, above=0)
    adapted, chosen = _copy_with_layers(module, layers)
    adapted.requires_grad_(False)
    rng = _seeded(seed)
    for layer in chosen.values():
        register_parametrization(layer, "weight", _LowRank(layer.weight, rank, alpha / rank, rng))
    return adapted


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
    adapted, chosen = _copy_with_layers(module, layers)
    adapted.requires_grad_(False)
    for layer in chosen.values():
        scale, added = _Scale(layer.weight), layer.bias is None
        register_parametrization(layer, "weight", scale)
        if added:
            layer.bias = nn.Parameter(torch.zeros_like(scale.gamma), requires_grad=False)
        register_parametrization(layer, "bias", scale)
        register_parametrization(layer, "bias", _Shift(layer.bias, added))
    return adapted


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
    adapted, chosen = _copy_with_layers(module, layers)
    rng = _seeded(seed)
    for name, layer in chosen.items():
        if "weight" in _parametrizations(layer):
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
        mask = _TopScores if learned else _Scatter
        register_parametrization(layer, "weight", mask(values, kept, rng))
    return adapted


@torch.no_grad()
def merge(module: nn.Module) -> nn.Module:
    """Fold `lora`, `film` and `masked` into ordinary weights, in place.

    The module then has the classes, names and shapes that it had before it was adapted, and the
    same outputs as now. A bias that `film` added to a layer stays, unless it is zero. A merged
    tensor is trainable if anything that it was made of is trainable. All other tensors and
    parametrizations stay as they are.

    Args:
        module: a module that an adapter or ``HyperNetwork.materialize`` returned.

    Returns:
        The module itself.

    Raises:
        TypeError: ``module`` is not a module.

    >>> layer = merge(lora(nn.Linear(5, 3), rank=2))
    >>> type(layer).__name__, [name for name, _ in layer.named_parameters()]
    ('Linear', ['weight', 'bias'])
    """
    _check_module(module)
    for layer in list(module.modules()):
        for tensor, parts in _parametrizations(layer).items():
            _fold(layer, tensor, parts)
    return module


class _Adapter(nn.Module):
    """A parametrization that one of this file's functions registers."""


class _LowRank(_Adapter):
    def __init__(self, weight: Tensor, rank: int, factor: float, rng: torch.Generator) -> None:
        super().__init__()
        self.factor = factor
        self.A = nn.Parameter(_kaiming_uniform(weight, (rank, weight[0].numel()), rng))
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.factor * (self.B @ self.A).view_as(weight)


class _Scale(_Adapter):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(weight.new_ones(len(weight)))

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * self.gamma.view(-1, *[1] * (tensor.ndim - 1))


class _Shift(_Adapter):
    def __init__(self, bias: Tensor, added: bool) -> None:
        super().__init__()
        self.added = added  # the layer had no bias of its own
        self.beta = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        return bias + self.beta


class _Scatter(_Adapter):
    """A weight from the values of some of its entries."""

    index: Tensor

    def __init__(self, weight: Tensor, kept: int, rng: torch.Generator) -> None:
        super().__init__()
        self.shape = weight.shape
        index = torch.randperm(weight.numel(), generator=rng, device="cpu")[:kept].sort().values
        self.register_buffer("index", index.to(weight.device))

    def forward(self, values: Tensor) -> Tensor:
        whole = values.new_zeros(self.shape.numel())
        return whole.scatter(0, self.index, values).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten()[self.index]


class _TopScores(_Adapter):
    """A weight's entries with the largest scores."""

    def __init__(self, weight: Tensor, kept: int, rng: torch.Generator) -> None:
        super().__init__()
        self.kept = kept
        self.scores = nn.Parameter(_kaiming_uniform(weight, weight.shape, rng))

    def forward(self, weight: Tensor) -> Tensor:
        sizes = self.scores.abs()
        top = sizes.flatten().topk(self.kept).indices
        mask = torch.zeros_like(sizes).flatten().scatter(0, top, 1.0).view_as(sizes)
        # The difference is 0, so the mask is exact, and passes its gradient to the scores.
        return weight * (mask + (sizes - sizes.detach()))


def _seeded(seed: int) -> torch.Generator:
    # An offset: with the same seed, scores could equal the initial weights of the module.
    return torch.Generator("cpu").manual_seed(seed + 1_640_531_527)


def _kaiming_uniform(like: Tensor, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Uniform with variance 1 / (3 · fan_in), as PyTorch's layers start."""
    values = torch.empty(*shape, device="cpu")
    return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=rng).to(like)


def _copy_with_layers(module: nn.Module, layers: Layers) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of ``module``, and its layers that ``layers`` match, by name."""
    _check_module(module)
    found = {
        name: layer
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _LAYERS)
    }
    if not found:
        raise ValueError(f"`module` must have a Linear or Conv layer, got {module!r}")
    if not isinstance(layers, Iterable):
        raise TypeError(f"`layers` must be a glob or several, got {layers!r}")
    chosen: dict[nn.Module, str] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        matches = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(
                f"`layers` pattern {pattern!r} matches no Linear or Conv layer of `module`; "
                f"it has: {', '.join(map(repr, found))}"
            )
        for name in matches:
            chosen.setdefault(found[name], name)
    if not chosen:
        raise ValueError(f"`layers` must name at least one layer, got {layers!r}")
    for layer, name in chosen.items():
        _check_layer(layer, name)
    adapted = copy_module(module)
    copies = {name: adapted.get_submodule(name) for name in chosen.values()}
    for layer in copies.values():
        if _parametrizations(layer):
            _renew_class(layer)  # parametrizing changes the class, which is the original's too
    return adapted, copies


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a Module, got {module!r}")


def _check_layer(layer: nn.Module, name: str) -> None:
    """Raise unless weight and bias are ordinary parameters, or adapted by this file's functions."""
    for tensor in ("weight", "bias"):
        parts = _parametrizations(layer).get(tensor, () if tensor in layer._parameters else (None,))
        if not all(isinstance(part, _Adapter) for part in parts):
            raise ValueError(
                f"the {tensor} of layer {name!r} of `module` is not an ordinary parameter, so it "
                "cannot be adapted; leave it out of `layers`"
            )
        if isinstance(layer._parameters.get(tensor), nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the {tensor} of layer {name!r} of `module` has no shape yet; "
                "run the module once on an example before adapting it"
            )


def _parametrizations(layer: nn.Module) -> dict[str, Any]:
    """The parametrizations of a layer by names of tensors; empty for most modules."""
    found = layer._modules.get("parametrizations")
    pairs = found.items() if isinstance(found, nn.ModuleDict) else ()
    return {name: parts for name, parts in pairs if isinstance(parts, ParametrizationList)}


def _renew_class(layer: nn.Module, without: str = "") -> None:
    """Give a parametrized layer a class of its own, ``without`` the property of one tensor."""
    cls = type(layer)
    members = {name: value for name, value in vars(cls).items() if name != without}
    layer.__class__ = type(cls.__name__, cls.__bases__, members)


def _fold(layer: Any, tensor: str, parts: Any) -> None:
    """Replace the adapters of a tensor, which are its first parametrizations, by their result.

    PyTorch's ``remove_parametrizations`` would change the tensor in place, though it may be tied,
    and the layer's class, though copies of the layer have the same.
    """
    adapters = list(itertools.takewhile(lambda part: isinstance(part, _Adapter), parts))
    if not adapters:
        return
    value = parts.original
    for part in adapters:
        value = part(value)
    sources = [parts.original, *(p for part in adapters for p in part.parameters())]
    merged = nn.Parameter(value, requires_grad=any(source.requires_grad for source in sources))
    if len(adapters) < len(parts):
        parts.original = merged
        del parts[: len(adapters)]
        return
    del layer.parametrizations[tensor]
    if _parametrizations(layer):
        _renew_class(layer, without=tensor)
    else:
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
    superfluous = any(getattr(part, "added", False) for part in adapters) and not merged.any()
    layer.register_parameter(tensor, None if superfluous else merged)
    own = layer._parameters
    for name in sorted(own, key=lambda name: (name != "weight", name != "bias")):
        own[name] = own.pop(name)  # restore the order: weight, bias, others
