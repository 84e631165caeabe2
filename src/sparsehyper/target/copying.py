"""Copy any module, and refuse modules whose copies would still use the original."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsehyper.layout import TensorSpec


def copy_module(module: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A deep copy, in half the time of ``copy.deepcopy``, also of modules that it refuses.

    Most of what a module holds is empty containers, for hooks. Copying these beforehand saves the
    time. ``copy.deepcopy`` refuses tensors with a history, such as weights that a hook computes or
    activations that it keeps. Their copies have no history.

    Args:
        module: any module.
        shared: its tensors that are not copied: the copy has others with the same memory. Only a
            subclass, such as a quantised parameter, is the same object.
    """
    aliases = {id(tensor): _alias(tensor) for tensor in shared}
    try:
        return copy.deepcopy(module, _prepared_copies(module, histories=False) | aliases)
    except RuntimeError:
        return copy.deepcopy(module, _prepared_copies(module, histories=True) | aliases)


def check_reachable(module: nn.Module, layout: Sequence[TensorSpec]) -> None:
    """Raise if a module keeps references that would still lead to the original from a copy.

    Raises:
        ValueError: a generated parameter that is also kept in a list or another attribute, or a
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
            nested = isinstance(value, dict | list | tuple)
            for leaf in pytree.tree_leaves(value) if nested else (value,):
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
                        f"the function {where!r} of `target` has closed over a module of the "
                        "target, but calls run copies of it; make the function a method"
                    )


def _alias(tensor: Tensor) -> Tensor:
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), tensor.requires_grad)
    return tensor.detach() if type(tensor) is Tensor else tensor


def _prepared_copies(module: nn.Module, *, histories: bool) -> dict[int, Any]:
    """Copies of some values by their ids, as ``copy.deepcopy`` takes them."""
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


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
