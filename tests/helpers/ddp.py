"""Training of a hypernetwork in two processes, each with tasks of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.training import Processes


def collect(here: Processes) -> list[dict[str, Any]]:
    """Train for a while; return the norm statistics of four tasks."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(4, momentum=0.5), nn.Linear(4, 2))
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(4, 8))
    model = DistributedDataParallel(hnet)
    torch.manual_seed(here.rank)
    for _ in range(10):
        for task in (here.rank, 2):  # one task of this process alone, and one of both
            with model.no_sync():
                model(torch.randn(32, 4) + 5 + here.rank, task=task).square().mean().backward()
    model(torch.randn(32, 4) + 5 + here.rank, task=here.rank).square().mean().backward()
    states = [hnet.materialize(task)[0].state_dict() for task in range(4)]
    return [{name: value.tolist() for name, value in state.items()} for state in states]
