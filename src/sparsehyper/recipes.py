"""Recipes: modules as data, from which they are built again without their code.

A recipe names a layer of PyTorch's or a residual network of `sparsehyper.target.residual`, with the
arguments it was made with; an ``nn.Sequential`` of recipes; or a model of transformers, with its
configuration. ``masked`` has the number of entries that a fixed mask leaves, by layer. Other
modules have none. A recipe says nothing of values. It may come from a stranger: it can name only
the classes listed here and models that transformers itself contains, and is built without values
before anything is allocated.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from sparsehyper._util.checks import check_size
from sparsehyper._util.extras import MissingExtraError
from sparsehyper.target.adapters import merge
from sparsehyper.target.adapters.masks import Scatter, mask_first
from sparsehyper.target.copying import copy_module
from sparsehyper.target.residual import ResNet, Shortcut

Recipe = dict[str, Any]

_LAYERS = {
    name: getattr(nn, name)
    for name in (
        *("Linear", "Bilinear", "Identity", "Embedding", "Flatten", "Unflatten"),
        *(f"{kind}{n}d" for kind in ("Conv", "ConvTranspose", "BatchNorm") for n in (1, 2, 3)),
        *("GroupNorm", "LayerNorm", "RMSNorm", "LocalResponseNorm"),
        *(f"InstanceNorm{n}d" for n in (1, 2, 3)),
        *("Dropout", "AlphaDropout", "FeatureAlphaDropout"),
        *(f"Dropout{n}d" for n in (1, 2, 3)),
        *(
            f"{kind}Pad{n}d"
            for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
            for n in (1, 2, 3)
        ),
        *(f"{kind}Pool{n}d" for kind in ("Max", "Avg", "AdaptiveMax") for n in (1, 2, 3)),
        *(f"AdaptiveAvgPool{n}d" for n in (1, 2, 3)),
        *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish"),
        *("Sigmoid", "Tanh", "Softplus", "Softsign", "Hardswish", "Hardsigmoid", "LogSigmoid"),
        *("Hardtanh", "Hardshrink", "Softshrink", "Tanhshrink", "Threshold", "RReLU", "GLU"),
        *("Softmax", "Softmin", "Softmax2d", "LogSoftmax"),
        *("Upsample", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle"),
    )
} | {"ResNet": ResNet}
# Settings of transformers by which it takes code from elsewhere, and one that torch gives.
_NAMES_CODE = re.compile(r"auto_map|dtype|_?(attn|experts)_implementation").fullmatch
_DTYPES = {str(d): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


def describe(module: nn.Module) -> Recipe | None:
    """The recipe of a module; None if it has none.

    >>> describe(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))["layers"]["1"]
    {'class': 'ReLU', 'inplace': False}
    """
    tensors = [*module.parameters(), *module.buffers()]
    dtypes = {str(t.dtype) for t in tensors if t.is_floating_point()} or {str(torch.float32)}
    found = _described(module)
    if found is None or len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        return None
    recipe = {**found, "dtype": dtypes.pop()}
    try:
        again = _without_values(recipe)
    except Exception:  # whatever a model of transformers raises
        return None
    return recipe if _structure(again) == _structure(module) else None


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """The module of a recipe, freshly initialised; the global random state stays as it is.

    Raises:
        TypeError, ValueError: not a recipe, or a module that is too large.
        MissingExtraError: a model of transformers, which is not installed.

    >>> build({"class": "Linear", "in_features": 4, "out_features": 2, "bias": False,
    ...        "dtype": "torch.float32"})
    Linear(in_features=4, out_features=2, bias=False)
    """
    shapes = _without_values(recipe)
    tensors = (*shapes.parameters(), *shapes.buffers())
    check_size("the saved `target`", sum(tensor.numel() for tensor in tensors))
    with torch.random.fork_rng([]):
        return _built(recipe).to(_DTYPES[recipe["dtype"]])


def _described(module: nn.Module) -> Recipe | None:
    if kept := _masked(module):
        found = _described(merge(copy_module(module)))
        return found and {**found, "masked": kept}
    kind = type(module)
    if kind is Shortcut:
        parts = {name: _described(part) for name, part in module.named_children()}
        return None if None in parts.values() else {"class": "Shortcut", **parts}
    if kind is nn.Sequential:
        layers = {name: _described(layer) for name, layer in module.named_children()}
        if None in layers.values() or len(layers) < len(module._modules):  # one occurs twice
            return None
        return {"class": "Sequential", "layers": layers}
    if _LAYERS.get(kind.__name__) is kind:
        settings = {name: _setting(module, name) for name in _arguments(kind)}
        return {"class": kind.__name__, **settings}
    own = getattr(sys.modules.get("transformers"), kind.__name__, None) is kind
    if own and kind.__module__.startswith("transformers."):
        return {"transformers": kind.__name__, "config": module.config.to_dict()}  # type: ignore[operator, union-attr]
    return None


def _masked(module: nn.Module) -> dict[str, int]:
    """Number of entries that a fixed mask leaves of a layer's weight, by layer."""
    found: dict[str, int] = {}
    for name, layer in module.named_modules():
        if is_parametrized(layer, "weight"):
            parts: Any = layer.parametrizations
            if isinstance(mask := parts.weight[0], Scatter):
                found[name] = mask.index.numel()
    return found


def _setting(module: nn.Module, name: str) -> Any:
    """The argument that a layer was made with, which it keeps as an attribute."""
    value = getattr(module, name)
    return value is not None if name == "bias" and not isinstance(value, bool) else value


@functools.cache
def _arguments(kind: type[nn.Module]) -> list[str]:
    """Names of the arguments that a layer takes, but for where and of what type it is made."""
    names = list(inspect.signature(kind.__init__).parameters)[1:]
    skipped = ("device", "dtype", "args", "kwargs", "min_value", "max_value")  # the last are old
    return [name for name in names if name not in skipped and not name.startswith("_")]


def _without_values(recipe: Mapping[str, Any]) -> nn.Module:
    if not isinstance(recipe, Mapping) or recipe.get("dtype") not in _DTYPES:
        raise ValueError(f"not a recipe of a module: {str(recipe)[:200]}")
    with torch.device("meta"):
        return _built(recipe).to(_DTYPES[recipe["dtype"]])


def _built(recipe: Mapping[str, Any]) -> nn.Module:
    settings = {name: value for name, value in recipe.items() if name != "dtype"}
    masked = settings.pop("masked", {})
    module = _plain(settings)
    for name, kept in masked.items():
        mask_first(module.get_submodule(name), kept)
    return module


def _plain(settings: dict[str, Any]) -> nn.Module:
    if "transformers" in settings:
        return _transformer(settings["transformers"], settings["config"])
    kind = settings.pop("class")
    if kind == "Sequential":
        layers = nn.Sequential()
        for name, layer in settings["layers"].items():
            layers.add_module(name, _built(layer))
        return layers
    if kind == "Shortcut":
        return Shortcut(_built(settings["inner"]), _built(settings["projection"]))
    if kind not in _LAYERS or set(settings) - set(_arguments(_LAYERS[kind])):
        raise ValueError(f"no layer {kind!r} with {list(settings)} can be built from a file")
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
    return _LAYERS[kind](**values)


def _transformer(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """A model of transformers by its configuration; no code from a file or the hub is run."""
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the target {name!r} is a model of transformers; pip install transformers"
        ) from error
    model: Any = getattr(transformers, str(name), None)
    known = isinstance(model, type) and issubclass(model, transformers.PreTrainedModel)
    if not known:
        raise ValueError(f"transformers has no model {name!r}")
    return model._from_config(model.config_class.from_dict(_harmless(settings)))


def _harmless(settings: Any) -> Any:
    """Settings without those by which transformers takes code from elsewhere."""
    if isinstance(settings, Mapping):
        kept = {key: value for key, value in settings.items() if not _NAMES_CODE(str(key))}
        return {key: _harmless(value) for key, value in kept.items()}
    return [_harmless(value) for value in settings] if isinstance(settings, list) else settings


def _structure(module: nn.Module) -> dict[str, Any]:
    """Names, shapes and settings of all that a module consists of.

    A part with hooks, which no recipe has, is left out, so that the module is unlike any other.
    """
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    parts = {
        name: (type_before_parametrizations(part), part.extra_repr())
        for name, part in module.named_modules(remove_duplicate=False)
        if not (part._forward_hooks or part._forward_pre_hooks)
    }
    return {
        "tensors": {name: tuple(tensor.shape) for name, tensor in tensors},
        "distinct": len({id(tensor) for _, tensor in tensors}),
        "parts": parts,
    }
