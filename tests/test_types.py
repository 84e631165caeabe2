"""What type checkers see of a call; mypy reads this file too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

import torch
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding

X = torch.randn(3, 5)


@dataclass
class Both:
    """An output of two tensors."""

    mean: Tensor
    spread: Tensor


class Net(nn.Module):
    """A module whose output is annotated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: Tensor, *, factor: float = 1.0) -> Both:
        """Two outputs of each."""
        mean, spread = (factor * self.layer(x)).split(2, dim=1)
        return Both(mean, spread)


def tasks() -> TaskEmbedding:
    """Embeddings of two tasks."""
    return TaskEmbedding(["a", "b"], dim=8)


def test_a_call_returns_what_the_target_is_annotated_to_return() -> None:
    linear = HyperNetwork(nn.Linear(5, 2), Sparse(), tasks())
    assert type(assert_type(linear(X, task="a"), Tensor)) is Tensor
    assert type(assert_type(linear.forward(X, task=torch.tensor([0, 1, 0])), Tensor)) is Tensor
    own = HyperNetwork(Net(), Sparse(), tasks())
    both = assert_type(own(X, task=1, factor=2.0), Both)
    assert both.mean.shape == (3, 2)


def test_a_module_without_annotation_may_return_anything() -> None:
    several = HyperNetwork(nn.Sequential(nn.Linear(5, 2)), Sparse(), tasks())
    assert_type(several(X, task="a"), Any)
    module: nn.Module = nn.Linear(5, 2)
    assert_type(HyperNetwork(module, Sparse(), tasks())(X, task="a"), Any)


def test_a_type_can_be_named() -> None:
    hnet: HyperNetwork[Tensor] = HyperNetwork(nn.Sequential(nn.Linear(5, 2)), Sparse(), tasks())
    assert assert_type(hnet(X, task="b"), Tensor).shape == (3, 2)
