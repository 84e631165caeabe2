"""What modules hold besides their parameters, and how to copy them nevertheless."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsehyper.layout import TensorSpec


def copy_module(module: nn.Module) -> nn.Module:
    """What ``copy.deepcopy`` gives, in half the time, and where that refuses.

    Most of what a module holds are empty containers, for hooks, and those are copied beforehand.
    Tensors with a history forbid to copy a module: weights that a hook computes, activations that
    it keeps. Their copies have none.
    """
    try:
        return copy.deepcopy(module, _copied(module, histories=False))
    except RuntimeError:
        return copy.deepcopy(module, _copied(module, histories=True))


def _copied(module: nn.Module, *, histories: bool) -> dict[int, Any]:
    """Copies made beforehand, as ``copy.deepcopy`` wants to be told of them."""
    values = [value for part in module.modules() for value in vars(part).values()]
    copies: dict[int, Any] = {
        id(value): type(value)()
        for value in values
        if type(value) in (dict, OrderedDict, set) and not value
    }
    for leaf in pytree.tree_leaves(values) if histories else ():
        if isinstance(leaf, Tensor) and not leaf.is_leaf:
            copies[id(leaf)] = leaf.detach().clone()
    return copies


def check_reachable(module: nn.Module, layout: Sequence[TensorSpec]) -> None:
    """Raise where a module keeps what a copy cannot reach.

    Raises:
        ValueError: a generated parameter that stands in a list or another attribute as well, or a
            function that has closed over a part of the module.
    """
    generated = {id(module.get_parameter(spec.name)): spec.name for spec in layout}
    parts = {id(part) for part in module.modules()}
    for prefix, part in module.named_modules():
        for attribute, value in vars(part).items():
            where = f"{prefix}.{attribute}" if prefix else attribute
            # A compiled forward (`module.compile()`) is not copied.
            if attribute in ("_parameters", "_modules", "_flat_weights", "_compiled_call_impl"):
                continue
            for leaf in pytree.tree_leaves(value) if _is_nest(value) else (value,):
                if id(leaf) in generated:
                    raise ValueError(
                        f"`target` keeps its parameter {generated[id(leaf)]!r} in {where!r} too, "
                        "where a generated one cannot be put; look it up in `forward` instead"
                    )
                if not attribute.endswith("_hooks") and any(
                    id(held) in parts or id(getattr(held, "__self__", None)) in parts
                    for held in _closed_over(leaf)
                ):
                    raise ValueError(
                        f"the function {where!r} of `target` holds on to a module of the target "
                        "that is given, where a copy is run; make it a method"
                    )


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents


def padding_row(module: nn.Module, name: str) -> int | None:
    """The row of an embedding that stands for no word: zero now, and for every task."""
    row = getattr(module, "padding_idx", None)
    if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or row is None or name != "weight":
        return None
    return None if module.weight[row].any() else row


def _is_nest(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)


def renew_weight_lists(module: nn.Module) -> None:
    """Make the lists anew that recurrent layers keep of their weights, besides the weights."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer._init_flat_weights()
