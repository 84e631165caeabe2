"""Recurrent targets whose parameters are generated for every time step.

Source: the dynamic hypernetwork of D. Ha et al., "HyperNetworks" (ICLR 2017), which generates
scaling vectors; here whole weights are generated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper.conditioning import Condition
from sparsehyper.hypernetwork import HyperNetwork


def unroll(
    hnet: HyperNetwork, inputs: Tensor, state: Any = None, *, task: Condition = None
) -> tuple[Tensor, Any]:
    """Run a hypernetwork whose target is a recurrent cell over a sequence.

    Step t computes ``hnet(inputs[t], state, task=task)``. An `InputEncoder` gets the same
    arguments, so with it the weights depend on input and state and change at every step.

    Args:
        hnet: a hypernetwork whose target is an ``nn.RNNCell``, ``GRUCell`` or ``LSTMCell``, or has
            the same arguments and outputs.
        inputs: ``[time, batch, features]``.
        state: the state before the first step, as the cell takes it; None calls the cell without a
            state at the first step, for which PyTorch's cells use zeros.
        task: a condition that the conditioner accepts.

    Returns:
        The cell's outputs (h for an LSTM) ``[time, batch, hidden]``, and the last state.

    Raises:
        TypeError: the target is not a cell.
        ValueError: ``inputs`` is not ``[time, batch, features]`` with at least one step.

    >>> from sparsehyper import Dense, HyperNetwork, TaskEmbedding
    >>> hnet = HyperNetwork(torch.nn.GRUCell(3, 4), Dense(), TaskEmbedding(2, dim=8))
    >>> outputs, state = unroll(hnet, torch.randn(5, 2, 3), task=1)
    >>> outputs.shape, torch.equal(outputs[-1], state)
    (torch.Size([5, 2, 4]), True)
    """
    if inputs.ndim != 3 or len(inputs) == 0:
        raise ValueError(
            f"`inputs` must be [time, batch, features] with at least one step, got "
            f"{list(inputs.shape)}"
        )
    cell = hnet.target.module
    if isinstance(cell, nn.RNNBase) or not _takes_two(cell.forward):
        raise _not_a_cell(cell, "whose `forward` does not take (x, state)")
    outputs = []
    for x in inputs:
        state = hnet(x, task=task) if state is None else hnet(x, state, task=task)
        first = state[0] if isinstance(state, tuple) and state else state
        if not isinstance(first, Tensor):
            raise _not_a_cell(cell, f"which returned a {type(state).__name__}")
        outputs.append(first)
    return torch.stack(outputs), state


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _not_a_cell(module: nn.Module, reason: str) -> TypeError:
    return TypeError(
        "the target of `hnet` must be a cell, called as cell(x, state) for one step of "
        "[batch, features], and return the next state, or (h, c); got a "
        f"{type(module).__name__}, {reason}"
    )
