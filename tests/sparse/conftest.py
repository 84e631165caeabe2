from __future__ import annotations

import pytest
import torch

from sparsehyper._util.memory import Memory


@pytest.fixture
def poison(monkeypatch):
    """Fill all uninitialised memory with NaN."""

    def poisoned(empty):
        def make(*args, **kwargs):
            tensor = empty(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return make

    for owner, name in (
        *((Memory, "empty"), (torch.Tensor, "new_empty")),
        *((torch, "empty"), (torch, "empty_like")),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
