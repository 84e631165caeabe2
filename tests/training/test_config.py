from __future__ import annotations

import json

import pytest

from sparsehyper.training import TrainConfig


def test_every_setting_survives_json():
    config = TrainConfig(steps=9, optimizer="sgd", clip=None, patience=3, precision="bf16")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"optimizer": "adagrad"}, "'adam', 'adamw', 'radam', 'sgd', 'adafactor'; got 'adagrad'"),
        ({"schedule": "linear"}, "'constant', 'cosine', 'plateau'; got 'linear'"),
        ({"precision": "fp16"}, "`precision` must be one of 'fp32', 'bf16'; got 'fp16'"),
        ({"lr": 0.0}, "`lr` must be greater than 0, got 0.0"),
        ({"lr": float("nan")}, "`lr` must be finite, got nan"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0, got -1.0"),
        ({"clip": 0.0}, "`clip` must be greater than 0, got 0.0"),
        ({"accumulate": 0}, "`accumulate` must be at least 1, got 0"),
        ({"patience": 0}, "`patience` must be at least 1, got 0"),
        ({"warmup": 11}, "`warmup` must be at most `steps`, got 11 for 10 steps"),
        ({"log_with": "board"}, "'tensorboard', 'wandb', 'mlflow', 'trackio'; got 'board'"),
        ({"shard": True, "compile": True}, "`shard` cannot be combined with `compile`"),
        ({"shard": True, "cuda_graphs": True}, "`shard` cannot be combined with `cuda_graphs`"),
        (
            {"shard": True, "optimizer": "adafactor"},
            "`shard` cannot be combined with `optimizer` 'adafactor'; give one of the two",
        ),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 10, **settings})


@pytest.mark.parametrize("settings", [{"steps": 1.5}, {"lr": "high"}, {"device": 0}])
def test_settings_of_the_wrong_type(settings):
    (name, value), *_ = settings.items()
    with pytest.raises(TypeError, match=f"`{name}` must be .*{value}"):
        TrainConfig(**{"steps": 10, **settings})


def test_unknown_setting():
    with pytest.raises(ValueError, match="'learning_rate'; it has: 'steps', 'optimizer'"):
        TrainConfig.from_dict({"steps": 1, "learning_rate": 0.1})
