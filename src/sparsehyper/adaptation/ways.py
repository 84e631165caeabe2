"""Ways to adapt to a new task: each makes an ordinary model from a few examples.

A way is a function of the `Start`, the numbers of some of its samples, a seed and a deadline (of
``time.perf_counter()``) that returns a module with outputs ``[n, outputs]``. Ways differ in how
much of what the known tasks taught may change: the embedding alone, the last layer, everything, and
nothing kept at all.

The starting points are the models of the nearest known tasks, and the *average model*, whose
parameters are the mean over the models of all known tasks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sparsehyper._util.inputs import Inputs
from sparsehyper._util.last_layer import features_of, last_layer, linear_layer
from sparsehyper._util.modes import evaluation_mode, frozen
from sparsehyper._util.random import seeded
from sparsehyper.adaptation.fitter import Fitter, KnownOn
from sparsehyper.adaptation.lbfgs import minimize
from sparsehyper.adaptation.mixture import Mixture
from sparsehyper.adaptation.samples import TaskSamples, Unsuitable, check_loss
from sparsehyper.adaptation.tune import (
    batch_norms,
    descend,
    renew_statistics,
)
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.adapters import merge
from sparsehyper.target.initialisation import NORMS
from sparsehyper.target.norm_statistics import batch_statistics

_FOR_KNOWN = 0.1  # share of the time in which known tasks are compared
_STARTS, _STEPS = 6, 8  # embeddings, and evaluations of the loss for each
_MOST_SAMPLES = 1024  # to fit an embedding to
_PASSES = 3  # time of a step, in forward passes
_PENALTY = 10.0  # on the weights of a linear layer, for features of unit variance
_FEWEST_LINEAR_STEPS, _LINEAR_STEPS = 25, 50  # the fewest however short the time is
_FEWEST_FEATURES, _MOST_FEATURES = 2000, 20_000  # samples to solve a linear layer from
_BATCH = 64
_EPOCHS, _FEWEST_UPDATES = 30, 150
_LR, _LR_OF_NORMS = 1e-3, 3e-3
_STRONGEST_PULL = 0.1
_FEWEST_FOR_STATISTICS, _MOST_FOR_STATISTICS = 32, 2048  # samples to estimate them from
_PIECE = 512


@dataclass(frozen=True)
class Start:
    """What ways start from.

    Args:
        hnet: the hypernetwork; it is not changed.
        known: numbers of the known tasks to start from.
        task: samples of the new task.
        seconds: time that there is for the task.
    """

    hnet: HyperNetwork
    known: tuple[int, ...]
    task: TaskSamples
    seconds: float = math.inf

    @property
    def outputs(self) -> int | None:
        """Number of outputs that the task needs, its classes; None for as many as there are."""
        return self.task.n_classes or None

    @property
    def embeddings(self) -> Tensor:
        """Embeddings of the known tasks ``[known, dim]``."""
        return self.hnet.known_embeddings(self.known)

    @property
    def keeps_classes(self) -> bool:
        """Whether generated models know classes of which they were given no example."""
        return self.hnet.head is None

    @cached_property
    def _average(self) -> list[Tensor]:
        with torch.no_grad():
            pieces = [self.hnet.raw_theta(z).sum(0) for z in self.embeddings.split(16)]
            return list(self.hnet.target.unpack(torch.stack(pieces).sum(0) / len(self.known)))

    @property
    def _statistics(self) -> list[Tensor]:
        """The mean batch-norm statistics of the known tasks."""
        return self.hnet.target.statistics.row(self.hnet.target.module, None, self.known)

    def mean_embedding_model(self) -> nn.Module:
        """The model of the mean embedding of the known tasks, without a head in closed form."""
        mean = self.hnet.normalise(self.embeddings).mean(0)
        with torch.no_grad():
            tensors = self.hnet.target.unpack(self.hnet.raw_theta(mean[None])[0])
        return merge(self.hnet.target.materialize(tensors, self._statistics)).eval()

    def average_model(self, rows: Tensor) -> nn.Module:
        """The average model, with as many outputs as the task needs."""
        model = merge(self.hnet.target.materialize(self._average, self._statistics)).eval()
        if (some := self.for_statistics(rows)) is not None:
            with batch_statistics(norms := batch_norms(model)):
                renew_statistics(model, norms, some)
        return self._widened(self.with_head(model, rows))

    def for_statistics(self, rows: Tensor) -> TaskSamples | None:
        """Some of the samples to estimate batch-norm statistics from; None if there are too few."""
        if len(rows) < _FEWEST_FOR_STATISTICS:
            return None
        # Drawn, as the samples are in an order of their classes.
        drawn = torch.randperm(len(rows), generator=seeded(0))[:_MOST_FOR_STATISTICS]
        return self.task.some(rows[drawn.to(rows.device)])

    @torch.no_grad()
    def with_head(self, model: nn.Module, rows: Tensor) -> nn.Module:
        """The model; if the hypernetwork has a head in closed form, with that of some samples."""
        if self.hnet.head is not None:
            features = torch.cat([some.call(model) for some in self.task.x[rows].split(_PIECE)])
            found = self.hnet.head.solve(features, self.task.y[rows], self.task.n_classes)
            model.set_submodule(self.hnet.head_layer, linear_layer(*found))
        return model

    def _widened(self, model: nn.Module) -> nn.Module:
        """The model; if it has too few outputs, its last layer is replaced by zeros."""
        x = self.task.x[:2]
        with torch.no_grad():
            found = x.call(model)
        if self.outputs is not None and found.shape[1] < self.outputs:
            _, last = _last_layer(model, x)
            weight = last.weight.new_zeros(self.outputs, last.in_features)
            _replace_last(model, x, weight, weight[:, 0])
        return model

    @cached_property
    def known_on(self) -> KnownOn:
        """How the known tasks' models do on the samples; they are run once for all ways."""
        with frozen(self.hnet):
            fitter = Fitter(self.hnet, [self.task], [self.task], 1, self.known)
            return fitter.known_on(self.task, _FOR_KNOWN * self.seconds)

    def nearest(self, rows: Tensor, count: int) -> list[int]:
        """Numbers of the known tasks whose models do best on some samples, best first."""
        try:
            self.check_outputs()
        except Unsuitable:
            return list(self.known[:: -(-len(self.known) // count)])
        best = self.known_on.losses(rows).argsort()[:count].tolist()
        return [self.known[self.known_on.places[i]] for i in best]

    def check_outputs(self) -> None:
        """Raise `Unsuitable` if the target has too few outputs."""
        if self.hnet.head is not None:
            return
        with torch.no_grad(), evaluation_mode(self.hnet):
            outputs = self.task.x[:2].call(self.hnet, task=0)
        if self.outputs is not None and outputs.shape[1] < self.outputs:
            raise Unsuitable(f"the target has {outputs.shape[1]} outputs only")


Way = Callable[[Start, Tensor, int, float], nn.Module]
# ruff: noqa: ARG001 - all ways have the same arguments


def embedding(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """A few steps on the embedding alone, from several near known tasks; outputs are averaged."""
    return Mixture(fit_near(start, rows, seed, _STARTS, deadline)[2], n_classes=start.outputs)


def embedding_all(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """The model of the nearest known task's embedding after a few steps, then all of it tuned."""
    (model,) = fit_near(start, rows, seed, 1, deadline)[2]
    return _tuned(start, model, rows, seed, deadline, pulled=True)


def norms(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """The average model, its normalisation layers tuned."""
    model = start.average_model(rows)
    layers = [module for module in model.modules() if isinstance(module, NORMS)]
    return _tuned(start, model, rows, seed, deadline, layers, _LR_OF_NORMS)


def all_(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """The average model, all of it tuned."""
    return _tuned(start, start.average_model(rows), rows, seed, deadline, pulled=True)


def head(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """A fresh last layer on the features of the models of the nearest known tasks together.

    With a head in closed form, that head on the features of the mean embedding, as in training.
    """
    if start.hnet.head is not None:
        return start.with_head(start.mean_embedding_model(), rows)
    models = [start.hnet.materialize(task).eval() for task in start.nearest(rows, _STARTS)]
    some, began = rows[:_BATCH], time.perf_counter()
    _features(models[0], start.task.x[some])
    now = time.perf_counter()
    affordable = int((deadline - now) / (now - began) * len(some))  # models times samples
    models = models[: max(1, affordable // min(len(rows), _FEWEST_FEATURES))]
    rows = rows[: min(max(affordable // len(models), _FEWEST_FEATURES), _MOST_FEATURES)]
    x, y = start.task.x[rows], start.task.y[rows]
    features = [_features(model, x) for model in models]
    outputs = start.outputs or x[:2].call(models[0]).shape[1]
    weight, bias = _solved(start, torch.cat(features, 1), y, outputs, deadline)
    widths = [own.shape[1] for own in features]
    for model, part in zip(models, weight.split(widths, 1), strict=True):
        _replace_last(model, x, len(models) * part, bias)  # the mixture takes the mean
    return Mixture(models)


def linear(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """A linear model of the inputs."""
    task = start.task.some(rows[:_MOST_FEATURES])
    (x, *others), outputs = task.x.tensors, start.outputs
    if others or task.x.kwargs or not x.is_floating_point() or x.ndim < 2:
        raise Unsuitable("its inputs are not one tensor [n, …] of floating-point numbers")
    if outputs is None:
        found = task.x[:2].call(start.average_model(rows))
        if found.ndim != 2:
            raise Unsuitable("its outputs are not one vector for each sample")
        outputs = found.shape[1]
    weight, bias = _solved(start, x.flatten(1), task.y, outputs, deadline)
    return nn.Sequential(nn.Flatten(), linear_layer(weight, bias))


def scratch(start: Start, rows: Tensor, seed: int, deadline: float) -> nn.Module:
    """The target from scratch; what is frozen in it stays as it is."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = start.average_model(rows)
        whole = all(p.requires_grad for p in model.parameters())
        for module in model.modules():
            trained = [p.requires_grad for p in module.parameters()]
            if not (any(trained) or (whole and not trained)):
                continue
            kept = [(p, p.detach().clone()) for p in module.parameters() if not p.requires_grad]
            own = getattr(module, "_reset_parameters", None)  # attention
            if callable(reset := getattr(module, "reset_parameters", own)):
                reset()
                with torch.no_grad():
                    for parameter, value in kept:
                        parameter.copy_(value)
    return _tuned(start, model, rows, seed, deadline)


WAYS: dict[str, Way] = {
    "linear": linear,
    "head": head,
    "embedding": embedding,
    "norms": norms,
    "embedding, all": embedding_all,
    "all": all_,
    "scratch": scratch,
}


def in_words(way: str) -> str:
    """The name of a way as a list in words can have it, where a comma would part it in two.

    >>> in_words("embedding, all")
    'embedding + all'
    """
    return way.replace(", ", " + ")


def ways_for(hnet: HyperNetwork) -> tuple[str, ...]:
    """Names of the ways that there are for a hypernetwork's target."""
    normed = any(isinstance(module, NORMS) for module in hnet.target.module.modules())
    return tuple(name for name in WAYS if normed or name != "norms")


# Ways that change all of a model: they gain most from many samples and much time.
TUNED_WHOLE = ("embedding, all", "all", "scratch")
# Ways that change generated models too little to forget classes of which there is no example.
KEEP_CLASSES = {"embedding"}


def fit_near(
    start: Start, rows: Tensor, seed: int, count: int, deadline: float
) -> tuple[Tensor, list[Tensor], list[nn.Module]]:
    """Embeddings fitted by a few steps from the nearest known tasks, best first.

    Args:
        start: what to start from.
        rows: numbers of the samples to fit to.
        seed: seed.
        count: number of embeddings, at most that of known tasks; fewer where time is short.
        deadline: value of ``time.perf_counter()`` to end at.

    Returns:
        Embeddings ``[count, dim]``; their batch-norm statistics ``[count, *shape]``; their models.
        Those whose loss is not finite are left out.

    Raises:
        Unsuitable: all losses are not finite, or the target has too few outputs.
    """
    hnet, task = start.hnet, start.task.some(rows[:_MOST_SAMPLES])
    start.check_outputs()
    near = start.nearest(rows, count)
    one = _STEPS * _PASSES * start.known_on.seconds * len(task.y)
    left = deadline - time.perf_counter()
    near = near[: max(1, int(min(count, left / one)))]
    target, models = hnet.target, []
    with frozen(hnet):
        fitter = Fitter(hnet, [task], [task], len(near), near)
        first = hnet.normalise(hnet.known_embeddings(near))[None]
        z, tables = fitter.fit(first, "free", _STEPS, _MOST_SAMPLES, deadline)
        losses, tables = fitter.assess(z, tables)
        order = losses[0].argsort()  # NaN is last
        check_loss(losses[0, order[0]], task)
        order = order[losses[0, order].isfinite()]
    z, statistics = z[0, order], [table[0, order] for table in tables]
    for i in range(len(z)):
        with torch.no_grad():
            tensors = target.unpack(hnet.raw_theta(z[i][None])[0])
        model = target.materialize(tensors, [table[i] for table in statistics])
        models.append(start.with_head(merge(model).eval(), rows))
    return z, statistics, models


def _replace_last(model: nn.Module, x: Inputs, weight: Tensor, bias: Tensor) -> None:
    """Replace the last layer of a model, in place; ``x`` are inputs to find it with."""
    name, _ = _last_layer(model, x)
    if not name:
        raise Unsuitable("the target is a linear layer itself")
    model.set_submodule(name, linear_layer(weight, bias))


def _last_layer(model: nn.Module, x: Inputs) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose output is the model's."""
    found = last_layer(model, *x[:2].args, **x[:2].kwargs)
    if found is None:
        raise Unsuitable("the target does not end in a linear layer")
    return found


def _features(model: nn.Module, x: Inputs) -> Tensor:
    """The inputs ``[n, F]`` of a model's last layer."""
    features = features_of(model, _last_layer(model, x)[1], x)
    if features.ndim != 2:
        raise Unsuitable("the target's last layer does not get one vector for each sample")
    return features


def _tuned(
    start: Start,
    model: nn.Module,
    rows: Tensor,
    seed: int,
    deadline: float,
    layers: Sequence[nn.Module] | None = None,
    lr: float = _LR,
    *,
    pulled: bool = False,
) -> nn.Module:
    """The model, all of it or some layers trained, and pulled towards what it was."""
    updates = max(_FEWEST_UPDATES, _EPOCHS * len(rows) // _BATCH)
    chosen = nn.ModuleList([model] if layers is None else layers)
    parameters = [p for p in chosen.parameters() if p.requires_grad]
    if not parameters:
        raise Unsuitable("the target has no such layers")
    descend(
        *(model, parameters, start.task.some(rows), updates, lr, _BATCH, seed),
        start.for_statistics(rows),
        deadline=deadline,
        pull=min(_STRONGEST_PULL, 1 / len(rows)) if pulled else 0.0,
    )
    return model.eval()


def _solved(
    start: Start, features: Tensor, y: Tensor, outputs: int, deadline: float
) -> tuple[Tensor, Tensor]:
    """Weight ``[outputs, F]`` and bias of the linear layer of least loss under a penalty."""
    count, width = features.shape
    given, features = features, features.to(torch.promote_types(features.dtype, torch.float32))
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-12)
    centred = (features - mean) / scale

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        flat = points.detach().requires_grad_()
        weight, bias = flat[0, outputs:].view(outputs, width), flat[0, :outputs]
        mean_loss = start.task.losses(centred @ weight.T + bias, y).mean()
        value = mean_loss + _PENALTY / count * weight.square().sum() / 2
        (gradient,) = torch.autograd.grad(value, flat)
        return value.detach()[None], gradient

    first = features.new_zeros(1, outputs * (width + 1))
    points, values = minimize(evaluate, first, _LINEAR_STEPS, deadline, _FEWEST_LINEAR_STEPS)
    check_loss(values[0], start.task)
    found = points[0]
    weight = found[outputs:].view(outputs, width) / scale
    return weight.to(given), (found[:outputs] - weight @ mean).to(given)
