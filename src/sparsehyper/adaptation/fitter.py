"""Fitting the embeddings of several tasks together, for `fit_embeddings` and the ways to adapt."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import check_vector
from sparsehyper._util.classifiers import evaluation_mode
from sparsehyper._util.inputs import Inputs, logits_of
from sparsehyper._util.random import normal, seeded
from sparsehyper.adaptation.lbfgs import minimize
from sparsehyper.adaptation.samples import Loss, TaskSamples, check_outputs, losses_of, pieces
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.many_tasks import run_tasks

# Limits on memory; a step processes tasks beyond them in turn.
_MOST_GENERATED = 1 << 26  # generated numbers
_MOST_SAMPLES = 1024
_MOST_COMPARED = 256  # samples to compare known tasks on
_PIECE = 512  # samples at a time for losses without gradients

_MORE_OUTPUTS = "train a target that has more (`sparsehyper train --outputs`)"


@contextmanager
def frozen(hnet: HyperNetwork) -> Iterator[None]:
    """Context of evaluation mode without gradients for the hypernetwork's parameters."""
    trained = [parameter for parameter in hnet.parameters() if parameter.requires_grad]
    hnet.requires_grad_(False)
    try:
        with evaluation_mode(hnet):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def keep(hnet: HyperNetwork, task: TaskSamples, z: Tensor, statistics: Sequence[Tensor]) -> None:
    """Add a task, or change a known one, and solve its head.

    Args:
        hnet: the hypernetwork.
        task: its samples.
        z: its embedding.
        statistics: its batch-norm statistics ``[1, *shape]``.
    """
    number = hnet.keep_embedding(task.name, z)
    hnet.target.statistics.set_rows(hnet.target.module, [number], statistics)
    if hnet.head is not None:
        hnet.solve_head(task.name, (task.x, task.y))


@dataclass(frozen=True)
class KnownOn:
    """How the models of known tasks do on the first samples of a new task.

    Attributes:
        hnet: the hypernetwork.
        task: these samples.
        loss: loss of each sample; None for cross entropy.
        found: losses ``[n]`` of each known task; with a head in closed form, features ``[n, F]``.
        seconds: time that a model took for a sample.
    """

    hnet: HyperNetwork
    task: TaskSamples
    loss: Loss | None
    found: tuple[Tensor, ...]
    seconds: float

    @torch.no_grad()
    def losses(self, rows: Tensor | None = None) -> Tensor:
        """Mean loss of each known task ``[known]``.

        Args:
            rows: numbers of the samples that count, of which later ones are left out; None for
                all.
        """
        head, y = self.hnet.head, self.task.y
        rows = torch.arange(len(y), device=y.device) if rows is None else rows[rows < len(y)]
        if head is None:
            return torch.stack([losses[rows].mean() for losses in self.found])
        count = self.task.n_classes
        outputs = [head.leave_one_out(some[rows], y[rows], None, count) for some in self.found]
        each = [losses_of(one, y[rows], count, self.loss) for one in outputs]
        return torch.stack([losses.mean() for losses in each])


class Fitter:
    """Fits the embeddings ``[tasks, restarts, dim]`` of some new tasks together."""

    def __init__(
        self,
        hnet: HyperNetwork,
        tasks: list[TaskSamples],
        held: list[TaskSamples],
        restarts: int,
        loss: Loss | None,
        rows: Sequence[int],
    ) -> None:
        self._hnet = hnet
        self._tasks = tasks
        self._held = held
        self._restarts = restarts
        self._loss = loss
        self._rows = rows
        self._known = hnet.known_embeddings(self._rows)

    def starts(self, init: str | Tensor, seed: int) -> Tensor:
        """Initial embeddings, with unit second moment."""
        known, shape = self._known, (len(self._tasks), self._restarts, self._known.shape[1])
        # The same random starts for every task, so that they do not depend on the other tasks.
        z = normal(shape[1:], seeded(seed)).to(known).repeat(shape[0], 1, 1)
        if isinstance(init, Tensor):
            check_vector("init", init, known.shape[1])
            z[:, 0] = init.to(known)
        elif init == "mean":
            z[:, 0] = known.mean(0)
        elif init == "own":
            z[:, 0] = self._hnet.known_embeddings(
                [self._hnet.tasks.index(task.name) for task in self._tasks]
            )
        elif init in ("nearest", "mixture"):
            losses = torch.stack([self.known_on(task).losses() for task in self._tasks])
            weights = (-losses).softmax(1)
            if init == "mixture":
                z[:, 0] = weights @ known
            else:
                near = losses.argsort(1)[:, : shape[1]]
                z[:, : near.shape[1]] = known[near]
        return self._hnet.normalise(z)

    def mixtures(self, seed: int) -> Tensor:
        """Initial logits of mixtures of the known embeddings; zeros for the first restart."""
        z = normal((self._restarts, len(self._known)), seeded(seed)).to(self._known)
        z[0] = 0
        return z.repeat(len(self._tasks), 1, 1)

    def fit(
        self, start: Tensor, space: str, steps: int, batch_size: int, deadline: float = math.inf
    ) -> tuple[Tensor, list[Tensor]]:
        """Fit from the initial embeddings, or from logits of mixtures, while there is time.

        Returns:
            Embeddings ``[tasks, restarts, dim]``, and their batch-norm statistics.
        """
        owners = [task for task in self._tasks for _ in range(self._restarts)]
        samples = [(task.x[:batch_size], task.y[:batch_size]) for task in owners]
        target = self._hnet.target
        mean = target.statistics.row(target.module, None)
        statistics = [value.expand(len(owners), *value.shape).clone() for value in mean]

        def embeddings(points: Tensor) -> Tensor:
            return points if space == "free" else points.softmax(-1) @ self._known

        def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
            values: list[Tensor] = []
            gradients: list[Tensor] = []
            for own in self._groups([len(y) for _, y in samples]):
                some = points[own].detach().requires_grad_()
                raw = self._hnet.raw_theta(embeddings(some))
                rows = [table[own] for table in statistics]
                losses = self._losses(raw, rows, samples[own], owners[own])
                gradients += torch.autograd.grad(losses.sum(), some)
                values.append(losses.detach())
            return torch.cat(values), torch.cat(gradients)

        with target.statistics.from_batches(target.module):
            points, _ = minimize(evaluate, start.flatten(0, 1), steps, deadline)
        found = embeddings(points).unflatten(0, start.shape[:2])
        # The length of an embedding does not matter to the generator, but would in a mean.
        found = self._hnet.normalise(found) if space == "free" else found
        return found, [table.unflatten(0, start.shape[:2]) for table in statistics]

    def _groups(self, counts: list[int]) -> list[slice]:
        """Divide embeddings into groups that fit into memory, by their numbers of samples."""
        groups, first, samples = [], 0, 0
        most = max(1, _MOST_GENERATED // self._hnet.target.numel)
        for i, count in enumerate(counts):
            if i > first and (samples + count > _MOST_SAMPLES or i - first == most):
                groups.append(slice(first, i))
                first, samples = i, 0
            samples += count
        return [*groups, slice(first, len(counts))]

    @torch.no_grad()
    def assess(self, z: Tensor, statistics: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Losses ``[tasks, restarts]`` on the held samples, and statistics of all samples."""
        target, losses = self._hnet.target, z.new_zeros(z.shape[:2])
        norms = target.statistics
        for i, j in itertools.product(*map(range, z.shape[:2])):
            task, held = self._tasks[i], self._held[i]
            own = [table[i, j][None] for table in statistics]
            raw = self._hnet.raw_theta(z[i, j][None])
            norms.start_mean(own)
            with norms.from_batches(target.module):
                seen = pieces(task, _PIECE) if norms.names else []
                for k, some in enumerate(seen):
                    norms.average(target.module, k)
                    self._losses(raw, own, [some], [task])
            for some in pieces(held, _PIECE):
                share = len(some[0]) / len(held.x)
                losses[i, j] += share * self._losses(raw, own, [some], [held])[0]
        return losses, statistics

    def _losses(
        self,
        raw: Tensor,
        statistics: Sequence[Tensor],
        samples: list[tuple[Inputs, Tensor]],
        tasks: list[TaskSamples],
    ) -> Tensor:
        """Mean losses ``[models]``, each on samples of its own.

        Args:
            raw: generator outputs for the models, ``[models, numel]``.
            statistics: batch-norm statistics of the models, ``[models, *shape]`` each; updated.
            samples: inputs and labels for each model.
            tasks: task of each model.
        """
        x, y = Inputs.cat([x for x, _ in samples]), torch.cat([y for _, y in samples])
        counts = [len(labels) for _, labels in samples]
        outputs = self._run(raw, statistics, x, counts)
        repeats = torch.tensor(counts, device=x.device)
        owner = torch.arange(len(counts), device=x.device).repeat_interleave(repeats)
        if self._hnet.head is not None:
            most = max(task.n_classes for task in tasks)
            outputs = self._hnet.head.leave_one_out(outputs, y, owner, most)
        limits = torch.tensor([task.n_classes for task in tasks], device=x.device)
        each = self._losses_of(outputs, y, tasks, limits.repeat_interleave(repeats))
        return each.new_zeros(len(counts)).index_add(0, owner, each) / repeats

    def _run(
        self, raw: Tensor, statistics: Sequence[Tensor], x: Inputs, counts: Sequence[int]
    ) -> Any:
        """Outputs of models on samples in their order, so many each; statistics are updated."""
        order = torch.arange(len(x), device=x.device)
        target = self._hnet.target
        outputs, changed = run_tasks(target, raw, statistics, counts, order, (x.args, x.kwargs))
        if changed is not None:
            for table, values in zip(statistics, changed, strict=True):
                table.copy_(values)
        return logits_of(outputs)

    def _losses_of(
        self, outputs: Any, y: Tensor, tasks: list[TaskSamples], n_classes: int | Tensor
    ) -> Tensor:
        if self._loss is None:
            check_outputs(outputs, tasks, "target", _MORE_OUTPUTS)
        return losses_of(outputs, y, n_classes, self._loss)

    @torch.no_grad()
    def known_on(self, task: TaskSamples) -> KnownOn:
        """How the known tasks' models do on the first samples of a new task."""
        began = time.perf_counter()
        hnet, norms = self._hnet, self._hnet.target.statistics
        task = task.some(slice(_MOST_COMPARED))
        x, y = task.x, task.y
        found = []
        for own in self._groups([len(x)] * len(self._rows)):
            raw = hnet.raw_theta(self._known[own])
            tables = norms.rows(hnet.target.module, self._rows[own])
            outputs = self._run(raw, tables, Inputs.cat([x] * len(raw)), [len(x)] * len(raw))
            if hnet.head is None:
                labels = torch.cat([y] * len(raw))
                outputs = self._losses_of(outputs, labels, [task], task.n_classes)
            found += list(outputs.split(len(x)))
        seconds = (time.perf_counter() - began) / (len(self._rows) * len(x))
        return KnownOn(hnet, task, self._loss, tuple(found), seconds)
