"""Small targets, and tasks for them."""

from __future__ import annotations

import torch
from torch import nn


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
