from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def layer_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3))


def samples(seed: int, count: int = 60, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples whose classes a linear map separates, a different map for each seed."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=rng)
    y = (x @ torch.randn(6, classes, generator=rng)).argmax(1)
    y[:classes] = torch.arange(classes)
    return x, y


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
