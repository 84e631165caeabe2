"""Other forms of what is generated: copies of a module with fewer, or other, parameters.

Each function returns an adapted copy of a module, whose trainable parameters are what a
hypernetwork is to generate, so that ``HyperNetwork(lora(module, 4), …)`` needs nothing else.

    function   weight and bias of an adapted layer                  generated, per layer
    lora       W0 + (alpha / rank) · B A,  b0                       rank · (out + in · kernel)
    film       gamma ⊙ W0,  gamma ⊙ b0 + beta                       2 · out
    masked     values at random places, zeros elsewhere,  b         (1 - sparsity) · numel(W) + out

Layers are ``nn.Linear`` and ``nn.Conv1d``, ``2d`` and ``3d``, grouped ones too, and subclasses.
All is done by ``torch.nn.utils.parametrize``: layers keep their names, and remain instances of
their classes. `merge` turns the parametrizations into ordinary weights.

Of two layers with one tied weight, each is adapted for itself, and `merge` unties them.
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
    uniform distribution with variance 1 / (3 · in · kernel), as in the authors' code, where the
    paper says Gaussian; B ``[out, rank]`` starts at zero. Their names end in ``.A`` and ``.B``.

    Args:
        module: any module; copied.
        rank: of the change, at least 1.
        layers: which layers change: a glob on their names, or several.
        alpha: multiplies the change, divided by ``rank``; None for ``rank``, a factor of 1.
        seed: of A.

    Returns:
        A copy in which A and B are all that is trainable; call ``requires_grad_()`` on whatever
        else is to be trained or generated, such as the last layer.

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

    y = gamma ⊙ layer(x) + beta, computed as a change of the layer's weight and bias, with gamma
    ``[out]`` starting at one and beta ``[out]`` at zero. Their names end in ``.gamma`` and
    ``.beta``. A layer without a bias gets one.

    Args:
        module: any module; copied.
        layers: which layers change: a glob on their names, or several.

    Returns:
        A copy in which gamma and beta are all that is trainable.

    Raises:
        TypeError, ValueError: a pattern that matches no layer, or a layer that cannot be adapted.

    Source: E. Perez et al., "FiLM: Visual reasoning with a general conditioning layer" (AAAI
    2018); here the scale and shift directly follow the layer.

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
    """A copy whose weights are zero but for a part of their entries.

    Exactly ``round(sparsity · numel)`` entries of each weight are zero. The others are multiplied
    by √(numel / others), so that the variance of the layer's output stays about the same. Biases
    and what is not in ``layers`` stay whole.

    The mask is random and fixed, and the weight's trainable parameter is the vector of its other
    entries, row by row; or it is ``learned``: the entries with the largest magnitude of
    ``scores``, which have the weight's shape and get its gradient straight through the mask. A
    learned mask is for all tasks together: generate all but the scores, by
    ``HyperNetwork(…, generate=lambda name, p: not name.endswith("scores"))``. In either case the
    trainable weight's name ends in ``.original``.

    Args:
        module: any module; copied. What of it is trainable stays so.
        sparsity: the part of zeros, at least 0 and below 1.
        layers: which layers are masked: a glob on their names, or several.
        learned: learn the mask.
        seed: of the mask or of the initial scores.

    Raises:
        TypeError, ValueError: a setting of a wrong type or outside its range, a pattern that
            matches no layer, or a layer that cannot be masked or of which nothing would remain.

    Source: of the learned mask, V. Ramanujan et al., "What's hidden in a randomly weighted neural
    network?" (CVPR 2020), where weights stay as they are.

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
        # A new parameter, as the old one may be another layer's too.
        values = weight.detach() * math.sqrt(weight.numel() / kept)
        layer.weight = nn.Parameter(values, requires_grad=weight.requires_grad)
        mask = _TopScores if learned else _Scatter
        register_parametrization(layer, "weight", mask(values, kept, rng))
    return adapted


@torch.no_grad()
def merge(module: nn.Module) -> nn.Module:
    """Fold `lora`, `film` and `masked` into ordinary weights, in place.

    The module then has the classes, names and shapes that it had before it was adapted, and the
    same outputs as now. Only a layer without a bias keeps the one that `film` gave it, unless it
    is zero. A merged tensor is trainable if anything that it was made of is; others stay as they
    are. Other parametrizations stay too.

    Args:
        module: what an adapter or ``HyperNetwork.materialize`` returned; returned again.

    Raises:
        TypeError: no module.

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
    """A parametrization of ours."""


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
        # The difference is 0, so the mask is exact; its gradient is the scores'.
        return weight * (mask + (sizes - sizes.detach()))


def _seeded(seed: int) -> torch.Generator:
    # From the seed itself, scores could be the very numbers that the module's weights started as.
    return torch.Generator("cpu").manual_seed(seed + 1_640_531_527)


def _kaiming_uniform(like: Tensor, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Uniform with variance 1 / (3 · fan_in), as PyTorch's layers start."""
    values = torch.empty(*shape, device="cpu")
    return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=rng).to(like)


def _copy_with_layers(module: nn.Module, layers: Layers) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of ``module`` and those of its layers, by name, that ``layers`` match."""
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
            _renew_class(layer)  # it is the given layer's too, and parametrizing changes it
    return adapted, copies


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a Module, got {module!r}")


def _check_layer(layer: nn.Module, name: str) -> None:
    """Raise unless weight and bias are ordinary parameters, or adapted by us."""
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
    """The parametrizations of a layer's tensors; of most modules none."""
    found = layer._modules.get("parametrizations")
    pairs = found.items() if isinstance(found, nn.ModuleDict) else ()
    return {name: parts for name, parts in pairs if isinstance(parts, ParametrizationList)}


def _renew_class(layer: nn.Module, without: str = "") -> None:
    """Give a parametrized layer a class of its own, ``without`` the property of one tensor."""
    cls = type(layer)
    members = {name: value for name, value in vars(cls).items() if name != without}
    layer.__class__ = type(cls.__name__, cls.__bases__, members)


def _fold(layer: Any, tensor: str, parts: Any) -> None:
    """Compute what our parametrizations of a tensor, which stand first, make of it.

    PyTorch's ``remove_parametrizations`` would change the tensor in place, which may be tied to
    another, and the layer's class, which is that of the layer's copies too.
    """
    ours = list(itertools.takewhile(lambda part: isinstance(part, _Adapter), parts))
    if not ours:
        return
    value = parts.original
    for part in ours:
        value = part(value)
    sources = [parts.original, *(p for part in ours for p in part.parameters())]
    merged = nn.Parameter(value, requires_grad=any(source.requires_grad for source in sources))
    if len(ours) < len(parts):
        parts.original = merged
        del parts[: len(ours)]
        return
    del layer.parametrizations[tensor]
    if _parametrizations(layer):
        _renew_class(layer, without=tensor)
    else:
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
    superfluous = any(getattr(part, "added", False) for part in ours) and not merged.any()
    layer.register_parameter(tensor, None if superfluous else merged)
    own = layer._parameters
    for name in sorted(own, key=lambda name: (name != "weight", name != "bias")):
        own[name] = own.pop(name)  # in the order that they had
