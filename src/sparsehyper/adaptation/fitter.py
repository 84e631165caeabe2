"""Fitting the embeddings of several tasks together, for `fit_embeddings` and the ways to adapt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.checks import check_vector
from sparsehyper._util.inputs import logits_of
from sparsehyper._util.random import normal, seeded, spawn_seeds
from sparsehyper.adaptation.lbfgs import minimize
from sparsehyper.adaptation.samples import (
    ModelBatch,
    TaskSamples,
    model_pieces,
)
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.many_tasks import run_tasks

# Limits on memory; a step processes tasks beyond them in turn.
_MOST_GENERATED = 1 << 26  # generated numbers
_MOST_KEPT = 1 << 26  # numbers in samples that are kept in the order of use too
_MOST_SAMPLES = 1024
_FEWEST_COMPARED, _ENOUGH_COMPARED, _MOST_COMPARED = 8, 64, 256  # samples to compare tasks on
_OF_EACH_CLASS = 4  # samples of each class, where there are many classes
_MOST_RUNS = 8192  # models times samples, to compare known tasks on enough samples
_HALVINGS = 3  # of the known tasks to compare, while the samples double
_PIECE = 512  # samples at a time for losses without gradients

_MORE_OUTPUTS = "train a target that has more (`sparsehyper train --outputs`)"


@torch.no_grad()
def keep(hnet: HyperNetwork, task: TaskSamples, z: Tensor, statistics: Sequence[Tensor]) -> None:
    """Add a task, or change a known one, and solve its head.

    Args:
        hnet: the hypernetwork.
        task: its samples.
        z: its embedding.
        statistics: its batch-norm statistics ``[1, *shape]``.
    """
    if task.name in hnet.task_names:
        number = hnet.tasks.index(task.name)
        hnet.tasks.refine(number, z)
    else:
        number = hnet.add_task(task.name, z)
    hnet.target.statistics.set_rows(hnet.target.module, [number], statistics)
    if hnet.head is not None:
        hnet.solve_head(task.name, (task.x, task.y), n_classes=task.n_classes)


@dataclass(frozen=True)
class KnownOn:
    """How the models of known tasks do on the first samples of a new task.

    Attributes:
        hnet: the hypernetwork.
        task: these samples.
        places: which of the known tasks, numbered in their order.
        found: losses ``[n]`` of each of them; with a head in closed form, features ``[n, F]``.
        seconds: time that a model took for a sample.
    """

    hnet: HyperNetwork
    task: TaskSamples
    places: tuple[int, ...]
    found: tuple[Tensor, ...]
    seconds: float

    @torch.no_grad()
    def losses(self, rows: Tensor | None = None) -> Tensor:
        """Mean loss of each of the known tasks ``[known]``.

        Args:
            rows: numbers of the samples that count, of which later ones are left out; None for
                all, as where none is left.
        """
        head, y = self.hnet.head, self.task.y
        every = torch.arange(len(y), device=y.device)
        rows = every if rows is None else rows[rows < len(y)]
        rows = rows if len(rows) else every
        if head is None:
            return torch.stack([losses[rows].mean() for losses in self.found])
        count = self.task.n_classes
        outputs = [head.leave_one_out(some[rows], y[rows], None, count) for some in self.found]
        each = [self.task.losses(one, y[rows]) for one in outputs]
        return torch.stack([losses.mean() for losses in each])


class Fitter:
    """Fits the embeddings ``[tasks, restarts, dim]`` of some new tasks together."""

    def __init__(
        self,
        hnet: HyperNetwork,
        tasks: list[TaskSamples],
        held: list[TaskSamples],
        restarts: int,
        rows: Sequence[int],
    ) -> None:
        self._hnet = hnet
        self._tasks = tasks
        self._held = held
        self._restarts = restarts
        self._rows = rows
        self._known = hnet.known_embeddings(self._rows)

    def starts(self, init: str | Tensor, seed: int) -> Tensor:
        """Initial embeddings, with unit second moment."""
        known, shape = self._known, (len(self._tasks), self._restarts, self._known.shape[1])
        # The same random starts for every task, so that they do not depend on the other tasks.
        z = normal(shape[1:], _own(seed)).to(known).repeat(shape[0], 1, 1)
        if isinstance(init, Tensor):
            check_vector("init", init, known.shape[1])
            z[:, 0] = init.to(known)
        elif init == "mean":
            z[:, 0] = known.mean(0)
        elif init == "own":
            z[:, 0] = self._hnet.known_embeddings(
                [self._hnet.tasks.index(task.name) for task in self._tasks]
            )
        elif init == "mixture":
            losses = torch.stack([self.known_on(task).losses() for task in self._tasks])
            z[:, 0] = (-losses).softmax(1) @ known
        elif init == "nearest":
            near = self._nearest(self._restarts)
            z[:, : near.shape[1]] = known[near]
        return self._hnet.normalise(z)

    def mixtures(self, seed: int) -> Tensor:
        """Initial logits of mixtures of the known embeddings; zeros for the first restart."""
        z = normal((self._restarts, len(self._known)), _own(seed)).to(self._known)
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
        counts = [min(len(task.y), batch_size) for task in owners]
        target = self._hnet.target
        mean = target.statistics.row(target.module, None, self._rows)
        statistics = [value.expand(len(owners), *value.shape).clone() for value in mean]
        evaluate = self._mean_losses(owners, counts, statistics, space)
        with target.statistics.from_batches(target.module):
            points, _ = minimize(evaluate, start.flatten(0, 1), steps, deadline)
        found = self._embeddings(points, space).unflatten(0, start.shape[:2])
        # The length of an embedding does not matter to the generator, but would in a mean.
        found = self._hnet.normalise(found) if space == "free" else found
        return found, [table.unflatten(0, start.shape[:2]) for table in statistics]

    def _embeddings(self, points: Tensor, space: str) -> Tensor:
        return points if space == "free" else points.softmax(-1) @ self._known.to(points)

    def _mean_losses(
        self, tasks: list[TaskSamples], counts: list[int], statistics: list[Tensor], space: str
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The function that `minimize` gets.

        Args:
            tasks: task of each embedding.
            counts: number of its first samples to use.
            statistics: batch-norm statistics of the embeddings; updated.
            space: as for `fit`.
        """
        samples = [(task.x[:n], task.y[:n]) for task, n in zip(tasks, counts, strict=True)]
        groups = self._groups(counts, tasks)
        numbers = sum(tensor.numel() for x, _ in samples for tensor in x.tensors)

        def batch(own: slice) -> ModelBatch:
            return ModelBatch.of(samples[own], tasks[own])

        kept = [batch(own) for own in groups] if numbers <= _MOST_KEPT else None

        def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
            values: list[Tensor] = []
            gradients: list[Tensor] = []
            for i, own in enumerate(groups):
                some = points[own].detach().requires_grad_()
                raw = self._hnet.raw_theta(self._embeddings(some, space))
                rows = [table[own] for table in statistics]
                losses = self._losses(raw, rows, kept[i] if kept else batch(own))
                gradients += torch.autograd.grad(losses.sum(), some)
                values.append(losses.detach())
            return torch.cat(values), torch.cat(gradients)

        return evaluate

    def _groups(self, counts: list[int], *tasks: list[TaskSamples]) -> list[slice]:
        """Divide embeddings into groups that run together.

        Args:
            counts: number of samples of each embedding; a group's fit into memory.
            *tasks: tasks of each; those of a group have one form.
        """
        forms = [[task.form for task in own] for own in zip(*tasks, strict=True)]
        groups, first, samples = [], 0, 0
        most = max(1, _MOST_GENERATED // self._hnet.target.numel)
        for i, count in enumerate(counts):
            full = samples + count > _MOST_SAMPLES or i - first == most
            if i > first and (full or forms[i] != forms[first]):
                groups.append(slice(first, i))
                first, samples = i, 0
            samples += count
        return [*groups, slice(first, len(counts))]

    @torch.no_grad()
    def assess(self, z: Tensor, statistics: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Losses ``[tasks, restarts]`` on the held samples.

        A head in closed form is solved from the tasks' own samples; where these are the held ones,
        each is left out in turn. ``statistics`` are changed in place: estimated anew from all
        samples of the tasks.
        """
        target, restarts = self._hnet.target, self._restarts
        norms = target.statistics
        tasks = [task for task in self._tasks for _ in range(restarts)]
        held = [task for task in self._held for _ in range(restarts)]
        # Embeddings whose samples are several pieces are alone.
        most = [max(len(a.y), len(b.y)) for a, b in zip(tasks, held, strict=True)]
        counts = [n if n <= _PIECE else _MOST_SAMPLES for n in most]
        points, tables = z.flatten(0, 1), [table.flatten(0, 1) for table in statistics]
        losses = z.new_zeros(len(points))
        for own in self._groups(counts, tasks, held):
            raw = self._hnet.raw_theta(points[own])
            rows = [table[own] for table in tables]
            norms.start_mean(rows)
            with norms.from_batches(target.module):
                for k, batch in enumerate(model_pieces(tasks[own], _PIECE) if norms.names else []):
                    norms.average(target.module, k)
                    self._losses(raw, rows, batch)
            apart = [a is not b for a, b in zip(tasks[own], held[own], strict=True)]
            layers = None
            if self._hnet.head is not None and any(apart):
                solved = self._solved(raw, rows, tasks[own])
                layers = [s if other else None for s, other in zip(solved, apart, strict=True)]
            for batch in model_pieces(held[own], _PIECE):
                share = batch.counts[0] / len(held[own.start].y)
                losses[own] += share * self._losses(raw, rows, batch, layers)
        return losses.unflatten(0, z.shape[:2]), statistics

    def _solved(
        self, raw: Tensor, statistics: Sequence[Tensor], tasks: list[TaskSamples]
    ) -> list[tuple[Tensor, Tensor]]:
        """The heads that follow from the samples of models."""
        assert self._hnet.head is not None
        features: list[list[Tensor]] = [[] for _ in tasks]
        labels: list[list[Tensor]] = [[] for _ in tasks]
        for batch in model_pieces(tasks, _PIECE):
            outputs = self._run(raw, statistics, batch)
            for kept, part in zip(features, outputs.split(batch.counts), strict=True):
                kept.append(part)
            for kept, part in zip(labels, batch.y.split(batch.counts), strict=True):
                kept.append(part)
        most = max(task.n_classes for task in tasks)
        pairs = zip(map(torch.cat, features), map(torch.cat, labels), strict=True)
        return [self._hnet.head.solve(phi, y, most) for phi, y in pairs]

    def _losses(
        self,
        raw: Tensor,
        statistics: Sequence[Tensor],
        batch: ModelBatch,
        layers: Sequence[tuple[Tensor, Tensor] | None] | None = None,
    ) -> Tensor:
        """Mean losses ``[models]``, each on samples of its own.

        Args:
            raw: generator outputs for the models, ``[models, numel]``.
            statistics: batch-norm statistics of the models, ``[models, *shape]`` each; updated.
            batch: samples of the models.
            layers: heads of the models; None solves a head in closed form from the samples
                themselves, each left out in turn.
        """
        outputs = self._run(raw, statistics, batch)
        if (head := self._hnet.head) is not None:
            most = max(task.n_classes for task in batch.tasks)
            if layers is None:
                outputs = head.leave_one_out(outputs, batch.y, batch.owner, most)
            else:
                split = (outputs.split(batch.counts), batch.y.split(batch.counts), layers)
                outputs = torch.cat(
                    [
                        head.leave_one_out(part, y, None, most)
                        if layer is None
                        else F.linear(part, *layer)
                        for part, y, layer in zip(*split, strict=True)
                    ]
                )
        return batch.means(self._losses_of(outputs, batch))

    def _run(self, raw: Tensor, statistics: Sequence[Tensor], batch: ModelBatch) -> Any:
        """Outputs of models on their samples; statistics are updated."""
        inputs = batch.x.args, batch.x.kwargs
        outputs, changed = run_tasks(self._hnet.target, raw, statistics, batch.counts, None, inputs)
        if changed is not None:
            for table, values in zip(statistics, changed, strict=True):
                table.copy_(values)
        return logits_of(outputs)

    def _losses_of(self, outputs: Any, batch: ModelBatch) -> Tensor:
        """The loss of each sample ``[n]``."""
        for task in batch.tasks:
            task.check_outputs(outputs, batch.y, "target", _MORE_OUTPUTS)
        return batch.losses(outputs)

    @torch.no_grad()
    def known_on(self, task: TaskSamples, seconds: float = math.inf) -> KnownOn:
        """How the known tasks' models do on the first samples of a new task.

        The more known tasks there are, the fewer samples they are compared on. Where time is short
        there are fewer samples still, and then fewer known tasks, evenly spaced.

        Args:
            task: samples of the new task.
            seconds: time to take, about.
        """
        numbers = range(len(self._rows))
        fewest = max(_FEWEST_COMPARED, _OF_EACH_CLASS * task.n_classes)
        count = min(max(_MOST_RUNS // len(numbers), _ENOUGH_COMPARED), _MOST_COMPARED)
        if seconds < math.inf:
            few, began = task.some(slice(fewest)), time.perf_counter()
            self._of_known([0], [few])
            runs = seconds / (time.perf_counter() - began) * len(few.y)  # models times samples
            count = min(count, int(runs / len(numbers)))
            numbers = numbers[:: math.ceil(fewest * len(numbers) / max(runs, fewest))]
        task = task.some(slice(max(count, fewest)))
        began = time.perf_counter()
        found = self._of_known(numbers, [task] * len(numbers))
        of_one = (time.perf_counter() - began) / (len(numbers) * len(task.y))
        return KnownOn(self._hnet, task, tuple(numbers), tuple(found), of_one)

    def _of_known(self, numbers: Sequence[int], tasks: list[TaskSamples]) -> list[Tensor]:
        """The losses of known tasks' models; with a head in closed form, the features.

        Args:
            numbers: number of the known task of each model; equal ones should be neighbours.
            tasks: samples of each model.
        """
        hnet, norms = self._hnet, self._hnet.target.statistics
        found: list[Tensor] = []
        for own in self._groups([len(task.y) for task in tasks], tasks):
            distinct, places = torch.tensor(numbers[own]).unique_consecutive(return_inverse=True)
            raw = hnet.raw_theta(self._known[distinct])
            raw = raw if len(distinct) == len(places) else raw[places]
            rows = norms.rows(hnet.target.module, [self._rows[number] for number in numbers[own]])
            batch = ModelBatch.of([(task.x, task.y) for task in tasks[own]], tasks[own])
            outputs = self._run(raw, rows, batch)
            if hnet.head is None:
                outputs = self._losses_of(outputs, batch)
            found += outputs.split(batch.counts)
        return found

    @torch.no_grad()
    def _nearest(self, count: int) -> Tensor:
        """Numbers of the known tasks that do best on each task's samples, best first.

        The worse half of them is left out after an eighth, a quarter and a half of the samples, so
        that the comparison takes a third of the time. All samples decide among the last.

        Source: successive halving, K. Jamieson and A. Talwalkar, "Non-stochastic best arm
        identification and hyperparameter optimization" (AISTATS 2016).

        Args:
            count: how many; fewer where there are fewer.

        Returns:
            ``[tasks, count]``.
        """
        tasks = [task.some(slice(_MOST_COMPARED)) for task in self._tasks]
        found: list[dict[int, Tensor]] = [{} for _ in tasks]
        left = [list(range(len(self._rows))) for _ in tasks]
        seen = [0] * len(tasks)
        for halvings in reversed(range(_HALVINGS + 1)):
            models = []
            for i, task in enumerate(tasks):
                end = len(task.y) >> halvings
                if halvings and (len(left[i]) <= 2 * count or end < self._fewest_compared(task)):
                    continue
                some, seen[i] = task.some(slice(seen[i], end)), end
                models += [(number, i, some) for number in left[i]]
            if not models:
                continue
            models.sort(key=lambda model: (len(model[2].y), model[0]))
            outputs = self._of_known([model[0] for model in models], [model[2] for model in models])
            for (number, i, _), output in zip(models, outputs, strict=True):
                before = [found[i][number]] if number in found[i] else []
                found[i][number] = torch.cat([*before, output])
            for i in {i for _, i, _ in models}:
                of_left = tuple([found[i][number] for number in left[i]])
                some = tasks[i].some(slice(seen[i]))
                on = KnownOn(self._hnet, some, tuple(left[i]), of_left, 0.0)
                most = max(2 * count, -(-len(left[i]) // 2)) if halvings else count
                left[i] = [left[i][place] for place in on.losses().argsort()[:most].tolist()]
        return torch.tensor(left, device=self._known.device)

    def _fewest_compared(self, task: TaskSamples) -> int:
        """Number of samples that known tasks are compared on at least."""
        # A head needs other samples of the class of each.
        return max(_FEWEST_COMPARED, 0 if self._hnet.head is None else 2 * task.n_classes)


def _own(seed: int) -> torch.Generator:
    """A generator of other numbers than those that `TaskEmbedding` draws from the same seed."""
    return seeded(spawn_seeds(seed, 1)[0])
