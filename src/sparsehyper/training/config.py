"""The settings of training, apart from the model and the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sparsehyper._util.checks import (
    WIDEST,
    check_choice,
    check_integer,
    check_number,
    check_settings,
)

OPTIMIZERS = ("adam", "adamw", "radam", "sgd", "adafactor")
SCHEDULES = ("constant", "cosine", "plateau")
PRECISIONS = ("fp32", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `train`, checked when made.

    The batch size is a setting of the batch source.

    Args:
        steps: total number of optimiser updates, at least 1.
        optimizer: ``"adam"``, ``"adamw"``, ``"radam"``, ``"sgd"`` (momentum 0.9) or
            ``"adafactor"``, whose state is much smaller than Adam's and whose `lr` is relative to
            the size of the weights.
        lr: the highest learning rate, above 0.
        weight_decay: at least 0; decoupled for ``"adamw"`` and ``"adafactor"``, L2 for the
            others.
        schedule: after the warm-up, ``"constant"``, ``"cosine"`` (to 0 at `steps`) or
            ``"plateau"`` (halved whenever validation accuracy stops improving).
        plateau_patience: evaluations without a higher accuracy before ``"plateau"`` halves the
            rate.
        warmup: updates over which the learning rate rises linearly to `lr`, at most `steps`.
        clip: largest norm of the whole gradient, above 0; ``None`` for no limit.
        accumulate: number of batches per update.
        eval_every: updates between evaluations. Each evaluation writes a checkpoint; the last
            update is always evaluated.
        eval_batch_size: number of samples per batch in evaluation, whatever the batches that
            validation data come in.
        patience: evaluations without a higher accuracy before training stops; ``None`` for no early
            stopping.
        precision: ``"fp32"``, or ``"bf16"`` for autocast with float32 weights.
        compile: run the model through `torch.compile`.
        cuda_graphs: record the forward and backward pass of a step as a CUDA graph, one for each
            combination of the tasks' numbers of samples, and replay it. For a hypernetwork on one
            GPU. Its target must not wait for the GPU (no ``.item()``), and its Python code runs
            only while a graph is recorded. Not with `compile` or `accumulate`.
        shard: with several processes, spread the generator's weights, gradients and optimiser state
            over them (FSDP2), for a generator that one device cannot train. Not with `compile`,
            `cuda_graphs` or ``"adafactor"``. With one process it changes nothing.
        device: ``"auto"`` for the accelerator if there is one, or a device such as ``"cpu"``.
        seed: seed of the model's random numbers in training (dropout, noise).
        log_every: updates between lines of metrics.
        log_with: a tracker that gets metrics and configuration too: ``"tensorboard"``, whose event
            files go into the run directory, ``"wandb"``, ``"mlflow"`` or ``"trackio"``.

    Raises:
        TypeError, ValueError: a setting has the wrong type or is out of range.

    >>> config = TrainConfig(steps=300, schedule="constant")
    >>> config.optimizer, config.lr
    ('adam', 0.002)
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    steps: int
    optimizer: str = "adam"
    lr: float = 2e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    plateau_patience: int = 5
    warmup: int = 0
    clip: float | None = 1.0
    accumulate: int = 1
    eval_every: int = 500
    eval_batch_size: int = 500
    patience: int | None = None
    precision: str = "fp32"
    compile: bool = False
    cuda_graphs: bool = False
    shard: bool = False
    device: str = "auto"
    seed: int = 0
    log_every: int = 50
    log_with: str | None = None

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in (
            "steps",
            "plateau_patience",
            "eval_every",
            "eval_batch_size",
            "log_every",
        ):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("accumulate", self.accumulate, minimum=1, maximum=WIDEST)
        check_integer("warmup", self.warmup, minimum=0)
        check_integer("seed", self.seed, minimum=0)
        check_number("lr", self.lr, above=0)
        check_number("weight_decay", self.weight_decay, minimum=0)
        if self.clip is not None:
            check_number("clip", self.clip, above=0)
        if self.patience is not None:
            check_integer("patience", self.patience, minimum=1)
        if self.log_with is not None:
            check_choice("log_with", self.log_with, TRACKERS)
        if self.warmup > self.steps:
            raise ValueError(
                f"`warmup` must be at most `steps`, got {self.warmup} for {self.steps} steps"
            )
        if self.cuda_graphs and (self.compile or self.accumulate > 1):
            other = "`compile`" if self.compile else f"`accumulate` {self.accumulate}"
            raise ValueError(f"`cuda_graphs` cannot be combined with {other}; give one of the two")
        unsharded = {
            "`compile`": self.compile,
            "`cuda_graphs`": self.cuda_graphs,
            "`optimizer` 'adafactor'": self.optimizer == "adafactor",  # its state is by rows
        }
        for other in (name for name, chosen in unsharded.items() if self.shard and chosen):
            raise ValueError(f"`shard` cannot be combined with {other}; give one of the two")
        if not isinstance(self.device, str):
            raise TypeError(f"`device` must be a string such as 'cpu', got {self.device!r}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of every setting."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; settings left out take their defaults.

        Raises:
            ValueError: a setting is unknown.
            TypeError, ValueError: as the constructor; also when ``steps`` is missing.
        """
        check_settings("training", settings, [field.name for field in dataclasses.fields(cls)])
        return cls(**settings)
