"""Which layers of a module an adapter changes.

    kind            classes                                       weights
    linear          Linear, transformers' Conv1D                  weight
    convolutions    Conv1d, 2d, 3d; ConvTranspose1d, 2d, 3d       weight
    attention       MultiheadAttention (its output projection     in_proj_weight, or q_proj_weight,
                    is a Linear of its own)                       k_proj_weight and v_proj_weight
    embeddings      Embedding                                     weight
    quantised       linear layers whose weight is no ordinary     none that can be changed
                    tensor of real numbers

Subclasses count. The classes of packages that may be missing are recognised by their names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sparsehyper._util.checks import check_type

Layers = str | Sequence[str] | re.Pattern[str]

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_HEADS = ("score", "classifier", "qa_outputs")  # of transformers' models that are no generators
_SHARE = 0.1  # of the weights: the least that a choice made for the user must reach
_MOST_SHOWN = 20  # names of layers in an error


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a Linear or a Conv layer with ordinary weights."""
    return isinstance(layer, PLAIN) and not is_quantised(layer)


def is_adaptable(layer: nn.Module) -> bool:
    """Whether `lora` can change a layer."""
    known = (*PLAIN, *TRANSPOSED, nn.MultiheadAttention, nn.Embedding)
    return isinstance(layer, known) or is_conv1d(layer) or is_quantised(layer)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear, or an attention with projections of its own."""
    known = isinstance(layer, nn.Linear | nn.MultiheadAttention)
    return known or is_conv1d(layer) or is_quantised(layer)


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is transformers' Conv1D, a linear layer with weight ``[in, out]``."""
    return any(
        cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        for cls in type(layer).__mro__
    )


def is_quantised(layer: nn.Module) -> bool:
    """Whether a linear layer's weight is packed, in a tensor subclass or in tensors of its own."""
    weight = layer._parameters.get("weight")
    if isinstance(layer, nn.Linear):
        ordinary = (nn.Parameter, nn.parameter.UninitializedParameter)
        return weight is not None and (
            type(weight) not in ordinary or not (weight.is_floating_point() or weight.is_complex())
        )
    sizes = [getattr(layer, name, None) for name in ("in_features", "out_features")]
    return (
        any("Linear" in cls.__name__ for cls in type(layer).__mro__)
        and all(isinstance(size, int) for size in sizes)
        and not any(p.is_floating_point() and p.ndim > 1 for p in layer.parameters())
    )


def weights_of(layer: nn.Module) -> list[str]:
    """Names of the weights that an adapter changes."""
    if not isinstance(layer, nn.MultiheadAttention):
        return ["weight"]
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    # `getattr` reads weights that are parametrized too.
    return [name for name in names if getattr(layer, name) is not None]


def choose_layers(
    module: nn.Module, layers: Layers, adaptable: Callable[[nn.Module], bool], kinds: str
) -> dict[str, nn.Module]:
    """The layers of ``module`` that ``layers`` stands for, by name.

    Args:
        module: any module.
        layers: ``"*"``, ``"all-linear"``, another glob or a name, several of them, or a compiled
            regular expression; see `lora`.
        adaptable: whether a layer can be changed.
        kinds: what such layers are called, for errors.

    Raises:
        TypeError, ValueError: a selection of a wrong type, or that selects nothing, or next to
            nothing.
    """
    check_type("module", module, nn.Module, "a Module")
    # Tied modules may be chosen by either name.
    everything = module.named_modules(remove_duplicate=False)
    found = {name: layer for name, layer in everything if adaptable(layer)}
    if not found:
        shown = repr(module) if len(repr(module)) < 200 else type(module).__name__
        raise ValueError(
            f"`module` must have a {kinds} layer, got {shown}{_unknown(module, found)}"
        )
    if isinstance(layers, str) and layers in ("*", "all-linear"):
        chosen = _usual(module, layers, found)
    elif isinstance(layers, re.Pattern):
        chosen = [name for name in found if layers.fullmatch(name)]
        if not chosen:
            raise _no_match(layers.pattern, kinds, found)
    elif isinstance(layers, Iterable):
        chosen = []
        for pattern in [layers] if isinstance(layers, str) else layers:
            matches = _matches(pattern, found)
            if not matches:
                raise _no_match(pattern, kinds, found)
            chosen += matches
    else:
        raise TypeError(f"`layers` must be a glob or several, got {layers!r}")
    if not chosen:
        raise ValueError(f"`layers` must name at least one layer, got {layers!r}")
    names: dict[nn.Module, str] = {}
    for name in chosen:
        names.setdefault(found[name], name)
    return {name: layer for layer, name in names.items()}


def _no_match(pattern: str, kinds: str, found: Iterable[str]) -> ValueError:
    return ValueError(
        f"`layers` pattern {pattern!r} matches no {kinds} layer of `module`; it has: "
        f"{_shown(found)}"
    )


def _matches(pattern: str, found: Iterable[str]) -> list[str]:
    """The names that a glob matches from the beginning; if there are none, from any dot on."""
    check_type("layers", pattern, str, "a glob or several")
    whole = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
    return whole or [name for name in found if fnmatch.fnmatchcase(name, f"*.{pattern}")]


def _usual(module: nn.Module, layers: str, found: dict[str, Any]) -> list[str]:
    """The layers that ``"*"`` or ``"all-linear"`` stands for, which must hold most weights."""
    head = _output_layer(module)
    if layers == "*":
        kinds = {name: m for name, m in found.items() if not isinstance(m, nn.Embedding)}
    else:
        kinds = {name: m for name, m in found.items() if is_linear(m)}
        head = _last_layer(module, kinds) if head is None else head
    chosen = {name: layer for name, layer in kinds.items() if layer is not head}
    reached = sum(_count(layer) for layer in set(chosen.values()))
    left = sum(_count(part) for part in _others(module, found).values())
    if not chosen or reached < _SHARE * left:
        what = f"only for {_shown(chosen)}" if chosen else "for no layer, the output's left out"
        raise ValueError(
            f"`layers` {layers!r} would stand {what}; name the layers to change instead, "
            f"`module` has: {_shown(found)}{_unknown(module, found)}"
        )
    return list(chosen)


def _output_layer(module: nn.Module) -> nn.Module | None:
    """The layer that a model of transformers or timm says makes its output."""
    for method in ("get_output_embeddings", "get_classifier"):
        if callable(get := getattr(module, method, None)):
            layers = [get(), *(getattr(module, name, None) for name in _HEADS)]
            return next((layer for layer in layers if isinstance(layer, nn.Module)), None)
    return None


def _last_layer(module: nn.Module, linear: dict[str, nn.Module]) -> nn.Module | None:
    """The last linear layer, unless it has a twin in another of many equal blocks."""
    if not linear or hasattr(module, "get_output_embeddings"):  # such a model has said so
        return None
    *others, last = [(_numbered(name), _shapes(layer)) for name, layer in linear.items()]
    return None if last in others else linear[next(reversed(linear))]


def _others(module: nn.Module, found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The parts with weights of kinds that cannot be changed, by name; no embeddings."""
    inside = {part for layer in found.values() for part in layer.modules()}
    return {
        name: part
        for name, part in module.named_modules()
        if part not in inside
        and not isinstance(part, nn.Embedding)
        and any(shape[1:] for shape in _shapes(part))
    }


def _shapes(part: nn.Module) -> list[torch.Size]:
    """Shapes of the parameters that belong to a part itself."""
    own = (p for p in part._parameters.values() if p is not None)
    return [p.shape for p in own if not isinstance(p, nn.parameter.UninitializedParameter)]


def _count(part: Any) -> int:
    """Number of weights, biases left out."""
    if is_quantised(part):
        return part.in_features * part.out_features
    return sum(shape.numel() for m in part.modules() for shape in _shapes(m) if shape[1:])


def _numbered(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _shown(names: Iterable[str]) -> str:
    """Names in quotes; equal ones up to numbers as one if there are many."""
    names = list(names)
    if len(names) > _MOST_SHOWN:
        names = list(dict.fromkeys(map(_numbered, names)))
    more = f", and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(map(repr, names[:_MOST_SHOWN])) + more


def _unknown(module: nn.Module, found: dict[str, nn.Module]) -> str:
    others = _others(module, found)
    classes = ", ".join(dict.fromkeys(type(part).__name__ for part in others.values()))
    names = _shown(others)
    return f"; of kinds that cannot be changed ({classes}): {names}" if others else ""
