from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehyper._util.last_layer import features_of, last_layer, trim


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "2"),
        (nn.Sequential(nn.Linear(4, 3), nn.Identity()), "0"),
        (nn.Linear(4, 3), ""),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), None),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 4), nn.Flatten()), None),
        (Twice(), None),
    ],
)
def test_the_layer_whose_output_is_the_modules(module, name):
    x = torch.randn(5, 4)
    found = last_layer(module, x)
    assert (found and found[0]) == name


def test_its_inputs_in_pieces():
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(1100, 4)
    torch.testing.assert_close(features_of(module, module[2], x), module[:2](x).detach())
    assert not module[2]._forward_pre_hooks


def test_a_smaller_one_gives_the_first_outputs():
    layer, x = nn.Linear(4, 5), torch.randn(3, 4)
    before = layer(x)
    trim(layer, 2)
    torch.testing.assert_close(layer(x), before[:, :2])
    assert layer.out_features == 2
