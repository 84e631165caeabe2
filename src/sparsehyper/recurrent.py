"""Recurrent targets whose parameters are generated anew at every time step.

Source: the dynamic hypernetwork of D. Ha et al., "HyperNetworks" (ICLR 2017), with whole weights in
place of their scaling vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsehyper.conditioning import Condition
from sparsehyper.hypernetwork import HyperNetwork


def unroll(
    hnet: HyperNetwork, inputs: Tensor, state: Any = None, *, task: Condition = None
) -> tuple[Tensor, Any]:
    """Run a hypernetwork whose target is a recurrent cell over a sequence.

    At step t the cell is ``hnet(inputs[t], state, task=task)``. An `InputEncoder`, which is given
    the same, makes its weights depend on the input and on the state: they change with every step.

    Args:
        hnet: the target is an ``nn.RNNCell``, ``GRUCell`` or ``LSTMCell``, or takes and returns
            what they do.
        inputs: ``[time, batch, features]``.
        state: before the first step, as the cell takes it; None leaves the first step without one,
            which such cells take for zeros.
        task: what the conditioner takes.

    Returns:
        The cell's outputs (of an LSTM its h) ``[time, batch, hidden]``, and the last state.

    Raises:
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
    outputs = []
    for x in inputs:
        state = hnet(x, task=task) if state is None else hnet(x, state, task=task)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state
