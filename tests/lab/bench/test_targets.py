from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparsehyper.lab.bench.targets import GPT2, LARGE_TARGETS, ResNet18, ViT, mlp, resnet426k


@pytest.mark.parametrize("name", LARGE_TARGETS)
def test_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        module = LARGE_TARGETS[name].make()
    assert sum(p.numel() for p in module.parameters()) == LARGE_TARGETS[name].numel
    published = {"resnet18": 11_689_512, "vit_b16": 86_567_656, "gpt2_small": 124_439_808}
    assert LARGE_TARGETS[name].numel == published.get(name, LARGE_TARGETS[name].numel)


@pytest.mark.parametrize(
    ("make", "x", "shape"),
    [
        (ResNet18, torch.zeros(2, 3, 64, 64), (2, 1000)),
        (lambda: ViT(width=24, depth=2, heads=2), torch.zeros(2, 3, 224, 224), (2, 1000)),
        (lambda: GPT2(50, 16, 64, 2), torch.zeros(2, 7, dtype=torch.int64), (2, 50, 7)),
        (resnet426k, torch.zeros(2, 3, 32, 32), (2, 10)),
        (lambda: mlp(12, 5, 4), torch.zeros(2, 3, 2, 2), (2, 4)),
    ],
)
def test_shapes(make, x, shape):
    assert make()(x).shape == shape


def test_the_small_resnet_has_the_size_of_the_step_benchmark():
    assert sum(p.numel() for p in resnet426k().parameters()) == 426_426


def test_the_language_model_sees_no_later_token_and_ties_its_embedding():
    model = GPT2(50, 16, 64, 2)
    x = torch.randint(50, (1, 8))
    changed = x.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 50
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[..., :5], after[..., :5])
    assert not torch.allclose(before[..., 5:], after[..., 5:])
    F.cross_entropy(before, x).backward()
    assert model.head.weight is model.tokens.weight
