"""Targets by name: small models of images, rows or sequences, or a function of the user's.

==============================  ===================================================================
``mlp:128-64``                  flattened image, hidden layers of these widths with ReLU between
``cnn:16-32-64``                blocks of these channels: a 3×3 convolution, norm, ReLU and 2×2
                                max-pooling; then at most 4×4 averages of each channel, flattened,
                                and a linear layer. ``,norm=batch`` (default) or ``,norm=none``;
                                ``,pool=max`` (default) or ``,pool=stride``: convolutions of stride
                                2 and one average of each channel, cheaper and much less accurate.
                                For sequences the same along the steps, with convolutions over 5
``resnet:depth=8,width=16``     CIFAR-style residual network; ``norm=batch`` (default) or ``none``
``resnet32``                    short for ``resnet:depth=32,width=16``
``resnet18``                    short for ``resnet:depth=18,width=64,stages=4``
``resnet9:width=64``            shallow residual network; ``norm=batch`` (default) or ``none``
``thesis_resnet:blocks=5``      the thesis's residual network, without norms; ``width=16``
``package.module:function``     the user's own, called as ``function(image_shape, n_classes)``
``…/masked:0.9``                any of them with this share of its weights fixed at zero, at random
                                positions that all tasks share and that follow from the seed
                                (`sparsehyper.adapters`)
==============================  ===================================================================

An experiment writes every setting of a built-in target (`spelled_out`), so that no later default
changes what was trained. Runs and studies older than that left settings out; `recorded_target`
gives these the defaults of their time, when a ``cnn`` had stride 2 and no norm.

A function of the user's has the signature

    def function(image_shape: tuple[int, ...], n_classes: int) -> nn.Module

where ``image_shape`` is (channels, height, width) and ``n_classes`` the number of logits. Its
module must be importable, for example from a directory on ``PYTHONPATH``. It is code, so it is
imported and called only if the user names it, never because a file does (`check_trusted`).

All targets take float32 images ``[batch, channels, height, width]`` of any size and return logits
``[batch, n_classes]``. For a table ``image_shape`` is ``(features,)``, and inputs are ``[batch,
features]``; for sequences it is ``(channels, steps)``, and inputs are ``[batch, channels, steps]``.
Where a number is predicted, ``n_classes`` is 1.

Residual networks and their sources are in `sparsehyper.target.residual`.
"""

from __future__ import annotations

import importlib
import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from sparsehyper._util.checks import WIDEST, check_choice, check_integer, check_type
from sparsehyper.target.adapters import masked
from sparsehyper.target.residual import NORMS, ResNet, convolution, resnet9, thesis_resnet

_POOLS = ("max", "stride")
_POOLINGS: dict[int, Any] = {  # by the number of sides
    1: (nn.MaxPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.MaxPool2d, nn.AdaptiveAvgPool2d),
}
_MOST_AVERAGES = 4  # along each side of the input, for the last layer of a cnn
_ABBREVIATIONS = {"resnet32": "resnet:depth=32", "resnet18": "resnet:depth=18,width=64,stages=4"}
_FORMS = (
    "mlp:128-64  cnn:16-32-64,norm=batch|none,pool=max|stride  "
    "resnet:depth=8,width=16,norm=batch|none  resnet32  resnet18  "
    "resnet9:width=64,norm=batch|none  thesis_resnet:blocks=5,width=16  package.module:function; "
    "any with /masked:0.9"
)

_Settings = dict[str, str | int]

# The settings of built-in targets, in the order in which they are spelled out.
_DEFAULTS: dict[str, _Settings] = {
    "mlp": {"widths": "128-64"},
    "cnn": {"widths": "16-32-64", "norm": "batch", "pool": "max"},
    "resnet": {"depth": 8, "width": 16, "stages": 3, "norm": "batch"},
    "resnet9": {"width": 64, "norm": "batch"},
    "thesis_resnet": {"blocks": 5, "width": 16},
}
# What they were when files did not spell them out.
_FORMER_DEFAULTS: dict[str, _Settings] = {
    **_DEFAULTS,
    "cnn": {"widths": "16-32-64", "norm": "none", "pool": "stride"},
    "resnet": {"depth": 8, "width": 16, "stages": 3, "norm": "none"},
}


class UntrustedTargetError(ValueError):
    """A file names a target function that the user has not allowed."""


def build_target(text: str, image_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Build a freshly initialised target.

    Its weights are drawn from PyTorch's global random generator. The positions of masked weights
    depend on the generator's seed alone.

    Args:
        text: the target, in one of the forms above.
        image_shape: channels, height, width; of rows of a table their number of features alone,
            and of sequences channels and steps.
        n_classes: number of logits, at least 1.

    Raises:
        ValueError: an unknown target or setting, or a value out of range.
        ImportError: the module of ``package.module:function`` cannot be imported.
        TypeError: ``function`` does not exist, cannot be called with these two arguments, or
            returns something else than an ``nn.Module``.

    >>> build_target("mlp:32", (1, 8, 8), n_classes=2)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=64, out_features=32, bias=True)
      (2): ReLU()
      (3): Linear(in_features=32, out_features=2, bias=True)
    )
    """
    check_integer("n_classes", n_classes, minimum=1, maximum=WIDEST)
    check_type("target", text, str, "a string such as 'mlp:128-64'")
    text, slash, mask = text.partition("/")
    if slash:
        # Targets built from one seed, such as the experts of a run, share their mask.
        seed = torch.initial_seed() % 2**63
        whole = build_target(text, image_shape, n_classes)
        return masked(whole, _sparsity(mask, text), seed=seed)
    if (found := _parsed(text, _DEFAULTS)) is not None:
        kind, settings = found
        if len(image_shape) == 1 and kind != "mlp":
            raise ValueError(
                f"`target` {text!r} takes images, and the rows of a table are {image_shape[0]} "
                "features; give mlp:WIDTHS or a package.module:function"
            )
        if len(image_shape) == 2 and kind not in ("mlp", "cnn"):
            raise ValueError(
                f"`target` {text!r} takes images, and sequences are {image_shape[0]} channels of "
                f"{image_shape[1]} steps; give cnn:WIDTHS, mlp:WIDTHS or a package.module:function"
            )
        return _BUILDERS[kind](image_shape, n_classes, **settings)
    if function_of(text) is not None:
        return _from_factory(text, image_shape, n_classes)
    raise ValueError(f"`target` {text!r} is unknown; forms: {_FORMS}")


def spelled_out(text: str) -> str:
    """A target with every setting written; a function of the user's stays as it is.

    Raises:
        ValueError: an unknown setting of a built-in target.

    >>> spelled_out("cnn:8-16/masked:0.5"), spelled_out("resnet32")
    ('cnn:8-16,norm=batch,pool=max/masked:0.5', 'resnet:depth=32,width=16,stages=3,norm=batch')
    """
    return _spelled_out(text, _DEFAULTS)


def recorded_target(text: str) -> str:
    """A target from a file, with every setting; those left out had other defaults at the time.

    >>> recorded_target("cnn:8-16"), recorded_target("cnn:8-16,norm=batch,pool=max")
    ('cnn:8-16,norm=none,pool=stride', 'cnn:8-16,norm=batch,pool=max')
    """
    return _spelled_out(text, _FORMER_DEFAULTS)


def function_of(text: str) -> str | None:
    """The ``package.module:function`` in a target's text; None for a built-in target.

    >>> function_of("models.small:net/masked:0.9"), function_of("resnet18")
    ('models.small:net', None)
    """
    text = text.partition("/")[0]
    kind = _ABBREVIATIONS.get(text, text).partition(":")[0]
    return text if kind not in _DEFAULTS and re.fullmatch(r"\w+(\.\w+)*:\w+", text) else None


def check_trusted(text: str, trust: Collection[str], source: object) -> None:
    """Check that a target named in a file may be built.

    Args:
        text: the target.
        trust: functions that the user allows, as ``package.module:function``.
        source: the file, for the error.

    Raises:
        TypeError: ``trust`` is a string.
        UntrustedTargetError: the target is a function that ``trust`` does not contain.
    """
    if isinstance(trust, str):
        raise TypeError(f"`trust` must be a list of functions, such as [{trust!r}], got a string")
    function = function_of(text)
    if function is not None and function not in trust:
        raise UntrustedTargetError(
            f"{source} names the target {function!r}, a function that would be imported and "
            "called; a file may come from anyone, so allow it only if you know it: "
            f"--trust-target {shlex.quote(function)} (in Python trust=[{function!r}])"
        )


def _mlp(image_shape: tuple[int, ...], n_classes: int, *, widths: str) -> nn.Sequential:
    """A multilayer perceptron with ReLU after every layer but the last."""
    sizes = [math.prod(image_shape), *_numbers(widths)]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))


def _cnn(
    image_shape: tuple[int, ...], n_classes: int, *, widths: str, norm: str, pool: str
) -> nn.Sequential:
    """Convolutions that each halve the input's sides, averages over places, and a linear layer."""
    check_choice("norm", norm, NORMS)
    check_choice("pool", pool, _POOLS)
    channels, *sides = image_shape
    maximum, average = _POOLINGS[len(sides)]
    layers: list[nn.Module] = []
    for n_out in _numbers(widths):
        stride = 2 if pool == "stride" else 1
        layers += [convolution(channels, n_out, stride, norm, sides=len(sides)), nn.ReLU()]
        channels = n_out
        if pool == "max" and max(sides) > 1:
            window = tuple(min(2, side) for side in sides)
            layers.append(maximum(window))
            sides = [side // by for side, by in zip(sides, window, strict=True)]
    most = 1 if pool == "stride" else _MOST_AVERAGES
    averages = tuple(min(side, most) for side in sides)
    pooled = [average(averages), nn.Flatten()]
    return nn.Sequential(*layers, *pooled, nn.Linear(channels * math.prod(averages), n_classes))


def _sparsity(text: str, target: str) -> float:
    form, _, number = text.partition(":")
    try:
        if form == "masked":
            return float(number)
    except ValueError:
        pass
    raise ValueError(
        f"`target` {target!r} can be followed by /masked:SPARSITY, such as /masked:0.9, got "
        f"{text!r}"
    )


def _numbers(widths: str) -> list[int]:
    return [int(width) for width in widths.split("-")]


def _parsed(text: str, defaults: Mapping[str, _Settings]) -> tuple[str, dict[str, Any]] | None:
    """Kind and settings of a built-in target, without a mask; None for any other."""
    kind, colon, rest = _ABBREVIATIONS.get(text, text).partition(":")
    if kind not in defaults:
        return None
    settings = dict(defaults[kind])
    items = rest.split(",") if rest else []
    named = [name for name in settings if name != "widths"]
    if colon and "widths" in settings:
        settings["widths"] = items.pop(0) if named and items else rest
        items = items if named else []
        _check_widths(str(settings["widths"]), text)
    for item in filter(None, items):
        name, _, value = item.partition("=")
        if name not in named:
            raise ValueError(
                f"`target` {text!r} has no setting {name!r}; a {kind} has: {', '.join(named)}"
            )
        settings[name] = value if isinstance(settings[name], str) else _integer(name, value, text)
    return kind, settings


def _spelled_out(text: str, defaults: Mapping[str, _Settings]) -> str:
    text, slash, mask = text.partition("/")
    if (found := _parsed(text, defaults)) is not None:
        kind, settings = found
        written = [v if k == "widths" else f"{k}={v}" for k, v in settings.items()]
        text = f"{kind}:{','.join(written)}"
    return text + slash + mask


def _check_widths(widths: str, whole: str) -> None:
    try:
        numbers = _numbers(widths)
    except ValueError:
        examples = " or ".join(f"{k}:{v['widths']}" for k, v in _DEFAULTS.items() if "widths" in v)
        raise ValueError(
            f"`target` {whole!r} must name the widths of its hidden layers, each at least 1, "
            f"such as {examples}"
        ) from None
    for width in numbers:
        check_integer("target", width, minimum=1, maximum=WIDEST, context=f" in {whole!r}")


def _integer(name: str, value: str, whole: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(
            f"`{name}` of `target` {whole!r} must be an integer, got {value!r}"
        ) from None


def _from_factory(text: str, image_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    module, _, function = text.partition(":")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`target` {text!r} is not a built-in target ({_FORMS}), and the module {module!r} "
            f"cannot be imported: {error}; is it on PYTHONPATH?"
        ) from error
    if not hasattr(imported, function):
        raise TypeError(f"`target` {text!r} was not found: {module} has no {function!r}")
    factory: Callable[..., nn.Module] = getattr(imported, function)
    if not callable(factory):
        raise TypeError(f"`target` {text!r} must be a function, got {factory!r}")
    try:
        target = factory(image_shape, n_classes)
    except TypeError as error:
        raise TypeError(
            f"`target` {text!r} is called as {function}(image_shape, n_classes), with "
            f"{image_shape} and {n_classes} here, which failed: {error}"
        ) from error
    if not isinstance(target, nn.Module):
        raise TypeError(f"`target` {text!r} must return an nn.Module, got {target!r}")
    return target


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet": ResNet,
    "resnet9": resnet9,
    "thesis_resnet": thesis_resnet,
}
