"""Replicas of a module as `nn.DataParallel` makes them, on a machine without accelerators."""

from __future__ import annotations

import sys

import pytest
from torch import nn


def replicas(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return two replicas on the CPU."""
    machinery = sys.modules["torch.nn.parallel.replicate"]  # hidden by a function of that name
    monkeypatch.setattr(
        machinery,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices],
    )
    monkeypatch.setattr(machinery, "_get_device_index", lambda *_: 0)
    return machinery.replicate(module, [0, 1], detach=True)
