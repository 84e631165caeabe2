"""Training of small hypernetworks by two processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from helpers.toy import N_CLASSES, NAMES, Source
from sparsehyper import HyperNetwork, Ridge, Sparse, TaskEmbedding
from sparsehyper.training import NonFiniteError, Processes, Run, TrainConfig, train
from sparsehyper.training.optim import build_optimizer
from sparsehyper.training.parallel import Replicated, ThetaGradient
from sparsehyper.training.sharded import Sharded

# By name: tasks a batch of both processes, and settings of the model and of training.
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one task": (1, {}, {}),
    "tasks apart": (2, {"base": "zeros"}, {"clip": 0.05}),
    "mixed": (3, {"generate": "1.*", "base": "residual"}, {"accumulate": 2}),
    "bf16": (3, {}, {"precision": "bf16"}),
    "head": (1, {"head": Ridge()}, {}),
    "sharded": (
        2,
        {"base": "residual"},
        {"shard": True, "accumulate": 2, "optimizer": "radam", "lr": 0.3},
    ),
    "sharded parts": (3, {"generate": "1.*"}, {"shard": True, "optimizer": "sgd", "lr": 0.2}),
}


def make(**settings: Any) -> HyperNetwork:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return HyperNetwork(target, Sparse(), TaskEmbedding(NAMES, 8), **settings)


def fit(case: str, here: Processes) -> dict[str, np.ndarray]:
    """Train for five updates; returns the values of the model."""
    tasks, settings, training = CASES[case]
    model = make(**settings)
    source = Source(tasks_per_batch=tasks, shard=(here.rank, here.count))
    config = TrainConfig(
        **{"steps": 5, "lr": 0.02, "eval_every": 5, "device": "cpu", **training},
        schedule="constant",
    )
    train(
        model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, examples=Source(),
        quiet=True,
    )  # fmt: skip
    return values_of(model)


def values_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The tensors of a model, in a form that survives the process that sends it."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def both_ways(here: Processes) -> dict[str, list[dict[str, np.ndarray]]]:
    """By case, the trained model by the gradient of θ, and by that of all parameters.

    Where the generator is sharded there is one way.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for case in CASES:
        found[case] = []
        for cost in (0, 10**9)[: 1 if "shard" in CASES[case][2] else 2]:
            with mock.patch.object(ThetaGradient, "cost", return_value=cost):
                found[case].append(fit(case, here))
    return found


def exchanged(here: Processes) -> dict[int, tuple[int, bool]]:
    """By tasks a batch, the numbers summed in a step, and whether the plain way was gone."""
    counted: dict[int, tuple[int, bool]] = {}
    for tasks in (1, 3):
        model, numbers = make(), []
        config = TrainConfig(1, device="cpu")
        optimizer = build_optimizer(config, model.parameters())
        parallel = Replicated(model, optimizer, config, here)
        x, y, task = Source(tasks_per_batch=tasks, shard=(here.rank, here.count)).batch(0, 0)

        def sum_(tensor, all_reduce=dist.all_reduce, numbers=numbers, **options):
            numbers.append(tensor.numel())
            return all_reduce(tensor, **options)

        with mock.patch.object(dist, "all_reduce", sum_), parallel.part(0, task):
            nn.functional.cross_entropy(parallel(x, task=task), y).backward()
            parallel.finish()
        counted[tasks] = sum(numbers), "_wrapped" in vars(parallel)
    return counted


def sharded(here: Processes, folder: Path) -> tuple[dict[str, np.ndarray], set[int]]:
    """Go on with a run, with a part of the generator in each process.

    Returns:
        The best model, and how many of the generator's numbers this process has held in updates.
    """
    held: set[int] = set()

    def finish(self: Sharded, whole=Sharded.finish) -> None:
        whole(self)
        groups = self.optimizer.param_groups
        parts = [p for group in groups for p in group["params"] if isinstance(p, DTensor)]
        held.add(sum(p.to_local().numel() for p in parts))
        held.add(sum(p.grad.to_local().numel() for p in parts))

    with mock.patch.object(Sharded, "finish", finish):
        model = run_to(folder, 6, here, shard=True)
    return values_of(model), held


def stopped(here: Processes) -> dict[str, np.ndarray]:
    """The model after a sharded training whose first update was not made."""
    model = make()
    config = TrainConfig(1, device="cpu", shard=True)
    source = Source(tasks_per_batch=2, shard=(here.rank, here.count))
    with suppress(NonFiniteError):
        train(
            model, source, Source(), config, names=NAMES, quiet=True,
            loss=lambda out, y: (out.sum(1) - y) * torch.nan,
        )  # fmt: skip
    return values_of(model)


def run_to(path: Path, steps: int, here: Processes, **settings: Any) -> HyperNetwork:
    """Go on with a run, or start it, up to a number of updates; returns the best model."""
    model = make()
    config = TrainConfig(
        **{"steps": steps, "lr": 0.02, "eval_every": 3, "device": "cpu", "clip": 0.05, **settings},
        schedule="constant",
    )
    source = Source(tasks_per_batch=2, shard=(here.rank, here.count))
    with (Run.open if path.exists() else Run.create)(path, {}) as run:
        train(
            model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, run=run, quiet=True
        )
    return model
