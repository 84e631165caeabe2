"""Copies that outlive their call: the backward pass runs parts of them again.

Reentrant activation checkpointing runs a part of the module again during the backward pass, and
runs a backward pass of its own through it. That inner pass needs leaves to end at. Here each
generated tensor gets such a leaf, and the leaf's gradient is then passed on to the tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from sparsehyper.target.replica_plan import Place


def hand_over(
    copies: Sequence[nn.Module], places: Sequence[Place], recurrent: Sequence[int]
) -> None:
    """Prepare copies to be run again in the backward pass.

    Args:
        copies: the modules' copies, by node.
        places: places of the generated tensors.
        recurrent: nodes of the recurrent layers, which keep lists of their weights.
    """
    leaves: dict[int, Tensor] = {}
    forwarder = _GradientForwarder()
    for node, attribute in places:
        parameters = copies[node].__dict__["_parameters"]
        tensor = parameters[attribute]
        if tensor is None or not tensor.requires_grad:
            continue
        if id(tensor) not in leaves:
            leaves[id(tensor)] = forwarder.leaf(tensor)
        if not isinstance(parameters, _LeavesInBackward):
            parameters = copies[node].__dict__["_parameters"] = _LeavesInBackward(parameters)
        parameters.leaves[attribute] = leaves[id(tensor)]
    for node in recurrent:
        layer: Any = copies[node]
        own = layer.__dict__["_parameters"]
        if isinstance(own, _LeavesInBackward):
            layer._flat_weights = [own.leaves.get(name) for name in layer._flat_weights_names]


class _LeavesInBackward(dict[str, Any]):
    """Parameters that are leaves when they are looked up within a backward pass."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.leaves: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        in_backward = torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1
        leaf = self.leaves.get(name) if in_backward else None
        return super().__getitem__(name) if leaf is None else leaf


class _GradientForwarder:
    """Passes the gradients of leaves on to the tensors that they stand for."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def leaf(self, tensor: Tensor) -> Tensor:
        """A leaf with the tensor's values, whose gradient becomes the tensor's."""
        kind, tensor = type(tensor), tensor.as_subclass(Tensor)  # a subclass may allow no more
        leaf = tensor.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(functools.partial(self._take, tensor))
        return leaf.as_subclass(kind)

    def _take(self, tensor: Tensor, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        if not self._waiting:  # one pass for all, at the end of the current backward pass
            Variable._execution_engine.queue_callback(self._flush)
        self._waiting.append((tensor, gradient))

    def _flush(self) -> None:
        tensors, gradients = zip(*self._waiting, strict=True)
        self._waiting = []
        # retain the graph: the outer backward pass goes through it too
        torch.autograd.backward(tensors, gradients, retain_graph=True)
