from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.small_tasks import plain, samples
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding


def train(hnet: HyperNetwork, steps: int = 150) -> None:
    optimizer = torch.optim.Adam(hnet.parameters(), 3e-3)
    tasks = [samples(seed) for seed in range(len(hnet.task_names))]
    for _ in range(steps):
        losses = [nn.functional.cross_entropy(hnet(x, task=t), y) for t, (x, y) in enumerate(tasks)]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
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
