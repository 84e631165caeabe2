"""Trainings: experiments that are cells of a study, all measured in the same way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from sparsehyper._util.random import seeded, spawn_seeds
from sparsehyper.generators import Chunked
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import SharedTasks, TaskSet
from sparsehyper.lab.runs.conditioners import is_by_task
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.runs.setup import build_model, make_batches, target_numel
from sparsehyper.lab.studies.cells import Cell, Workspace
from sparsehyper.training import NonFiniteError, TrainConfig, TrainResult, evaluate, train

# Targets of the studies on colour images.
CNN = "cnn:16-32-64,norm=batch,pool=stride"
RESNETS = {
    "resnet32": "resnet:depth=32,norm=none",
    "resnet18": "resnet:depth=18,width=64,stages=4,norm=none",
}
_TIMED_MODELS = 9  # their median time counts
_HIDDEN_WIDTHS = (128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4)


def training(steps: int, seed: int, **settings: Any) -> TrainConfig:
    """The training that studies have in common: Adam at 2e-3 with warm-up, on the CPU, evaluated
    at the end. Other ``settings`` replace these.
    """
    common = {"lr": 2e-3, "warmup": min(100, steps // 10), "eval_every": steps, "device": "cpu"}
    return TrainConfig(steps=steps, seed=seed, **{**common, **settings})


def drawn(tasks: str, seed: int) -> str:
    """The tasks of a seed.

    Args:
        tasks: as `DataConfig` takes them, with ``{seed}`` for the seed and ``{0}`` to ``{9}`` for
            ten classes in an order that is drawn from it.
        seed: at least 0.

    >>> drawn("permuted:10,seed={seed}", 3), drawn("split:{0}-{1}", 3)
    ('permuted:10,seed=3', 'split:...-...')
    """
    order = torch.randperm(10, generator=seeded(spawn_seeds(seed, 2)[1])).tolist()
    return tasks.format(*order, seed=seed)


def chunked_within(budget: float, numel: int, latent_dim: int) -> str | None:
    """The chunked generator with the widest hidden layers that fits 0.8 of a budget.

    Args:
        budget: trainable parameters ÷ N.
        numel: N.
        latent_dim: length of an embedding.

    Returns:
        Its description, or None where even the narrowest does not fit.

    >>> chunked_within(4.0, 90_000, 64), chunked_within(0.25, 90_000, 64)
    ('chunked:hidden=128', 'chunked:hidden=8')
    """
    for width in _HIDDEN_WIDTHS:
        with suppress(ValueError):
            Chunked(hidden=width).with_budget(max(1, int(0.8 * budget * numel)), latent_dim, numel)
            return f"chunked:hidden={width}"
    return None


def run_trainings(
    experiments: Mapping[str, Experiment], workspace: Workspace
) -> dict[str, dict[str, Any]]:
    """Train what has not been trained yet.

    Args:
        experiments: complete experiments, each with its seed, by name of the cell.
        workspace: the study's workspace.

    Returns:
        For each, by name, what `measured` returns and its ``seconds``.
    """
    cells = [
        Cell(
            name,
            {
                "fingerprint": workspace.files[experiment.data].fingerprint,
                "experiment": experiment.to_dict(),
            },
        )
        for name, experiment in experiments.items()
    ]
    return workspace.run(cells, _cell)


def trained(
    experiment: Experiment, tasks: TaskSet, model: nn.Module | None = None
) -> tuple[nn.Module, TrainResult]:
    """Train a model as an experiment says, without using test images.

    Args:
        experiment: experiment to train.
        tasks: tasks to train on.
        model: an untrained model; None builds the experiment's.

    Raises:
        NonFiniteError: training diverged.
    """
    model = build_model(experiment, tasks) if model is None else model
    result = train(
        model,
        make_batches(experiment, tasks),
        tasks.val,
        experiment.training,
        names=tasks.names,
        n_classes=tasks.n_classes,
        examples=tasks.train,
        variance=tasks.variance,
        quiet=True,
    )
    return model, result


def measured(
    experiment: Experiment, tasks: TaskSet, model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a model and measure it.

    Args:
        experiment: experiment to train.
        tasks: tasks to train on.
        model: an untrained model; None builds the experiment's.

    Returns:
        The model, and a JSON-ready dict: ``validation`` and ``accuracy``, the mean accuracies over
        tasks on validation and on test images; ``accuracies``, on the test images of each task;
        ``diverged``, in which case the accuracies are those of guessing; ``parameters``, trainable
        ÷ N; ``generator``, with the settings that meet the budget, None for a baseline;
        ``step_ms``; ``model_ms``, for making one model, None where a task has no single one; and
        ``peak_memory_mb``, of the whole process on the CPU, of the allocator on an accelerator, 0
        where training diverged.
    """
    model = build_model(experiment, tasks) if model is None else model
    began, diverged = time.perf_counter(), False
    try:
        _, result = trained(experiment, tasks, model)
        validation, step_ms, peak = result.best.accuracy, result.step_ms, result.peak_memory / 1e6
        found = evaluate(model, tasks.test, names=tasks.names, n_classes=tasks.n_classes)
        accuracies = dict(zip(found.tasks, found.accuracies, strict=True))
    except NonFiniteError as error:
        diverged = True
        validation, step_ms, peak = 0.0, 1e3 * (time.perf_counter() - began) / error.step, 0.0
        accuracies = {n: 1 / count for n, count in zip(tasks.names, tasks.n_classes, strict=True)}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model, {
        "validation": validation,
        "accuracy": statistics.fmean(accuracies.values()),
        "accuracies": accuracies,
        "diverged": diverged,
        "parameters": trainable / target_numel(model),
        "generator": model.settings["generator"] if isinstance(model, HyperNetwork) else None,
        "step_ms": step_ms,
        "model_ms": _model_ms(model),
        "peak_memory_mb": peak,
    }


def _model_ms(model: nn.Module) -> float | None:
    if not is_by_task(model):
        return None
    times = []
    for _ in range(_TIMED_MODELS):
        started = time.perf_counter()
        model.materialize(0)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def _cell(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    experiment = Experiment.from_dict(settings["experiment"])
    return measured(experiment, files[experiment.data].load())[1]
