from __future__ import annotations

from dataclasses import replace

import pytest

from sparsehyper.lab.runs import DataConfig, Experiment, load_tasks, parse_method
from sparsehyper.training import TrainConfig

TRAINING = TrainConfig(steps=4, eval_every=2, log_every=2, device="cpu")


@pytest.fixture(scope="session")
def experiment():
    return Experiment(
        DataConfig(tasks="split:2"), TRAINING, target="mlp:16", latent_dim=8, batch_size=20
    )


@pytest.fixture(scope="session")
def with_method(experiment):
    return lambda text, **changes: replace(experiment, method=parse_method(text), **changes)


@pytest.fixture(scope="session")
def tasks(experiment):
    return load_tasks(experiment.data)
