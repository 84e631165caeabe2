"""Measurements of a training, and the moment when test images are looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsehyper.lab.runs import build_model
from sparsehyper.lab.studies import target_sparsity, trainings
from sparsehyper.lab.studies.trainings import measured


def zeros_of(model):
    return [p == 0 for p in model.materialize(0).parameters() if p.ndim == 2]


@pytest.fixture
def judged(monkeypatch):
    """The tasks whose accuracy was asked for, call by call."""
    calls = []
    original = trainings.evaluate

    def evaluate(model, data, **settings):
        calls.append(data)
        return original(model, data, **settings)

    monkeypatch.setattr(trainings, "evaluate", evaluate)
    return calls


def test_a_training_that_diverges_is_recorded_as_guessing(experiment, tasks):
    training = replace(experiment.training, lr=1e38, optimizer="sgd", clip=None)
    _, values = measured(replace(experiment, training=training), tasks)
    assert values["diverged"]
    assert set(values["accuracies"].values()) == {0.5}
    assert values["accuracy"] == 0.5
    assert values["validation"] == 0
    _, values = measured(experiment, tasks)
    assert not values["diverged"]
    assert values["peak_memory_mb"] > 0


def test_test_images_are_looked_at_once(experiment, tasks, judged):
    measured(experiment, tasks)
    assert judged == [tasks.test]


def test_experts_that_are_pruned_half_way_look_at_test_images_once_too(with_method, tasks, judged):
    accuracy, left = target_sparsity._pruned(with_method("experts"), tasks, 0.5)
    assert judged == [tasks.test]
    assert 0 <= accuracy <= 1
    weights, biases = 64 * 16 + 16 * 2, 16 + 2
    assert left == 5 * (weights // 2 + biases)


def test_every_seed_has_a_mask_of_its_own(experiment, tasks):
    masked = replace(experiment, target="mlp:16/masked:0.5")
    first, again, other = (
        zeros_of(build_model(masked.with_seed(seed), tasks)) for seed in (0, 0, 1)
    )
    assert all(zeros.float().mean() == 0.5 for zeros in first)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
