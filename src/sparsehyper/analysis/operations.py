"""The cost of generating a model, and of running it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsehyper.generators.butterfly import ButterflyStages
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.sparse import SparseLinear


@torch.no_grad()
def count_operations(hnet: HyperNetwork, *example: Any) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of generating one model, and of one forward pass of it.

    Sparse layers (one multiply-add per connection), matrix products, convolutions and attention
    count. Elementwise operations, such as activations and norms, do not. If the target runs on the
    ``meta`` device, its operations are counted there without being computed.

    Args:
        hnet: the hypernetwork.
        *example: arguments of the target; its multiply-adds are those for this batch.

    Returns:
        ``generator`` and ``target``, each with ``parameters`` (for the target, all of one model)
        and ``multiply_adds``; JSON-ready.

    Raises:
        ValueError: no ``example``.

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(fan_in=3), TaskEmbedding(2, dim=8))
    >>> count_operations(hnet, torch.zeros(1, 5))
    {'generator': {'parameters': 36, 'multiply_adds': 36},
     'target': {'parameters': 12, 'multiply_adds': 10}}
    """
    if not example:
        raise ValueError("`example` must hold what the target takes, got nothing")
    z = torch.zeros(hnet.conditioner.dim, device=hnet.device, dtype=hnet.dtype)
    head = None if hnet.head is None else 0  # those of all tasks are of one size
    model, generator = hnet.materialize(z, head=head).eval(), hnet.generator
    connections = sum(_connections(module) for module in generator.modules())
    return {
        "generator": {
            "parameters": sum(p.numel() for p in generator.parameters()),
            "multiply_adds": connections + _multiply_adds(lambda: generator(z[None])),
        },
        "target": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "multiply_adds": count_multiply_adds(model, *example),
        },
    }


@torch.no_grad()
def count_multiply_adds(module: nn.Module, *example: Any) -> int:
    """Multiply-adds of one forward pass of an ordinary module; see `count_operations`."""
    try:
        # PyTorch does not count the CPU's own kernels for recurrent layers and attention.
        meta = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), example)
        on_meta = copy.deepcopy(module).to("meta")
        return _multiply_adds(lambda: on_meta(*meta))
    except Exception:  # the module needs numbers, for whatever it does
        return _multiply_adds(lambda: module(*example))


def _connections(module: nn.Module) -> int:
    """Number of connections of a layer whose products PyTorch does not count; otherwise 0."""
    if isinstance(module, SparseLinear):
        return module.fan_in * module.out_features
    return module.weight.numel() if isinstance(module, ButterflyStages) else 0


def _multiply_adds(run: Callable[[], Any]) -> int:
    """Multiply-adds that PyTorch counts in a run."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where it is

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2
