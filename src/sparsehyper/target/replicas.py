"""One call of a module with its own tensors in their places.

A call puts generated tensors in the places of the module's parameters. It does so in shallow
copies of the modules on the way to these places, so that the tensors belong to the call: other
threads, hooks that call the hypernetwork again, and a part that is run again in the backward pass
(activation checkpointing) each find their own. A copy shares everything else with its original:
submodules without generated tensors, shared parameters, buffers, hooks, attributes. What the call
assigns to an attribute of a copy, the original gets afterwards.

A copy lives as long as something holds it. The graph holds checkpointed parts until the backward
pass has run them again.

The compiler traces no copies. For it `run_in_place` swaps the tensors in the module itself.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from operator import gt, is_
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsehyper.target.handover import hand_over
from sparsehyper.target.references import modules_of, substitute, substitute_in_place
from sparsehyper.target.replica_plan import STANDARD_ATTRIBUTES, ReplicaPlan

# Recurrent layers keep lists of their weights, which every copy makes for itself.
_WEIGHT_LISTS = ("_flat_weights", "_flat_weight_refs")

_MISSING = object()


class Replica:
    """The copies of one call.

    Args:
        plan: the plan.
        originals: the modules to copy, as `ReplicaPlan.originals` returns them.
        attributes: their attributes, as `ReplicaPlan.attributes` returns them.
        parameters: tensors for the plan's parameters.
        buffers: tensors for the plan's buffers.

    Attributes:
        module: the copy of the root.
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
            members = module.__dict__.copy()
            if "_compiled_call_impl" in members:  # it runs the original
                members["_compiled_call_impl"] = None
            for kind in own:
                members[kind] = members[kind].copy()
            copy = object.__new__(type(module))
            object.__setattr__(copy, "__dict__", members)
            copies.append(copy)
        del copy  # references are counted below
        for node, name, child in plan.links:
            copies[node].__dict__["_modules"][name] = copies[child]
        for (node, attribute), tensor in zip(plan.parameters, parameters, strict=True):
            copies[node].__dict__["_parameters"][attribute] = tensor
        for (node, attribute), tensor in zip(plan.buffers, buffers, strict=True):
            copies[node].__dict__["_buffers"][attribute] = tensor
        rebound = self._rebind() if plan.rebound else []
        for node in plan.recurrent:
            copies[node]._init_flat_weights()
        for node in plan.compiled:  # their `forward` is the inner module's
            copies[node]._initialize()
        _clear_parametrization_cache()
        self._before = attributes
        for node, attribute in plan.rebound:
            self._update_before(node, attribute)
        for node in plan.compiled:
            self._update_before(node, "forward")
        self._contents = [
            [[*copy.__dict__[kind].values()] for kind in own]
            for copy, own in zip(copies, plan.own, strict=True)
        ]
        self.module: Any = copies[0]
        self._watched = [*copies, *rebound]
        del rebound
        self._references = [sys.getrefcount(each) for each in self._watched]

    def buffers(self) -> list[Tensor]:
        """The tensors that stand in the places of the plan's buffers now."""
        copies = self._copies
        return [copies[node].__dict__["_buffers"][name] for node, name in self._plan.buffers]

    def close(self) -> None:
        """End the call: give the originals what it assigned to their copies."""
        _clear_parametrization_cache()
        plan = self._plan
        for node, (copy, before, contents) in enumerate(
            zip(self._copies, self._before, self._contents, strict=True)
        ):
            now = copy.__dict__
            if len(now) != plan.sizes[node] or not all(map(is_, plan.get[node](now), before)):
                self._return_attributes(node, now, before)
            for kind, values in zip(plan.own[node], contents, strict=True):
                entries = now[kind]
                if len(entries) != len(values) or not all(map(is_, entries.values(), values)):
                    self._return_contents(node, kind)
        del copy
        self._release_containers()
        references = [sys.getrefcount(each) for each in self._watched]
        if any(map(gt, references, self._references)):
            # somebody holds a copy, most likely to run it again in the backward pass
            hand_over(self._copies, plan.parameters, plan.recurrent)
        elif plan.rebound:
            # copies in a reference cycle would keep the tensors until the next garbage collection
            for node, attribute in plan.parameters:
                self._copies[node].__dict__["_parameters"][attribute] = None
            for node, attribute in plan.rebound:
                self._copies[node].__dict__.pop(attribute, None)

    @functools.cached_property
    def _original_of(self) -> dict[int, nn.Module]:
        """The originals by the ids of their copies; most calls need none."""
        return {id(copy): m for copy, m in zip(self._copies, self._originals, strict=True)}

    def _rebind(self) -> list[Any]:
        """Make attributes that refer to originals refer to copies; return their new values."""
        copy_of = {
            id(module): copy for module, copy in zip(self._originals, self._copies, strict=True)
        }
        values = []
        for node, attribute in self._plan.rebound:
            attributes = self._copies[node].__dict__
            if attribute in attributes:
                attributes[attribute] = substitute(attributes[attribute], copy_of)
                values.append(attributes[attribute])
        return values

    def _release_containers(self) -> None:
        """Put originals in the places of copies that the run has left in a shared container."""
        for node, attribute in self._plan.containers:
            value = self._originals[node].__dict__.get(attribute)
            if value and any(id(m) in self._original_of for m in modules_of(value)):
                substitute_in_place(value, self._original_of)
                self._plan.stale = True

    def _update_before(self, node: int, attribute: str) -> None:
        """Record the copy's present attribute as its value before the call."""
        values, names = list(self._before[node]), self._plan.names[node]
        if attribute in names:
            values[2 + names.index(attribute)] = self._copies[node].__dict__.get(attribute)
            self._before[node] = tuple(values)

    def _return_attributes(self, node: int, now: dict[str, Any], before: tuple[Any, ...]) -> None:
        """Assign to an original what was assigned to its copy."""
        attributes = self._originals[node].__dict__
        was = dict(zip(self._plan.names[node], before[2:], strict=True))
        for name, value in now.items():
            of_copy_alone = name in _WEIGHT_LISTS or (
                name in STANDARD_ATTRIBUTES and name != "training"
            )
            if not of_copy_alone and value is not was.get(name, _MISSING):
                attributes[name] = substitute(value, self._original_of)
        for name in was.keys() - now.keys():
            attributes.pop(name, None)

    def _return_contents(self, node: int, kind: str) -> None:
        """Give an original its copy's parameters, buffers or submodules, except the call's own."""
        entries = self._originals[node].__dict__[kind]
        now = self._copies[node].__dict__[kind]
        places = {"_parameters": self._plan.parameters, "_buffers": self._plan.buffers}
        of_call = {place.attribute for place in places.get(kind, ()) if place.node == node}
        for name, value in now.items():
            if name in of_call:
                continue
            if kind == "_modules" and value is not entries.get(name):
                value = self._original_of.get(id(value), value)
                for module in () if value is None else value.modules():
                    for child, inner in module._modules.items():
                        module._modules[child] = self._original_of.get(id(inner), inner)
                self._plan.stale = True
            entries[name] = value
        for name in entries.keys() - now.keys() - of_call:
            del entries[name]


def run_in_place(
    plan: ReplicaPlan,
    module: nn.Module,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    args: tuple[Any, ...],
    kwargs: Any,
) -> tuple[Any, list[Tensor]]:
    """The output and the buffers afterwards, with the tensors swapped in the module itself.

    This is for the compiler. In the graph that it traces the module never changes.
    """
    originals = plan.originals(module)
    tables = [originals[node]._buffers[name] for node, name in plan.buffers]
    try:
        for (node, name), tensor in zip(plan.parameters, parameters, strict=True):
            originals[node]._parameters[name] = tensor
        for (node, name), tensor in zip(plan.buffers, buffers, strict=True):
            originals[node]._buffers[name] = tensor
        for node in plan.recurrent:
            originals[node]._init_flat_weights()
        out = module(*args, **kwargs)
        return out, [originals[node]._buffers[name] for node, name in plan.buffers]
    finally:
        for node, name in plan.parameters:
            originals[node]._parameters[name] = None
        for (node, name), table in zip(plan.buffers, tables, strict=True):
            originals[node]._buffers[name] = table
        for node in plan.recurrent:
            originals[node]._init_flat_weights()


def _clear_parametrization_cache() -> None:
    """Clear the cache of `parametrize.cached`, whose keys are the same for a module's copies."""
    if parametrize._cache_enabled:
        parametrize._cache.clear()
