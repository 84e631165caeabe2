"""Find the modules that a value refers to, and make a value refer to other modules.

A value may hold modules in containers, bound methods, partial functions, and the attributes of
objects, nested to any depth.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

from torch import Tensor, nn

MUTABLE_CONTAINERS = (dict, list, set, deque)


def modules_of(value: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules that a value refers to.

    Args:
        value: anything.
        seen: ids of values that were visited already.
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    for inner in _held_by(value):
        yield from modules_of(inner, seen)


def substitute(value: Any, replacements: Mapping[int, Any]) -> Any:
    """A value that refers to the replacements; the value itself if nothing in it is replaced.

    Args:
        value: anything; it is not changed.
        replacements: a module for the id of each module to replace.
    """
    if isinstance(value, nn.Module):
        return replacements.get(id(value), value)
    if not any(id(module) in replacements for module in modules_of(value)):
        return value
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, substitute(value.__self__, replacements))
    if isinstance(value, functools.partial):
        keywords = {name: substitute(each, replacements) for name, each in value.keywords.items()}
        args = [substitute(each, replacements) for each in value.args]
        return functools.partial(substitute(value.func, replacements), *args, **keywords)
    if isinstance(value, tuple):
        items = [substitute(each, replacements) for each in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, set | frozenset):
        return type(value)(substitute(each, replacements) for each in value)
    new = copy(value)
    if isinstance(value, Mapping):
        new.clear()
        new.update(
            {substitute(k, replacements): substitute(v, replacements) for k, v in value.items()}
        )
    elif isinstance(value, list | deque):
        for index, each in enumerate(value):
            new[index] = substitute(each, replacements)
    else:
        replacements = {**replacements, id(value): new}
        for name, each in vars(value).items():
            new.__dict__[name] = new if each is value else substitute(each, replacements)
    return new


def substitute_in_place(container: Any, replacements: Mapping[int, Any]) -> None:
    """Replace modules in a mutable container and in those within it.

    Args:
        container: one of `MUTABLE_CONTAINERS`.
        replacements: a module for the id of each module to replace.
    """

    def new(value: Any) -> Any:
        if not isinstance(value, MUTABLE_CONTAINERS):
            return substitute(value, replacements)
        substitute_in_place(value, replacements)
        return value

    if isinstance(container, dict):
        items = [(new(key), new(value)) for key, value in container.items()]
        container.clear()
        container.update(items)
    elif isinstance(container, set):
        members = [new(value) for value in container]
        container.clear()
        container.update(members)
    elif isinstance(container, list | deque):
        for index, value in enumerate(container):
            container[index] = new(value)


def _held_by(value: Any) -> list[Any]:
    """The objects that a value refers to directly."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Tensor | type | types.ModuleType | types.FunctionType):
        return []
    return [*getattr(value, "__dict__", {}).values()]
