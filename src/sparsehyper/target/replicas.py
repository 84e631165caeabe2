"""Shallow copies of a module tree, one for each call.

A call of the target puts generated tensors in the places of its parameters. It does so in copies
of the modules on the way to these places, so that its tensors belong to the call: other threads,
hooks that call the hypernetwork again, and a part that is run again in the backward pass
(activation checkpointing) each find their own. A copy shares all else with its original:
submodules that nothing is put into, shared parameters, buffers, hooks, attributes. What the call
assigns to an attribute of a copy, the original gets afterwards.

A copy lives as long as something holds it. Checkpointed parts are held by the graph until the
backward pass has run them again.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import copy as copy_object
from operator import gt, is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.utils import parametrize

_CONTENTS = ("_parameters", "_buffers", "_modules")
# Attributes of every module.
_ORDINARY = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, list, set, deque)
# Recurrent layers keep lists of their weights, which are made anew for every copy.
_WEIGHT_LISTS = ("_flat_weights", "_flat_weight_refs")


class Place(NamedTuple):
    """Where a tensor stands: an entry of the parameters or buffers of a module of the plan."""

    node: int
    attribute: str


class ReplicaPlan:
    """Which modules of a tree a call needs copies of, by their paths; it holds no module.

    Args:
        root: the tree.
        parameters: modules and names of their parameters that are generated.
        buffers: modules and names of their buffers that belong to a task.

    Attributes:
        parameters, buffers: the places, in the given order.
        stale: the modules have come to refer to one another in other ways; make another plan.
    """

    stale = False

    def __init__(
        self,
        root: nn.Module,
        parameters: Sequence[tuple[nn.Module, str]],
        buffers: Sequence[tuple[nn.Module, str]],
    ) -> None:
        parents: dict[nn.Module, set[nn.Module]] = {}
        for module in root.modules():
            for child in module._modules.values():
                if child is not None:
                    parents.setdefault(child, set()).add(module)
        mentions = {
            module: {
                other
                for attribute, value in vars(module).items()
                if attribute not in _CONTENTS
                for other in _modules_of(value)
            }
            for module in root.modules()
        }
        copied = {root}
        pending = [owner for owner, _ in (*parameters, *buffers)]
        while pending:
            module = pending.pop()
            if module in copied and module is not root:
                continue
            copied.add(module)
            pending += parents.get(module, ())
            # A module that keeps this one in an attribute must keep its copy.
            pending += [m for m, named in mentions.items() if module in named and m not in copied]
        # The first way to each module, and then all ways between two of them.
        nodes: dict[nn.Module, int] = {root: 0}
        self._ways: list[tuple[int, str]] = []
        self.links: list[tuple[int, str, int]] = []
        for module in root.modules():
            if module not in copied:
                continue
            for name, child in module._modules.items():
                if child in copied and child not in nodes:
                    nodes[child] = len(nodes)
                    self._ways.append((nodes[module], name))
        for module, node in nodes.items():
            for name, child in module._modules.items():
                if child in copied:
                    self.links.append((node, name, nodes[child]))
        self.parameters = [Place(nodes[owner], attribute) for owner, attribute in parameters]
        self.buffers = [Place(nodes[owner], attribute) for owner, attribute in buffers]
        contents = (
            {place.node for place in self.parameters},
            {place.node for place in self.buffers},
            {node for node, *_ in self.links},
        )
        self.own = [
            tuple(name for name, of in zip(_CONTENTS, contents, strict=True) if node in of)
            for node in range(len(nodes))
        ]
        self.rebound = [
            (node, attribute)
            for module, node in nodes.items()
            for attribute, value in vars(module).items()
            if attribute not in _CONTENTS and any(m in nodes for m in _modules_of(value))
        ]
        # What may come to hold modules of the tree while it runs.
        self.containers = [
            (node, attribute)
            for module, node in nodes.items()
            for attribute, value in vars(module).items()
            if attribute not in _ORDINARY and isinstance(value, _CONTAINERS)
        ]
        # What is looked at before and after each call: all but what every module has, hooks above
        # all, which are added to and never replaced.
        self.names = [
            tuple(name for name in vars(m) if name == "training" or name not in _ORDINARY)
            for m in nodes
        ]
        # It gives a tuple for two names or more; the first two are never replaced.
        first = ("_state_dict_hooks", "_state_dict_hooks")
        self.get = [itemgetter(*first, *names) for names in self.names]
        self.sizes = [len(vars(module)) for module in nodes]
        self._seen = [get(vars(module)) for get, module in zip(self.get, nodes, strict=True)]
        self.compiled = [n for module, n in nodes.items() if "dynamo_ctx" in vars(module)]
        self.recurrent = [n for module, n in nodes.items() if isinstance(module, nn.RNNBase)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": [], "stale": True}

    def look(self, originals: Sequence[nn.Module], *, own: bool) -> list[tuple[Any, ...]] | None:
        """The values of ``names`` in all modules, after two others; None where the plan is stale.

        Args:
            originals: what `originals` gives, of the tree or one of the same structure.
            own: it is the tree that the plan was made for. Then it is noticed if a module has been
                given an attribute that may refer to others.
        """
        found = []
        for node, module in enumerate(originals):
            attributes = module.__dict__
            if len(attributes) != self.sizes[node]:
                self.stale = True
                return None
            values = self.get[node](attributes)
            if own and not all(map(is_, values, self._seen[node])):
                for value, before in zip(values, self._seen[node], strict=True):
                    if value is not before and next(_modules_of(value), None) is not None:
                        self.stale = True
                        return None
                self._seen[node] = values
            found.append(values)
        return found

    def originals(self, root: nn.Module) -> list[Any]:
        """The modules of the plan in a tree like the one it was made for."""
        found = [root]
        for parent, name in self._ways:
            found.append(found[parent]._modules[name])  # type: ignore[arg-type]
        return found


class Replica:
    """The copies of one call.

    Attributes:
        module: the root's copy.
    """

    def __init__(
        self,
        plan: ReplicaPlan,
        originals: list[Any],
        attributes: list[tuple[Any, ...]],
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
    ) -> None:
        self._plan = plan
        self._originals = originals
        copies: list[Any] = []
        self._copies = copies
        for module, own in zip(self._originals, plan.own, strict=True):
            copied = module.__dict__.copy()
            if "_compiled_call_impl" in copied:  # which runs the original
                copied["_compiled_call_impl"] = None
            for kind in own:
                copied[kind] = copied[kind].copy()
            copy = object.__new__(type(module))
            object.__setattr__(copy, "__dict__", copied)
            copies.append(copy)
        del copy
        for node, name, child in plan.links:
            copies[node].__dict__["_modules"][name] = copies[child]
        for (node, attribute), tensor in zip(plan.parameters, parameters, strict=True):
            copies[node].__dict__["_parameters"][attribute] = tensor
        for (node, attribute), tensor in zip(plan.buffers, buffers, strict=True):
            copies[node].__dict__["_buffers"][attribute] = tensor
        rebound = self._rebind() if plan.rebound else []
        for node in plan.recurrent:
            copies[node]._init_flat_weights()
        for node in plan.compiled:  # of `torch.compile`, whose `forward` is its inner module's
            copies[node]._initialize()
        _forget_cached()
        self._before = attributes
        for node, attribute in plan.rebound:
            self._note(node, attribute)
        for node in plan.compiled:
            self._note(node, "forward")
        self._contents = [
            [[*copy.__dict__[kind].values()] for kind in own]
            for copy, own in zip(copies, plan.own, strict=True)
        ]
        self.module: Any = copies[0]
        self._watched = [*copies, *rebound]
        del rebound
        self._references = [sys.getrefcount(each) for each in self._watched]

    def buffers(self) -> list[Tensor]:
        """What stands in the places of the plan's buffers now."""
        copies = self._copies
        return [copies[node].__dict__["_buffers"][name] for node, name in self._plan.buffers]

    def close(self) -> None:
        """End the call: the originals get what it assigned to their copies."""
        _forget_cached()
        plan = self._plan
        for node, (copy, before, contents) in enumerate(
            zip(self._copies, self._before, self._contents, strict=True)
        ):
            now = copy.__dict__
            if len(now) != plan.sizes[node] or not all(map(is_, plan.get[node](now), before)):
                self._give_back(node, now, before)
            for kind, values in zip(plan.own[node], contents, strict=True):
                entries = now[kind]
                if len(entries) != len(values) or not all(map(is_, entries.values(), values)):
                    self._give_contents_back(node, kind)
        del copy
        self._release_containers()
        references = [sys.getrefcount(each) for each in self._watched]
        if any(map(gt, references, self._references)):
            self._hand_over()
        elif self._plan.rebound:
            # Copies that refer to one another would keep the tensors until Python's collector runs.
            for node, attribute in self._plan.parameters:
                self._copies[node].__dict__["_parameters"][attribute] = None
            for node, attribute in self._plan.rebound:
                self._copies[node].__dict__.pop(attribute, None)

    @functools.cached_property
    def _copied(self) -> dict[int, nn.Module]:
        """The originals by the ids of their copies; most calls need none."""
        return {id(copy): m for copy, m in zip(self._copies, self._originals, strict=True)}

    def _rebind(self) -> list[Any]:
        """Make attributes that refer to originals refer to their copies; return their values."""
        known = {
            id(module): copy for module, copy in zip(self._originals, self._copies, strict=True)
        }
        values = []
        for node, attribute in self._plan.rebound:
            attributes = self._copies[node].__dict__
            if attribute in attributes:
                attributes[attribute] = _rebound(attributes[attribute], known)
                values.append(attributes[attribute])
        return values

    def _release_containers(self) -> None:
        """Put the originals in the places of copies that a run has left in a shared container."""
        for node, attribute in self._plan.containers:
            value = self._originals[node].__dict__.get(attribute)
            if value and any(id(m) in self._copied for m in _modules_of(value)):
                _replace_within(value, self._copied)
                self._plan.stale = True

    def _note(self, node: int, attribute: str) -> None:
        """Take an attribute for what the copy has of it now."""
        values, names = list(self._before[node]), self._plan.names[node]
        if attribute in names:
            values[2 + names.index(attribute)] = self._copies[node].__dict__.get(attribute)
            self._before[node] = tuple(values)

    def _give_back(self, node: int, now: dict[str, Any], before: tuple[Any, ...]) -> None:
        """Assign to an original what was assigned to its copy."""
        attributes = self._originals[node].__dict__
        was = dict(zip(self._plan.names[node], before[2:], strict=True))
        for name, value in now.items():
            ours = name in _WEIGHT_LISTS or (name in _ORDINARY and name != "training")
            if not ours and value is not was.get(name, _MISSING):
                attributes[name] = _rebound(value, self._copied)
        for name in was.keys() - now.keys():
            attributes.pop(name, None)

    def _give_contents_back(self, node: int, kind: str) -> None:
        """The same for parameters, buffers and submodules, but for those of the call."""
        entries = self._originals[node].__dict__[kind]
        now = self._copies[node].__dict__[kind]
        places = {"_parameters": self._plan.parameters, "_buffers": self._plan.buffers}
        of_the_call = {place.attribute for place in places.get(kind, ()) if place.node == node}
        for name, value in now.items():
            if name in of_the_call:
                continue
            if kind == "_modules" and value is not entries.get(name):
                value = self._copied.get(id(value), value)
                for module in () if value is None else value.modules():
                    for child, inner in module._modules.items():
                        module._modules[child] = self._copied.get(id(inner), inner)
                self._plan.stale = True
            entries[name] = value
        for name in entries.keys() - now.keys() - of_the_call:
            del entries[name]

    def _hand_over(self) -> None:
        """Leave the copies to whoever holds them, most likely to run them in the backward pass.

        Reentrant checkpointing runs a part again there, and a backward pass of its own through it.
        That one ends at leaves of the part; their gradients then go on to the generated tensors.
        """
        leaves: dict[int, Tensor] = {}
        onwards = _Onwards()
        for node, attribute in self._plan.parameters:
            parameters = self._copies[node].__dict__["_parameters"]
            tensor = parameters[attribute]
            if tensor is None or not tensor.requires_grad:
                continue
            if id(tensor) not in leaves:
                leaves[id(tensor)] = onwards.leaf(tensor)
            if not isinstance(parameters, _HandedOver):
                parameters = self._copies[node].__dict__["_parameters"] = _HandedOver(parameters)
            parameters.leaves[attribute] = leaves[id(tensor)]
        for node in self._plan.recurrent:
            layer = self._copies[node]
            own = layer.__dict__["_parameters"]
            if isinstance(own, _HandedOver):
                layer._flat_weights = [own.leaves.get(name) for name in layer._flat_weights_names]


class _HandedOver(dict[str, Any]):
    """Parameters that are leaves to a part which the backward pass runs again."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.leaves: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        again = torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1
        leaf = self.leaves.get(name) if again else None
        return super().__getitem__(name) if leaf is None else leaf


class _Onwards:
    """Takes gradients from leaves on to the tensors they stand for."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def leaf(self, tensor: Tensor) -> Tensor:
        """A leaf with the tensor's values, whose gradient becomes the tensor's."""
        leaf = tensor.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(functools.partial(self._take, tensor))
        return leaf

    def _take(self, tensor: Tensor, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        if not self._waiting:  # one pass for all, at the end of the backward pass that runs now
            Variable._execution_engine.queue_callback(self._flush)
        self._waiting.append((tensor, gradient))

    def _flush(self) -> None:
        tensors, gradients = zip(*self._waiting, strict=True)
        self._waiting = []
        # The outer backward pass comes through the same graph.
        torch.autograd.backward(tensors, gradients, retain_graph=True)


_MISSING = object()


def _forget_cached() -> None:
    """Drop what `parametrize.cached` keeps, by a key that all copies of a module have in common."""
    if parametrize._cache_enabled:
        parametrize._cache.clear()


def _replace_within(value: Any, known: Mapping[int, Any]) -> None:
    """Put other modules in the places of those in ``known``, in a container and those within."""
    if isinstance(value, dict):
        items = [(_other(k, known), _other(v, known)) for k, v in value.items()]
        value.clear()
        value.update(items)
    elif isinstance(value, set):
        items = [_other(each, known) for each in value]
        value.clear()
        value.update(items)
    elif isinstance(value, list | deque):
        for place, each in enumerate(value):
            value[place] = _other(each, known)


def _other(value: Any, known: Mapping[int, Any]) -> Any:
    if isinstance(value, _CONTAINERS):
        _replace_within(value, known)
        return value
    return _rebound(value, known)


def _modules_of(value: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules that a value refers to: in containers, methods and attributes of objects."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    for inner in _parts(value):
        yield from _modules_of(inner, seen)


def _parts(value: Any) -> list[Any]:
    """What a value holds."""
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


def _rebound(value: Any, known: Mapping[int, Any]) -> Any:
    """A value that refers to other modules in the place of those in ``known``, by their ids."""
    if isinstance(value, nn.Module):
        return known.get(id(value), value)
    if not any(id(module) in known for module in _modules_of(value)):
        return value
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _rebound(value.__self__, known))
    if isinstance(value, functools.partial):
        keywords = {name: _rebound(each, known) for name, each in value.keywords.items()}
        args = [_rebound(each, known) for each in value.args]
        return functools.partial(_rebound(value.func, known), *args, **keywords)
    if isinstance(value, tuple):
        items = [_rebound(each, known) for each in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, set | frozenset):
        return type(value)(_rebound(each, known) for each in value)
    again = copy_object(value)
    if isinstance(value, Mapping):
        again.clear()
        again.update({_rebound(k, known): _rebound(v, known) for k, v in value.items()})
    elif isinstance(value, list | deque):
        for place, each in enumerate(value):
            again[place] = _rebound(each, known)
    else:
        known = {**known, id(value): again}
        for name, each in vars(value).items():
            again.__dict__[name] = again if each is value else _rebound(each, known)
    return again
