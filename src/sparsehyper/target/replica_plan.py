"""Plan of a call: which modules of a tree need copies, and where the call's tensors go.

The plan is made once for a tree and holds none of its modules, so that it fits any copy of the
tree. `replicas` carries it out at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_, itemgetter
from typing import Any, NamedTuple

from torch import nn

from sparsehyper.target.references import MUTABLE_CONTAINERS, modules_of

# Attributes that every module has.
STANDARD_ATTRIBUTES = frozenset(vars(nn.Module()))

_CONTENTS = ("_parameters", "_buffers", "_modules")


class Place(NamedTuple):
    """Position of a tensor: an entry of the parameters or buffers of a node."""

    node: int
    attribute: str


class ReplicaPlan:
    """The modules of a tree that a call copies, numbered as *nodes*; the root is node 0.

    Copied are the modules that hold the given tensors, their ancestors, and every module that
    refers to one of these in an attribute.

    Args:
        root: the tree.
        parameters: modules and names of their generated parameters.
        buffers: modules and names of their buffers that belong to a task.

    Attributes:
        parameters: places of the parameters, in the given order.
        buffers: places of the buffers, in the given order.
        links: parent, attribute and child of every edge between two nodes.
        own: for each node, the dictionaries, of its three, that a copy needs for itself.
        rebound: nodes and attributes whose value refers to nodes, and must refer to their copies.
        containers: nodes and attributes with containers, which a run may put modules into.
        names: for each node, the attributes that are compared before and after a call: all but
            those of every module (hooks above all, which are added to and never replaced).
        sizes: for each node, its number of attributes.
        compiled: nodes that ``torch.compile`` made.
        recurrent: nodes that are recurrent layers.
        stale: the modules have come to refer to one another in other ways; make another plan.
    """

    stale = False

    def __init__(
        self,
        root: nn.Module,
        parameters: Sequence[tuple[nn.Module, str]],
        buffers: Sequence[tuple[nn.Module, str]],
    ) -> None:
        copied = _to_copy(root, [owner for owner, _ in (*parameters, *buffers)])
        # the first path to each module, and then every edge between two of them
        nodes: dict[nn.Module, int] = {root: 0}
        self._paths: list[tuple[int, str]] = []
        for module in root.modules():
            if module not in copied:
                continue
            for name, child in module._modules.items():
                if child is not None and child in copied and child not in nodes:
                    nodes[child] = len(nodes)
                    self._paths.append((nodes[module], name))
        self.links = [
            (node, name, nodes[child])
            for module, node in nodes.items()
            for name, child in module._modules.items()
            if child is not None and child in copied
        ]
        self.parameters = [Place(nodes[owner], attribute) for owner, attribute in parameters]
        self.buffers = [Place(nodes[owner], attribute) for owner, attribute in buffers]
        changed = (
            {place.node for place in self.parameters},
            {place.node for place in self.buffers},
            {node for node, *_ in self.links},
        )
        self.own = [
            tuple(kind for kind, of in zip(_CONTENTS, changed, strict=True) if node in of)
            for node in range(len(nodes))
        ]
        self.rebound = [
            (node, attribute)
            for module, node in nodes.items()
            for attribute, value in vars(module).items()
            if attribute not in _CONTENTS and any(m in nodes for m in modules_of(value))
        ]
        self.containers = [
            (node, attribute)
            for module, node in nodes.items()
            for attribute, value in vars(module).items()
            if attribute not in STANDARD_ATTRIBUTES and isinstance(value, MUTABLE_CONTAINERS)
        ]
        self.names = [
            tuple(name for name in vars(m) if name == "training" or name not in STANDARD_ATTRIBUTES)
            for m in nodes
        ]
        # With one name only, `itemgetter` would return no tuple. These two are never replaced.
        padding = ("_state_dict_hooks", "_state_dict_hooks")
        self.get = [itemgetter(*padding, *names) for names in self.names]
        self.sizes = [len(vars(module)) for module in nodes]
        self._seen = [get(vars(module)) for get, module in zip(self.get, nodes, strict=True)]
        self.compiled = [n for module, n in nodes.items() if "dynamo_ctx" in vars(module)]
        self.recurrent = [n for module, n in nodes.items() if isinstance(module, nn.RNNBase)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": [], "stale": True}

    def attributes(
        self, originals: Sequence[nn.Module], *, own: bool
    ) -> list[tuple[Any, ...]] | None:
        """For each node two values to skip and the values of its ``names``; None if stale.

        Args:
            originals: the modules of the plan, as `originals` returns them.
            own: they belong to the tree that the plan was made for. The plan then becomes stale if
                a module has got an attribute that may refer to others.
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
                    if value is not before and next(modules_of(value), None) is not None:
                        self.stale = True
                        return None
                self._seen[node] = values
            found.append(values)
        return found

    def originals(self, root: nn.Module) -> list[Any]:
        """The modules of the plan, by node, in a tree like the one it was made for."""
        found = [root]
        for parent, name in self._paths:
            found.append(found[parent]._modules[name])  # type: ignore[arg-type]
        return found


def _to_copy(root: nn.Module, owners: list[nn.Module]) -> set[nn.Module]:
    """The owners of a call's tensors, and all modules that must refer to the owners' copies."""
    referring: dict[nn.Module, set[nn.Module]] = {}
    for module in root.modules():
        named = {child for child in module._modules.values() if child is not None}
        for attribute, value in vars(module).items():
            if attribute not in _CONTENTS:
                named.update(modules_of(value))
        for other in named:
            referring.setdefault(other, set()).add(module)
    copied = {root}
    pending = [root, *owners]
    while pending:
        module = pending.pop()
        copied.add(module)
        pending += [other for other in referring.get(module, ()) if other not in copied]
    return copied
