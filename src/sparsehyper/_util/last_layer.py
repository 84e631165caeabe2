"""The linear layer that a module ends in: finding it, its inputs, and putting another there."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsehyper._util.inputs import Inputs, logits_of
from sparsehyper._util.random import normal, seeded

_PIECE = 512  # samples at a time


class Use(NamedTuple):
    """One use of a linear layer, with what it was given and what it returned."""

    layer: nn.Linear
    given: Tensor
    output: Tensor


@torch.no_grad()
def linear_layers_used(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[list[Use], Any]:
    """The uses of linear layers, in their order, and the module's output.

    Args:
        module: the module, in evaluation mode.
        *args, **kwargs: its arguments, to run it on.
    """
    used: list[Use] = []

    def note(layer: nn.Linear, args: Any, kwargs: Any, output: Tensor) -> None:
        given = args[0] if args else kwargs["input"]
        used.append(Use(layer, given, output))

    hooks = [
        layer.register_forward_hook(note, with_kwargs=True)
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        return used, module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def last_layer(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[str, nn.Linear] | None:
    """Name and module of the linear layer whose output is the module's; None if there is none.

    Args:
        module: the module, in evaluation mode.
        *args, **kwargs: its arguments, to run it on.
    """
    used, found = linear_layers_used(module, *args, **kwargs)
    output = logits_of(found)
    if not used or not isinstance(output, Tensor):
        return None
    last, _, own = used[-1]
    if own.shape != output.shape or not own.equal(output):
        return None
    if sum(use.layer is last for use in used) > 1:
        return None
    return next(name for name, layer in module.named_modules() if layer is last), last


@torch.no_grad()
def decides(layer: nn.Module, module: nn.Module, x: Inputs) -> bool:
    """Whether a module's output follows from a layer's output alone.

    The module may squeeze the layer's output, scale it or make it probabilities; nothing else that
    the module computes, such as experts that it weighs, may matter.

    Test: replace the layer's output by fixed random numbers. The module's output must be the same
    for the samples in reversed order, and another one for other random numbers. A layer that is
    applied to each token passes untested, as the inputs may decide which token counts.

    Args:
        layer: a layer in the module that is used.
        module: the module, in evaluation mode.
        x: inputs of some samples that differ.
    """
    reverse = torch.arange(len(x) - 1, -1, -1, device=x.device)
    shapes = set()

    def replaced(_: nn.Module, __: Any, out: Tensor, seed: int) -> Tensor:
        shapes.add(out.shape)
        return normal(out.shape, seeded(seed)).to(out)

    def outputs(inputs: Inputs, seed: int) -> list[Tensor]:
        hook = layer.register_forward_hook(partial(replaced, seed=seed))
        try:
            leaves = pytree.tree_leaves(inputs.call(module))
        finally:
            hook.remove()
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def alike(some: list[Tensor], others: list[Tensor]) -> bool:
        pairs = zip(some, others, strict=True)
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in pairs)

    first = outputs(x, 0)
    if any(len(shape) > 2 for shape in shapes):
        return True
    return alike(first, outputs(x[reverse], 0)) and not alike(first, outputs(x, 1))


@torch.no_grad()
def features_of(module: nn.Module, layer: nn.Module, x: Any) -> Tensor:
    """What a layer is given for samples, ``[n, features]``.

    Args:
        module: the module, in evaluation mode.
        layer: a layer in it that is used once.
        x: inputs of samples, as `Inputs.of` takes them; they are processed in pieces.
    """
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        for some in Inputs.of(x).split(_PIECE):
            some.call(module)
    finally:
        hook.remove()
    return torch.cat(given)


@torch.no_grad()
def trim(layer: nn.Linear, outputs: int) -> None:
    """Keep the first outputs of a linear layer, in place."""
    layer.out_features = outputs
    layer.weight = nn.Parameter(layer.weight[:outputs].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[:outputs].clone())


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with copies of these parameters; no random number is drawn."""
    layer = nn.Linear(weight.shape[1], len(weight), device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = nn.Parameter(bias.detach().clone())
    return layer
