"""Runs and models on disk, to be damaged."""

from __future__ import annotations

import torch

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.lab.runs import DataConfig, Experiment, change_tasks, run_experiment
from sparsehyper.training import TrainConfig


def make_target():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))


def train(path, seed):
    """Train a run that ends worse than its best, so that its two checkpoints differ."""
    training = TrainConfig(
        steps=12, eval_every=2, log_every=1, lr=0.3, schedule="constant", seed=seed, clip=None,
        device="cpu",
    )  # fmt: skip
    data = DataConfig(tasks="split:5")
    experiment = Experiment(data, training, target="mlp:4", latent_dim=4, batch_size=20)
    run_experiment(experiment, path, quiet=True)


def make_runs(path):
    """Make two similar runs, an adapted run, and two saved models."""
    for name, seed in (("run", 0), ("other", 1)):
        train(path / name, seed)
    change_tasks(path / "run", path / "adapted", rename=("0-1-2-3-4", "low"))
    for name, seed in (("model", 0), ("another", 1)):
        HyperNetwork(make_target(), Sparse(), TaskEmbedding(2, 8), seed=seed).save(path / name)
