"""The optimiser, and the learning rate as a pure function of the step and the evaluations so far.

So a checkpoint needs no state of a schedule, only the optimiser's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sparsehyper.training.config import TrainConfig


def build_optimizer(
    config: TrainConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Build the optimiser that `config` names, fused where PyTorch has a fused one.

    A fused one makes one pass over weights, gradients and moments instead of about ten.

    >>> build_optimizer(TrainConfig(steps=1), nn.Linear(2, 1).parameters()).defaults["fused"]
    True
    """
    parameters = list(parameters)
    lr, weight_decay = config.lr, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=weight_decay, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
    if config.optimizer == "radam":
        return torch.optim.RAdam(parameters, lr, weight_decay=weight_decay)
    if config.optimizer == "adafactor":
        # foreach is not the default on the CPU, but needs fewer temporary tensors.
        return torch.optim.Adafactor(parameters, lr, weight_decay=weight_decay, foreach=True)
    assert config.optimizer == "sgd"
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay, fused=True)


def moment_shapes(
    optimizer: torch.optim.Optimizer, parameter: Tensor
) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and dtype of each tensor that an optimiser keeps for a parameter.

    >>> weight = nn.Parameter(torch.zeros(3, 2))
    >>> sorted(moment_shapes(build_optimizer(TrainConfig(steps=1), [weight]), weight))
    ['exp_avg', 'exp_avg_sq', 'step']

    Raises:
        TypeError: the optimiser is not one that `build_optimizer` makes.
    """
    shape, kept = list(parameter.shape), {}
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": (shape, parameter.dtype)}
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam)):
        kept = {"exp_avg": shape, "exp_avg_sq": shape}
    elif isinstance(optimizer, torch.optim.Adafactor) and parameter.ndim > 1:
        kept = {"row_var": [*shape[:-1], 1], "col_var": [*shape[:-2], 1, shape[-1]]}
    elif isinstance(optimizer, torch.optim.Adafactor):
        kept = {"variance": shape}
    else:
        raise TypeError(
            "`optimizer` must be Adam, AdamW, RAdam, SGD or Adafactor, got "
            f"{type(optimizer).__name__}"
        )
    moments = {name: (size, parameter.dtype) for name, size in kept.items()}
    return {"step": ([], torch.float32), **moments}


def learning_rate(config: TrainConfig, step: int, accuracies: Sequence[float] = ()) -> float:
    """The learning rate of an update.

    Args:
        config: settings with the schedule.
        step: number of updates made before this one.
        accuracies: mean validation accuracy of each evaluation so far; used by the plateau
            schedule only.

    >>> config = TrainConfig(steps=10, lr=0.8, warmup=2, schedule="plateau", plateau_patience=1)
    >>> [learning_rate(config, step) for step in (0, 1, 2)]
    [0.4, 0.8, 0.8]
    >>> learning_rate(config, 5, [0.6, 0.7, 0.7, 0.7])
    0.2
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "cosine":
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "plateau":
        return config.lr * 0.5 ** _halvings(accuracies, config.plateau_patience)
    return config.lr


def evaluations_since_best(accuracies: Sequence[float]) -> int:
    """Number of evaluations after the first one that reached the highest accuracy.

    >>> evaluations_since_best([0.6, 0.7, 0.7, 0.65])
    2
    """
    if not accuracies:
        return 0
    return len(accuracies) - 1 - accuracies.index(max(accuracies))


def _halvings(accuracies: Sequence[float], patience: int) -> int:
    halvings = waited = 0
    best = -math.inf
    for accuracy in accuracies:
        waited = 0 if accuracy > best else waited + 1
        best = max(best, accuracy)
        if waited == patience:
            halvings, waited = halvings + 1, 0
    return halvings
