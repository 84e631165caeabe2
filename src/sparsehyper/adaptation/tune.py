"""Further training of one task's ordinary model."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsehyper._util.checks import check_choice, check_integer, check_number
from sparsehyper._util.inputs import Inputs
from sparsehyper._util.last_layer import decides, linear_layers_used
from sparsehyper._util.modes import evaluation_mode
from sparsehyper.adaptation.samples import (
    Loss,
    SampleBatches,
    Samples,
    TaskSamples,
    Unsuitable,
    check_loss,
    pieces,
    with_gradients,
)
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.initialisation import NORMS
from sparsehyper.target.norm_statistics import average, batch_statistics

TUNINGS = ("norm", "last", "all")
TUNED_NORM_STATS = ("kept", "renewed")
_PIECE = 512  # samples at a time when estimating statistics


@with_gradients()
def fine_tune(
    model: nn.Module,
    samples: Samples,
    *,
    tune: str = "all",
    norm_stats: str = "kept",
    n_classes: int | None = None,
    loss: Loss | None = None,
    steps: int = 100,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Train an ordinary model further, in place, for example after its embedding was fitted.

    The model is in evaluation mode meanwhile, so without dropout.

    Args:
        model: an ordinary model, as `HyperNetwork.materialize` returns.
        samples: samples of the task.
        tune: parameters to train: ``"norm"``, the normalisation layers; ``"last"``, the linear
            layer that is used last, from whose output alone the model's must follow; or ``"all"``.
        norm_stats: ``"kept"`` keeps the batch-norm statistics; ``"renewed"`` uses those of each
            batch while training, and then estimates them from all samples.
        n_classes, loss, batch_size, seed: as for `fit_embeddings`.
        steps: number of updates by Adam; the learning rate falls to 0 along half a cosine.
        lr: initial learning rate.

    Raises:
        ValueError: a setting is out of range, samples do not fit, the model has no parameters that
            ``tune`` names, its output does not follow from its last linear layer, or a loss is not
            finite.
        TypeError: ``model`` is a hypernetwork.
        RuntimeError: called within ``torch.inference_mode()``.
    """
    if isinstance(model, HyperNetwork):
        raise TypeError(
            "`model` must be the ordinary model of one task, got a HyperNetwork; give "
            "`hnet.materialize(name)`"
        )
    check_choice("norm_stats", norm_stats, TUNED_NORM_STATS)
    check_integer("steps", steps, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("seed", seed, minimum=0)
    check_number("lr", lr, above=0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    task = TaskSamples.of("samples", samples, device, n_classes=n_classes, loss=loss)
    parameters = tuned_parameters(model, tune, task.x)
    with evaluation_mode(model), torch.no_grad():
        outputs, remedy = task.x[:2].call(model), "give its last layer more outputs first"
    task.check_outputs(outputs, task.y[:2], "model", remedy)
    renewed_from = task if norm_stats == "renewed" else None
    try:
        descend(model, parameters, task, steps, lr, batch_size, seed, renewed_from)
    except Unsuitable as error:
        raise ValueError(f"{error}, or lower `lr`") from None


def descend(
    model: nn.Module,
    parameters: list[nn.Parameter],
    task: TaskSamples,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    renewed_from: TaskSamples | None,
    *,
    deadline: float = math.inf,
    pull: float = 0.0,
) -> None:
    """The updates of `fine_tune`, at least one; the learning rate reaches 0 as time runs out.

    Source of the pull: L2-SP, X. Li et al., "Explicit inductive bias for transfer learning with
    convolutional networks" (ICML 2018).

    Args:
        model: the model to train in place.
        parameters: its parameters to train.
        task: samples.
        steps, lr, batch_size, seed: as for `fine_tune`.
        renewed_from: samples to estimate batch-norm statistics from; None keeps them.
        deadline: value of ``time.perf_counter()`` to end at.
        pull: weight in the loss of half the squared distance to the initial parameters.

    Raises:
        Unsuitable: a loss is not finite.
    """
    began = time.perf_counter()
    initial = [parameter.detach().clone() for parameter in parameters] if pull else []
    try:
        norms = batch_norms(model) if renewed_from is not None else []
        with evaluation_mode(model), batch_statistics(norms):
            optimizer = torch.optim.Adam(parameters, lr)
            batches = SampleBatches(task, batch_size, seed)
            for step in range(steps):
                spent = (time.perf_counter() - began) / max(deadline - began, 1e-9)
                progress = min(1.0, max(step / steps, spent))
                if progress == 1 and step:  # the first loss shows whether there is one
                    break
                optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * progress))
                x, y = batches.next()
                mean = task.losses(x.call(model), y).mean()
                check_loss(mean.detach(), task, f" at step {step + 1}")
                gradients = torch.autograd.grad(mean, parameters)
                if pull:
                    away = torch._foreach_sub([p.detach() for p in parameters], initial)
                    gradients = torch._foreach_add(gradients, away, alpha=pull)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            if renewed_from is not None:
                renew_statistics(model, norms, renewed_from)
    finally:
        for parameter in parameters:
            parameter.grad = None


def tuned_parameters(model: nn.Module, tune: str, x: Any) -> list[nn.Parameter]:
    """The parameters that ``tune`` names; raises `ValueError` as `fine_tune` does.

    Args:
        model: the model.
        tune: one of `TUNINGS`.
        x: inputs of samples to run the model on, to find the layer that is used last.
    """
    check_choice("tune", tune, TUNINGS)
    if tune == "all":
        chosen: list[nn.Module] = [model]
    elif tune == "norm":
        chosen = [module for module in model.modules() if isinstance(module, NORMS)]
    else:
        chosen = _last_layer(model, x)
    parameters = {p: None for module in chosen for p in module.parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(f"the model has no parameters that `tune` {tune!r} names")
    return list(parameters)


def _last_layer(model: nn.Module, x: Any) -> list[nn.Module]:
    """The linear layer that is used last, which may not be declared last, in a list; or none.

    Raises:
        ValueError: the model's output does not follow from that layer's alone.
    """
    some = Inputs.of(x)[:2]  # batch norms without running statistics need more than one sample
    random = torch.random.fork_rng([some.device] if some.device.type == "cuda" else [])
    with evaluation_mode(model), random:
        used = linear_layers_used(model, *some.args, **some.kwargs)[0]
        if not used:
            return []
        last = used[-1][0]
        if not decides(last, model, some):
            name = next(name for name, layer in model.named_modules() if layer is last)
            raise ValueError(
                f"`tune` 'last' needs a model whose output follows from its last linear layer; "
                f"that of {name!r}, which is used last, does not decide it alone; give 'all'"
            )
    return [last]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms with running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def renew_statistics(model: nn.Module, norms: list[_BatchNorm], task: TaskSamples) -> None:
    """Estimate statistics from all samples, as the mean over pieces."""
    for norm in norms:
        norm.reset_running_stats()
    for i, (x, _) in enumerate(pieces(task, _PIECE) if norms else ()):
        average(norms, i)
        x.call(model)
