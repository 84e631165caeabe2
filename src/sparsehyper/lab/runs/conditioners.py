"""What the models of a run depend on, by the name of the conditioner.

==================  =============================================================================
``task_embedding``  the task, by a trained vector for each
``support_set``     examples of the task, pooled by class; or ``support_set:pool=examples``
``input_encoder``   the input alone, so that every sample has a model of its own
``input_and_task``  both, mixed bilinearly, and again a model for each sample
==================  =============================================================================

Encoders have the form of the target, with other outputs, without its mask, and with a norm over
each sample in place of a batch norm, so that no sample changes what another becomes.

A support set is drawn from the training images: 1, 5 or 20 of each class at random, so that new
tasks may have few; at most half of the smallest class, where that has more than one. A batch may
have some of the same images. A run keeps the embeddings of known tasks, not
the examples.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from sparsehyper.conditioning import (
    Conditioner,
    InputAndTask,
    InputEncoder,
    SupportSet,
    TaskConditioner,
    TaskEmbedding,
    TaskExamples,
)
from sparsehyper.conditioning.examples import Draw
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, shots_of
from sparsehyper.lab.runs.config import BY_EXAMPLES, Experiment
from sparsehyper.lab.runs.targets import build_target

_SHOTS = (1, 5, 20)  # images of each class in a support set, to draw from
_FEATURES = 128  # length of the encoder's output for one image


def build_conditioner(
    experiment: Experiment,
    names: tuple[str, ...],
    image_shape: tuple[int, ...],
    n_classes: int,
    tasks: TaskSet | None,
    seed: int,
) -> Conditioner:
    """The conditioner of an experiment, with initial values.

    Encoders are drawn from PyTorch's global generator.

    Args:
        experiment: the experiment.
        names, image_shape: of its tasks.
        n_classes: classes that a support set may have.
        tasks: the tasks to draw support sets from; None for a model that is not trained.
        seed: seed of everything but the encoders.
    """
    kind, dim = experiment.conditioner, experiment.latent_dim

    def encoder(outputs: int) -> nn.Module:
        plain = build_target(experiment.target.partition("/")[0], image_shape, outputs)
        return _without_batch_norms(plain)

    if kind in BY_EXAMPLES:
        pool = "examples" if kind.endswith("pool=examples") else "classes"
        support = SupportSet(
            *(encoder(_FEATURES), _FEATURES, max(2, n_classes), dim), pool=pool, seed=seed
        )
        return TaskExamples(support, names, None if tasks is None else _draws(tasks))
    if kind == InputEncoder.kind:
        return InputEncoder(encoder(dim), dim)
    embeddings = TaskEmbedding(names, dim, similarity=experiment.similarity, seed=seed)
    if kind == InputAndTask.kind:
        return InputAndTask(InputEncoder(encoder(dim), dim), embeddings, seed=seed)
    return embeddings


def is_by_task(model: nn.Module) -> TypeGuard[HyperNetwork]:
    """Whether a model is a hypernetwork with one embedding, and so one model, for each task."""
    return isinstance(model, HyperNetwork) and isinstance(model.conditioner, TaskConditioner)


def _draws(tasks: TaskSet) -> Draw:
    """Draws support sets from the training images of some tasks."""
    split, rows = tasks.train, {name: row for row, name in enumerate(tasks.names)}

    def draw(name: str) -> tuple[Tensor, Tensor]:
        row = rows[name]
        number, seed = torch.randint(1 << 31, (2,)).tolist()
        counts = split.labels(row).bincount()
        most = int(counts[counts > 0].min()) // 2
        shots = min(_SHOTS[number % len(_SHOTS)], max(1, most))
        return shots_of(split, row, shots, seed)

    return draw


def _without_batch_norms(module: nn.Module) -> nn.Module:
    """A module with a group norm of one group in the place of every batch norm."""
    for name, part in module.named_children():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.GroupNorm(1, part.num_features))
        else:
            _without_batch_norms(part)
    return module
