from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.small_tasks import plain, samples
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding


def train(hnet: HyperNetwork, steps: int = 150) -> None:
    optimizer = torch.optim.Adam(hnet.parameters(), 3e-3)
    x, y = map(torch.cat, zip(*map(samples, range(len(hnet.task_names))), strict=True))
    tasks = torch.arange(len(hnet.task_names)).repeat_interleave(len(samples(0)[0]))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(hnet(x, task=tasks), y).backward()
        optimizer.step()


@pytest.fixture
def make() -> Callable[..., HyperNetwork]:
    def build(module: nn.Module | None = None, tasks: int = 4, steps: int = 0, **settings):
        torch.manual_seed(0)
        hnet = HyperNetwork(
            plain() if module is None else module,
            Sparse(),
            TaskEmbedding([f"known {i}" for i in range(tasks)], dim=16),
            **settings,
        )
        train(hnet, steps)
        hnet.zero_grad()
        return hnet

    return build
