"""Ways to adapt to a new task: each makes an ordinary model from a few examples.

A way is a function of the `Start`, some samples, a seed and a deadline (of ``time.perf_counter()``)
that returns a module with outputs ``[n, outputs]``. Ways differ in how much of what the known tasks
taught may change: the embedding alone, the last layer, everything, and nothing kept at all.

The starting points are the models of the nearest known tasks, and the *average model*, whose
parameters are the mean over the models of all known tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sparsehyper._util.classifiers import evaluation_mode
from sparsehyper.adaptation.fit import Fitter, frozen
from sparsehyper.adaptation.lbfgs import minimize
from sparsehyper.adaptation.mixture import Mixture
from sparsehyper.adaptation.samples import Loss, TaskSamples, losses_of
from sparsehyper.adaptation.tune import (
    batch_norms,
    descend,
    linear_layers_used,
    renew_statistics,
)
from sparsehyper.heads import linear_layer
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.layout import owner_of
from sparsehyper.target.adapters import merge
from sparsehyper.target.norm_statistics import batch_statistics

_STARTS, _STEPS = 6, 8  # embeddings, and evaluations of the loss for each
_MOST_SAMPLES = 1024  # to fit an embedding to
_PENALTY = 10.0  # on the weights of a linear layer, for features of unit variance
_LINEAR_STEPS = 50
_MOST_FEATURES = 20_000  # samples to solve a linear layer from
_BATCH = 64
_EPOCHS, _FEWEST_UPDATES = 30, 150
_LR = 1e-3
_ENOUGH_FOR_STATISTICS = 32  # samples to estimate batch-norm statistics from
_PIECE = 512


class Unsuitable(ValueError):
    """A way does not apply to this target or these samples."""


@dataclass(frozen=True)
class Start:
    """What ways start from.

    Args:
        hnet: the hypernetwork; it is not changed.
        rows: numbers of the known tasks to start from.
        outputs: number of outputs that the task needs, its classes; None for as many as there are.
        loss: loss of each sample; None for cross entropy.
    """

    hnet: HyperNetwork
    rows: tuple[int, ...]
    outputs: int | None
    loss: Loss | None

    @property
    def known(self) -> Tensor:
        """Embeddings of the known tasks ``[known, dim]``."""
        return self.hnet.known_embeddings(self.rows)

    @property
    def keeps_classes(self) -> bool:
        """Whether generated models know classes of which they were given no example."""
        return self.hnet.head is None

    def task(self, x: Tensor, y: Tensor) -> TaskSamples:
        """Samples as adaptation takes them."""
        return TaskSamples("new", x, y, self.outputs or 0)

    @cached_property
    def _average(self) -> list[Tensor]:
        with torch.no_grad():
            pieces = [self.hnet.raw_theta(z).sum(0) for z in self.known.split(16)]
            return list(self.hnet.target.unpack(torch.stack(pieces).sum(0) / len(self.rows)))

    def average_model(self, x: Tensor, y: Tensor) -> nn.Module:
        """The average model, with as many outputs as the task needs."""
        model = merge(self.hnet.target.materialize(self._average, None)).eval()
        if len(x) >= _ENOUGH_FOR_STATISTICS:
            with batch_statistics(norms := batch_norms(model)):
                renew_statistics(model, norms, self.task(x, y))
        return self.widened(self.with_head(model, x, y), x)

    @torch.no_grad()
    def with_head(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """The model; if the hypernetwork has a head in closed form, with that of the samples."""
        if self.hnet.head is not None:
            features = torch.cat([model(some) for some in x.split(_PIECE)])
            owner, attribute = owner_of(model, self.hnet.head_layer)
            setattr(owner, attribute, linear_layer(*self.hnet.head.solve(features, y)))
        return model

    def widened(self, model: nn.Module, x: Tensor) -> nn.Module:
        """The model; if it has too few outputs, its last layer is replaced by zeros."""
        with torch.no_grad():
            found = model(x[:2])
        if self.outputs is not None and found.shape[1] < self.outputs:
            _, last = _last_layer(model, x)
            weight = last.weight.new_zeros(self.outputs, last.in_features)
            _replace_last(model, x, weight, weight[:, 0])
        return model

    def nearest(self, x: Tensor, y: Tensor, count: int) -> list[int]:
        """Numbers of the known tasks whose models do best on the samples, best first."""
        task = self.task(x, y)
        try:
            self.check_outputs(x)
        except Unsuitable:
            return list(self.rows[:: -(-len(self.rows) // count)])
        with frozen(self.hnet):
            losses = Fitter(self.hnet, [task], [task], 1, self.loss, self.rows).losses_of_known()
        return [self.rows[i] for i in losses[0].argsort()[:count].tolist()]

    def check_outputs(self, x: Tensor) -> None:
        """Raise `Unsuitable` if the target has too few outputs."""
        if self.hnet.head is not None:
            return
        with torch.no_grad(), evaluation_mode(self.hnet):
            outputs = self.hnet(x[:2], task=0)
        if self.outputs is not None and outputs.shape[1] < self.outputs:
            raise Unsuitable(f"the target has {outputs.shape[1]} outputs only")


Way = Callable[[Start, Tensor, Tensor, int, float], nn.Module]
# ruff: noqa: ARG001 - all ways have the same arguments


def embedding(start: Start, x: Tensor, y: Tensor, seed: int, deadline: float) -> nn.Module:
    """A few steps on the embedding alone, from several near known tasks; outputs are averaged."""
    return Mixture(fit_near(start, x, y, seed, _STARTS)[2], n_classes=start.outputs)


def embedding_all(start: Start, x: Tensor, y: Tensor, seed: int, deadline: float) -> nn.Module:
    """The model of the nearest known task's embedding after a few steps, then all of it tuned."""
    (model,) = fit_near(start, x, y, seed, 1)[2]
    return _tuned(start, model, x, y, seed, deadline)


def all_(start: Start, x: Tensor, y: Tensor, seed: int, deadline: float) -> nn.Module:
    """The average model, all of it tuned."""
    return _tuned(start, start.average_model(x, y), x, y, seed, deadline)


def head(start: Start, x: Tensor, y: Tensor, seed: int, deadline: float) -> nn.Module:
    """A fresh last layer on the features of the models of the nearest known tasks together.

    With a head in closed form, that head on the features of the mean embedding, as in training.
    """
    if start.hnet.head is not None:
        model = start.hnet.materialize(start.hnet.normalise(start.known).mean(0)).eval()
        return start.with_head(model, x, y)
    rows = start.nearest(x, y, _STARTS)
    models = [start.hnet.materialize(row).eval() for row in rows]
    some = x[:_MOST_FEATURES]
    features = [_features(model, some) for model in models]
    outputs = start.outputs or models[0](x[:2]).shape[1]
    weight, bias = _solved(start, torch.cat(features, 1), y[:_MOST_FEATURES], outputs)
    widths = [own.shape[1] for own in features]
    for model, part in zip(models, weight.split(widths, 1), strict=True):
        _replace_last(model, x, len(models) * part, bias)  # the mixture takes the mean
    return Mixture(models)


def linear(start: Start, x: Tensor, y: Tensor, seed: int, deadline: float) -> nn.Module:
    """A linear model of the inputs."""
    if not x.is_floating_point():
        raise Unsuitable("its inputs are not numbers")
    outputs = start.outputs or start.average_model(x, y)(x[:2]).shape[1]
    weight, bias = _solved(start, x[:_MOST_FEATURES].flatten(1), y[:_MOST_FEATURES], outputs)
    return nn.Sequential(nn.Flatten(), linear_layer(weight, bias))


def scratch(start: Start, x: Tensor, y: Tensor, seed: int, deadline: float) -> nn.Module:
    """The target from scratch."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = start.average_model(x, y)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return _tuned(start, model, x, y, seed, deadline)


WAYS: dict[str, Way] = {
    "linear": linear,
    "head": head,
    "embedding": embedding,
    "embedding, all": embedding_all,
    "all": all_,
    "scratch": scratch,
}

# Ways that change generated models too little to forget classes of which there is no example.
KEEP_CLASSES = {"embedding"}


def fit_near(
    start: Start, x: Tensor, y: Tensor, seed: int, count: int
) -> tuple[Tensor, list[Tensor], list[nn.Module]]:
    """Embeddings fitted by a few steps from the nearest known tasks, best first.

    Args:
        start: what to start from.
        x, y: samples.
        seed: seed.
        count: number of embeddings, at most that of known tasks.

    Returns:
        Embeddings ``[count, dim]``; their batch-norm statistics ``[count, *shape]``; their models.
    """
    hnet, task = start.hnet, start.task(x, y)
    start.check_outputs(x)
    count = min(count, len(start.rows))
    target, models = hnet.target, []
    with frozen(hnet):
        fitter = Fitter(hnet, [task], [task], count, start.loss, start.rows)
        z, tables = fitter.fit(fitter.starts("nearest", seed), "free", _STEPS, _MOST_SAMPLES)
        losses, tables = fitter.assess(z, tables)
        order = losses[0].argsort()
    z, statistics = z[0, order], [table[0, order] for table in tables]
    for i in range(count):
        with torch.no_grad():
            tensors = target.unpack(hnet.raw_theta(z[i][None])[0])
        model = target.materialize(tensors, None)
        target.statistics.set_tables(model, [table[i].clone() for table in statistics])
        models.append(start.with_head(merge(model).eval(), x, y))
    return z, statistics, models


def _replace_last(model: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Replace the last layer of a model, in place; ``x`` are inputs to find it with."""
    name, _ = _last_layer(model, x)
    if not name:
        raise Unsuitable("the target is a linear layer itself")
    owner, attribute = owner_of(model, name)
    setattr(owner, attribute, linear_layer(weight, bias))


def _last_layer(model: nn.Module, x: Tensor) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose outputs are the model's."""
    used = linear_layers_used(model, x)
    if used:
        last = used[-1]
        assert isinstance(last, nn.Linear)
        seen: list[Tensor] = []
        hook = last.register_forward_hook(lambda _, __, out: seen.append(out))
        with torch.no_grad():
            out = model(x[:2])
        hook.remove()
        if isinstance(out, Tensor) and out.shape == seen[-1].shape and out.equal(seen[-1]):
            return next(n for n, m in model.named_modules() if m is last), last
    raise Unsuitable("the target does not end in a linear layer")


@torch.no_grad()
def _features(model: nn.Module, x: Tensor) -> Tensor:
    """The inputs ``[n, F]`` of a model's last layer."""
    _, last = _last_layer(model, x)
    features: list[Tensor] = []
    hook = last.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    for some in x.split(_PIECE):
        model(some)
    hook.remove()
    return torch.cat(features)


def _tuned(
    start: Start, model: nn.Module, x: Tensor, y: Tensor, seed: int, deadline: float
) -> nn.Module:
    """The model, all of it trained."""
    updates = max(_FEWEST_UPDATES, _EPOCHS * len(x) // _BATCH)
    parameters = [p for p in model.parameters() if p.requires_grad]
    descend(
        *(model, parameters, start.task(x, y), start.loss, updates, _LR, _BATCH, seed),
        renewed=len(x) >= _ENOUGH_FOR_STATISTICS,
        deadline=deadline,
    )
    return model.eval()


def _solved(start: Start, features: Tensor, y: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Weight ``[outputs, F]`` and bias of the linear layer of least loss under a penalty."""
    count, width = features.shape
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-12)
    centred = (features - mean) / scale
    n_classes = start.outputs or 0

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        flat = points.detach().requires_grad_()
        weight, bias = flat[0, outputs:].view(outputs, width), flat[0, :outputs]
        mean_loss = losses_of(centred @ weight.T + bias, y, n_classes, start.loss).mean()
        value = mean_loss + _PENALTY / count * weight.square().sum() / 2
        (gradient,) = torch.autograd.grad(value, flat)
        return value.detach()[None], gradient

    first = features.new_zeros(1, outputs * (width + 1))
    found = minimize(evaluate, first, _LINEAR_STEPS)[0][0]
    weight = found[outputs:].view(outputs, width) / scale
    return weight, found[:outputs] - weight @ mean
