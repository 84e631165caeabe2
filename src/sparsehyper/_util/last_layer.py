"""The linear layer whose output is a module's: finding it, its inputs, and a smaller one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.inputs import Inputs, logits_of

_PIECE = 512  # samples at a time


@torch.no_grad()
def linear_layers_used(
    module: nn.Module, *args: Any, **kwargs: Any
) -> tuple[list[tuple[nn.Linear, Tensor]], Any]:
    """The linear layers in the order of use, each with its output; and the module's output.

    Args:
        module: the module, in evaluation mode.
        *args, **kwargs: its arguments, to run it on.
    """
    used: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: used.append((layer, out)))
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
    last, own = used[-1]
    if own.shape != output.shape or not own.equal(output):
        return None
    if sum(layer is last for layer, _ in used) > 1:
        return None
    return next(name for name, layer in module.named_modules() if layer is last), last


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
