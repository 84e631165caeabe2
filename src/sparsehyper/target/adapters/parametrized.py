"""What adapters have in common: parametrizations of a copy's layers, and how to merge them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from sparsehyper._util.checks import check_type
from sparsehyper.target.adapters.layers import (
    Layers,
    choose_layers,
    is_plain,
    is_quantised,
    weights_of,
)
from sparsehyper.target.copying import copy_module


class Adapter(nn.Module):
    """A parametrization that an adapter registers."""


def copy_with_layers(
    module: nn.Module,
    layers: Layers,
    adaptable: Callable[[nn.Module], bool] = is_plain,
    kinds: str = "Linear or Conv",
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of ``module``, and its layers to change, by name; see `choose_layers`."""
    chosen = choose_layers(module, layers, adaptable, kinds)
    for name, layer in chosen.items():
        check_layer(layer, name)
    adapted = copy_module(module)
    copies = {name: adapted.get_submodule(name) for name in chosen}
    for layer in copies.values():
        if parametrizations(layer):
            renew_class(layer)  # parametrizing changes the class, which is the original's too
    return adapted, copies


@torch.no_grad()
def merge(module: nn.Module) -> nn.Module:
    """Fold `lora`, `film` and `masked` into ordinary weights, in place.

    The module then has the classes, names and shapes that it had before it was adapted, and the
    same outputs as now. A bias that `film` added to a layer stays, unless it is zero. A merged
    tensor is trainable if anything that it was made of is trainable. All other tensors and
    parametrizations stay as they are, and so does the change beside a quantised layer.

    Args:
        module: a module that an adapter or ``HyperNetwork.materialize`` returned.

    Returns:
        The module itself.

    Raises:
        TypeError: ``module`` is not a module.

    >>> from sparsehyper.adapters import lora
    >>> layer = merge(lora(nn.Linear(5, 3), rank=2))
    >>> type(layer).__name__, [name for name, _ in layer.named_parameters()]
    ('Linear', ['weight', 'bias'])
    """
    check_type("module", module, nn.Module, "a Module")
    for layer in list(module.modules()):
        for tensor, parts in parametrizations(layer).items():
            _fold(layer, tensor, parts)
    return module


def check_layer(layer: nn.Module, name: str) -> None:
    """Raise unless weights and bias are ordinary parameters, or adapted by an adapter."""
    if is_quantised(layer):
        if hasattr(layer, "lora"):
            raise ValueError(
                f"layer {name!r} of `module` is quantised and has a part named 'lora' already; "
                "leave it out of `layers`"
            )
        return
    if getattr(layer, "max_norm", None) is not None:
        raise ValueError(
            f"layer {name!r} of `module` renorms its weight in place, so it cannot be adapted; "
            "renorm the weight once and make the layer without `max_norm`"
        )
    biases = ["bias"] if hasattr(layer, "bias") else []
    for tensor in (*weights_of(layer), *biases):
        parts = parametrizations(layer).get(tensor, () if tensor in layer._parameters else (None,))
        if not all(isinstance(part, Adapter) for part in parts):
            raise ValueError(
                f"the {tensor} of layer {name!r} of `module` is not an ordinary parameter, so it "
                "cannot be adapted; leave it out of `layers`"
            )
        if isinstance(layer._parameters.get(tensor), nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the {tensor} of layer {name!r} of `module` has no shape yet; "
                "run the module once on an example before adapting it"
            )


def parametrizations(layer: nn.Module) -> dict[str, Any]:
    """The parametrizations of a layer by names of tensors; empty for most modules."""
    found = layer._modules.get("parametrizations")
    pairs = found.items() if isinstance(found, nn.ModuleDict) else ()
    return {name: parts for name, parts in pairs if isinstance(parts, ParametrizationList)}


def renew_class(layer: nn.Module, without: str = "") -> None:
    """Give a parametrized layer a class of its own, ``without`` the property of one tensor."""
    cls = type(layer)
    members = {name: value for name, value in vars(cls).items() if name != without}
    layer.__class__ = type(cls.__name__, cls.__bases__, members)


def _fold(layer: Any, tensor: str, parts: Any) -> None:
    """Replace the adapters of a tensor, which are its first parametrizations, by their result.

    PyTorch's ``remove_parametrizations`` would change the tensor in place, though it may be tied,
    and the layer's class, though copies of the layer have the same.
    """
    adapters = list(itertools.takewhile(lambda part: isinstance(part, Adapter), parts))
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
    if parametrizations(layer):
        renew_class(layer, without=tensor)
    else:
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
    superfluous = any(getattr(part, "added", False) for part in adapters) and not merged.any()
    layer.register_parameter(tensor, None if superfluous else merged)
    own = layer._parameters
    for name in sorted(own, key=lambda name: ("weight" not in name, "bias" not in name)):
        own[name] = own.pop(name)  # restore the order: weight, bias, others


def offset_seeded(seed: int) -> torch.Generator:
    """A generator whose numbers are not those of a module made with the same seed."""
    return torch.Generator("cpu").manual_seed(seed + 1_640_531_527)


def kaiming_uniform(like: Tensor, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Uniform with variance 1 / (3 · fan_in), as PyTorch's layers start."""
    values = torch.empty(*shape, device="cpu")
    return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=rng).to(like)
