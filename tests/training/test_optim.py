from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehyper.training import TrainConfig
from sparsehyper.training.optim import build_optimizer, evaluations_since_best, learning_rate


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "sgd", "adafactor"])
def test_each_optimizer_lowers_a_loss(name):
    weight = nn.Parameter(torch.full([3], 2.0))
    optimizer = build_optimizer(TrainConfig(steps=1, optimizer=name, lr=0.01), [weight])
    for _ in range(100):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert type(optimizer).__name__.lower() == name
    assert weight.abs().max() < 1.91


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_where_pytorch_has_it(name):
    weight = nn.Parameter(torch.zeros(1))
    assert build_optimizer(TrainConfig(steps=1, optimizer=name), [weight]).defaults["fused"]


def test_adafactor_keeps_far_less_than_adam():
    def kept(name: str) -> int:
        weights = [nn.Parameter(torch.randn(k, 1000)) for k in (1, 3, 8)]
        optimizer = build_optimizer(TrainConfig(steps=1, optimizer=name), weights)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        return sum(v.numel() for state in optimizer.state.values() for v in state.values())

    assert kept("adafactor") < kept("adam") / 7


def test_weight_decay_reaches_the_optimizer():
    config = TrainConfig(steps=1, optimizer="adamw", weight_decay=0.1)
    assert build_optimizer(config, [nn.Parameter(torch.zeros(1))]).defaults["weight_decay"] == 0.1


def test_warmup_rises_linearly_for_every_schedule():
    for schedule in ("constant", "cosine", "plateau"):
        config = TrainConfig(steps=100, lr=1.0, warmup=4, schedule=schedule)
        assert [learning_rate(config, s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_from_the_full_rate_towards_zero():
    config = TrainConfig(steps=110, lr=2.0, warmup=10)
    assert learning_rate(config, 10) == 2.0
    assert learning_rate(config, 60) == pytest.approx(1.0)
    assert 0 < learning_rate(config, 109) < 1e-3


def test_constant_stays():
    assert learning_rate(TrainConfig(steps=9, lr=0.3, schedule="constant"), 8) == 0.3


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [
        ([], 1.0),
        ([0.5, 0.5], 1.0),
        ([0.5, 0.5, 0.5], 0.5),
        ([0.5, 0.5, 0.5, 0.6, 0.6], 0.5),
        ([0.5, 0.5, 0.5, 0.4, 0.4], 0.25),
    ],
)
def test_plateau_halves_after_its_patience(accuracies, rate):
    config = TrainConfig(steps=9, lr=1.0, schedule="plateau", plateau_patience=2)
    assert learning_rate(config, 5, accuracies) == rate


def test_evaluations_since_best_counts_from_the_first_of_equals():
    assert evaluations_since_best([]) == 0
    assert evaluations_since_best([0.1, 0.9, 0.9, 0.2]) == 2
