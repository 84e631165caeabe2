"""Targets by name: small image classifiers, or a function of the user's.

==============================  ===================================================================
``mlp:128-64``                  flattened image, hidden layers of these widths with ReLU between
``cnn:16-32-64``                3×3 convolutions of stride 2 with these channels, ReLU after each;
                                ``,norm=none`` (default) or ``,norm=batch``
``resnet:depth=8,width=16``     CIFAR-style residual network; ``norm=none`` (default) or ``batch``
``resnet32``                    short for ``resnet:depth=32,width=16,norm=none``
``resnet18``                    short for ``resnet:depth=18,width=64,stages=4,norm=none``
``package.module:function``     the user's own, called as ``function(image_shape, n_classes)``
``…/masked:0.9``                any of them with this share of its weights fixed at zero, at random
                                positions that all tasks share and that follow from the seed
                                (`sparsehyper.adapters`)
==============================  ===================================================================

A function of the user's has the signature

    def function(image_shape: tuple[int, int, int], n_classes: int) -> nn.Module

where ``image_shape`` is (channels, height, width) and ``n_classes`` the number of logits. Its
module must be importable, for example from a directory on ``PYTHONPATH``. It is code, so it is
imported and called only if the user names it, never because a file does (`check_trusted`).

All targets take float32 images ``[batch, channels, height, width]`` and return logits
``[batch, n_classes]``.

Source of the residual network: K. He et al., "Deep residual learning for image recognition" (CVPR
2016), section 4.2: 6n + 2 layers in three stages, with shortcuts that have no parameters. Without a
norm, convolutions have biases. ``resnet18`` has the stages of section 4.1 on the stem of 4.2, as is
usual for small images.
"""

from __future__ import annotations

import importlib
import math
import re
import shlex
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import WIDEST, check_choice, check_integer, check_type
from sparsehyper.target.adapters import masked

_DEFAULT_MLP, _DEFAULT_CNN = "128-64", "16-32-64"
_TARGET_NORMS = ("none", "batch")
_ABBREVIATIONS = {"resnet32": "resnet:depth=32", "resnet18": "resnet:depth=18,width=64,stages=4"}
_FORMS = (
    "mlp:128-64  cnn:16-32-64,norm=none|batch  resnet:depth=8,width=16,norm=none|batch  resnet32  "
    "resnet18  package.module:function; any with /masked:0.9"
)
_RESNET_SETTINGS = ("depth", "width", "stages", "norm")
_BUILT_IN = ("mlp", "cnn", "resnet")


class UntrustedTargetError(ValueError):
    """A file names a target function that the user has not allowed."""


def build_target(text: str, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """Build a freshly initialised target.

    Its weights are drawn from PyTorch's global random generator. The positions of masked weights
    depend on the generator's seed alone.

    Args:
        text: the target, in one of the forms above.
        image_shape: channels, height, width.
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
    kind, colon, rest = _ABBREVIATIONS.get(text, text).partition(":")
    if kind == "mlp":
        return _mlp(_widths(rest if colon else _DEFAULT_MLP, text), image_shape, n_classes)
    if kind == "cnn":
        widths, comma, setting = (rest if colon else _DEFAULT_CNN).partition(",")
        name, _, norm = setting.partition("=") if comma else ("norm", "=", "none")
        if name != "norm":
            raise ValueError(f"`target` {text!r} has no setting {name!r}; a cnn has: norm")
        check_choice("norm", norm, _TARGET_NORMS)
        return _cnn(_widths(widths, text), image_shape, n_classes, norm)
    if kind == "resnet":
        return ResNet(image_shape, n_classes, **_resnet_settings(rest, text))
    if function_of(text) is not None:
        return _from_factory(kind, rest, image_shape, n_classes)
    raise ValueError(f"`target` {text!r} is unknown; forms: {_FORMS}")


def function_of(text: str) -> str | None:
    """The ``package.module:function`` in a target's text; None for a built-in target.

    >>> function_of("models.small:net/masked:0.9"), function_of("resnet18")
    ('models.small:net', None)
    """
    text = text.partition("/")[0]
    kind = _ABBREVIATIONS.get(text, text).partition(":")[0]
    return text if kind not in _BUILT_IN and re.fullmatch(r"\w+(\.\w+)*:\w+", text) else None


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


def _mlp(hidden: list[int], image_shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU after every layer but the last."""
    widths = [math.prod(image_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))


def _cnn(
    channels: list[int], image_shape: tuple[int, int, int], n_classes: int, norm: str
) -> nn.Sequential:
    """Convolutions that halve the image's sides, global average pooling and a linear layer."""
    widths = [image_shape[0], *channels]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [_convolution(n_in, n_out, 2, norm), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooled, nn.Linear(widths[-1], n_classes))


class ResNet(nn.Module):
    """A CIFAR-style residual network with global average pooling, for images of any size.

    Args:
        image_shape: channels, height, width.
        n_classes: number of logits.
        depth: number of layers with weights, 2 · stages · n + 2 for n blocks per stage.
        width: channels of the first stage; each further stage has twice as many.
        stages: number of stages; each after the first halves the sides of the images.
        norm: ``"none"`` or ``"batch"`` after every convolution.

    Raises:
        ValueError: a depth that is not 2 · stages · n + 2, a width or number of stages below 1, or
            an unknown norm.

    >>> sum(p.numel() for p in ResNet((3, 32, 32), 10, depth=32).parameters())
    463018
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_classes: int,
        *,
        depth: int = 8,
        width: int = 16,
        stages: int = 3,
        norm: str = "none",
    ) -> None:
        super().__init__()
        check_integer("width", width, minimum=1, maximum=WIDEST)
        check_integer("stages", stages, minimum=1, maximum=8)
        layers = 2 * stages  # one block in each stage
        check_integer("depth", depth, minimum=layers + 2, maximum=10_000)
        check_choice("norm", norm, _TARGET_NORMS)
        if depth % layers != 2 % layers:
            some = ", ".join(str(layers * n + 2) for n in (1, 2, 3))
            raise ValueError(f"`depth` must be {layers}n + 2, such as {some}, got {depth}")
        self.stem = _convolution(image_shape[0], width, 1, norm)
        blocks = []
        channels = width
        for stage in range(stages):
            for block in range((depth - 2) // layers):
                stride = 2 if stage and not block else 1
                blocks.append(_Block(channels, width << stage, stride, norm))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, n_classes]`` of images ``[batch, channels, height, width]``."""
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = _convolution(n_in, n_out, stride, norm)
        self.second = _convolution(n_out, n_out, 1, norm)
        self.stride = stride
        self.new_channels = n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        # Option A of the paper: subsample the pixels, and pad the new channels with zeros.
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))


def _convolution(n_in: int, n_out: int, stride: int, norm: str) -> nn.Module:
    convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=norm == "none")
    return convolution if norm == "none" else nn.Sequential(convolution, nn.BatchNorm2d(n_out))


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


def _widths(text: str, whole: str) -> list[int]:
    try:
        widths = [int(width) for width in text.split("-")]
    except ValueError:
        widths = []
    for width in widths:
        check_integer("target", width, minimum=1, maximum=WIDEST, context=f" in {whole!r}")
    if not widths:
        raise ValueError(
            f"`target` {whole!r} must name the widths of its hidden layers, each at least 1, "
            f"such as mlp:{_DEFAULT_MLP} or cnn:{_DEFAULT_CNN}"
        )
    return widths


def _resnet_settings(text: str, whole: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name not in _RESNET_SETTINGS:
            valid = ", ".join(_RESNET_SETTINGS)
            raise ValueError(f"`target` {whole!r} has no setting {name!r}; a resnet has: {valid}")
        if name == "norm":
            settings[name] = value
            continue
        try:
            settings[name] = int(value)
        except ValueError:
            raise ValueError(
                f"`{name}` of `target` {whole!r} must be an integer, got {value!r}"
            ) from None
    return settings


def _from_factory(
    module: str, function: str, image_shape: tuple[int, int, int], n_classes: int
) -> nn.Module:
    text = f"{module}:{function}"
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
