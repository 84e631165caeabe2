"""New tasks from an embedding alone: a hypernetwork learns a task by fitting one vector.

    z* = argmin_z  mean loss of target(x; base + scale ⊙ G(normalise(z))) over the task's samples

With a head in closed form, the loss of each sample is that by the head of all other samples.
Everything but z stays bit-identical. All tasks and all restarts are fitted at once by L-BFGS: a
step generates many models in one batch, and runs models with equally many samples together.

Source: fitting an embedding under a frozen hypernetwork, and embeddings that are a softmax mixture
of the known ones, as in F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparsehyper._util.checks import MOST_REPEATS, check_choice, check_integer, check_vector
from sparsehyper._util.classifiers import evaluation_mode
from sparsehyper._util.random import normal, seeded
from sparsehyper.adaptation.lbfgs import minimize
from sparsehyper.adaptation.samples import (
    Loss,
    Samples,
    TaskSamples,
    check_outputs,
    losses_of,
    pieces,
    with_gradients,
)
from sparsehyper.conditioning import TaskFeatures
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.many_tasks import run_tasks

EMBEDDING_INITS = ("mean", "nearest", "mixture", "random", "own")
SPACES = ("free", "mixture")

# Limits on memory; a step processes tasks beyond them in turn.
_MOST_GENERATED = 1 << 26  # generated numbers
_MOST_SAMPLES = 1024
_MOST_COMPARED = 256  # samples to compare known tasks on
_PIECE = 512  # samples at a time for losses without gradients

_MORE_OUTPUTS = "train a target that has more (`sparsehyper train --outputs`)"


@dataclass(frozen=True)
class Fit:
    """Result of `fit_embedding` for one task.

    Attributes:
        name: task name.
        embedding: the best embedding, ``[latent_dim]``; with unit second moment, unless it is a
            mixture.
        loss: its mean loss, on the validation samples if there are any.
        embeddings: embeddings of all restarts, ``[restarts, latent_dim]``.
        losses: mean losses of all restarts.
        statistics: batch-norm statistics of all restarts, ``[restarts, *shape]`` each.
        steps: number of evaluations of the loss.
        seconds: duration of the fit of all tasks together.
    """

    name: str
    embedding: Tensor = field(repr=False)
    loss: float
    embeddings: Tensor = field(repr=False)
    losses: tuple[float, ...]
    statistics: tuple[Tensor, ...] = field(repr=False)
    steps: int
    seconds: float


def fit_embedding(
    hnet: HyperNetwork,
    name: str,
    samples: Samples,
    *,
    validation: Samples | None = None,
    init: str | Tensor | None = None,
    restarts: int = 1,
    space: str = "free",
    n_classes: int | None = None,
    loss: Loss | None = None,
    steps: int = 25,
    batch_size: int = 1024,
    seed: int = 0,
) -> Fit:
    """Fit the embedding of one new task and add the task.

    The arguments are those of `fit_embeddings`, with ``validation`` and ``n_classes`` for this task
    alone.

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> module = torch.nn.Linear(5, 2)
    >>> hnet = HyperNetwork(module, Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> x = torch.randn(20, 5)
    >>> fit = fit_embedding(hnet, "hats", (x, (x[:, 0] > 0).long()), steps=20)
    >>> hnet.task_names, fit.embedding.shape
    (('shoes', 'bags', 'hats'), torch.Size([8]))
    """
    return fit_embeddings(
        hnet,
        {name: samples},
        validation=None if validation is None else {name: validation},
        init=init,
        restarts=restarts,
        space=space,
        n_classes=n_classes,
        loss=loss,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )[name]


@with_gradients()
def fit_embeddings(
    hnet: HyperNetwork,
    tasks: Mapping[str, Samples],
    *,
    validation: Mapping[str, Samples] | None = None,
    init: str | Tensor | None = None,
    restarts: int = 1,
    space: str = "free",
    n_classes: int | Mapping[str, int] | None = None,
    loss: Loss | None = None,
    steps: int = 25,
    batch_size: int = 1024,
    seed: int = 0,
) -> dict[str, Fit]:
    """Fit the embeddings of new tasks together, and add the tasks.

    With `TaskFeatures`, the tasks must have been added by their features, and their embeddings are
    refined. Nothing else in the hypernetwork changes, including its mode. Dropout is off while
    fitting. Batch norms with statistics per task use those of the batch, as in training; a new
    task's statistics are then estimated from all its samples. Other statistics are used as they
    are.

    Args:
        hnet: hypernetwork that was trained on other tasks.
        tasks: samples of each new task.
        validation: samples of each new task to choose among restarts by; by default the samples
            that it is fitted to.
        init: initial embedding: that of the ``"nearest"`` known task (with the lowest loss on the
            samples), the ``"mean"`` of the known embeddings, a ``"mixture"`` of them (softmax of
            their negative losses), ``"random"``, or a vector ``[latent_dim]``; with
            `TaskFeatures` also the task's ``"own"``. None for ``"own"`` if there is one, and
            otherwise for ``"nearest"``.
        restarts: number of embeddings to fit for each task. With ``"nearest"`` they start from as
            many of the nearest known tasks as there are; all others but the first start at random.
        space: ``"free"``, any vector; or ``"mixture"``, a softmax mixture of the known embeddings,
            whose logits are fitted. The logits start at 0 (the mean), whatever ``init`` is.
        n_classes: number of classes of all new tasks, or of each by name; by default the largest
            label plus one. Outputs beyond it are ignored. For the default loss only.
        loss: function that returns the loss of each sample; by default cross entropy of logits
            ``[n, outputs]``.
        steps: number of evaluations of loss and gradient by L-BFGS, including the first.
        batch_size: largest number of samples that an embedding is fitted to. They are drawn once,
            balanced over classes as far as there are samples, and every step uses all of them.
        seed: seed of random starts and of the choice of samples.

    Returns:
        One `Fit` for each task, by name.

    Raises:
        ValueError: a name is already taken, there are no samples, labels are not class numbers or
            all the same, a task has more classes than the target has outputs, or a loss is not
            finite. The hypernetwork is then unchanged.
        KeyError: with `TaskFeatures`, a task that was not added.
        TypeError: the hypernetwork's conditioner is not a `TaskEmbedding` or `TaskFeatures`, or
            ``tasks`` is not a mapping.
        RuntimeError: called within ``torch.inference_mode()``.
    """
    check_choice("space", space, SPACES)
    check_integer("restarts", restarts, minimum=1, maximum=MOST_REPEATS)
    check_integer("steps", steps, minimum=2)
    check_integer("batch_size", batch_size, minimum=2)
    check_integer("seed", seed, minimum=0)
    described = isinstance(hnet.conditioner, TaskFeatures)
    if init is None:
        init = "own" if described else "nearest"
    if not isinstance(init, Tensor):
        check_choice("init", init, EMBEDDING_INITS if described else EMBEDDING_INITS[:-1])
    for argument, value in (("tasks", tasks), ("validation", validation)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(
                f"`{argument}` must map each new task's name to its samples, as in "
                f'{{"hats": (x, y)}}, got a {type(value).__name__}'
            )
    names = list(tasks)
    if not names:
        raise ValueError("`tasks` must name at least one new task, got none")
    for name in names:
        hnet.check_fit(name)
    device = hnet.target.moments.device
    counts: Mapping[str, int | None] = (
        n_classes if isinstance(n_classes, Mapping) else dict.fromkeys(names, n_classes)
    )
    if not (n_classes is None or isinstance(n_classes, (int, Mapping))):
        raise TypeError(f"`n_classes` must be a number, or map names to them, got {n_classes!r}")
    for name in counts:
        if name not in tasks:
            raise ValueError(f"`n_classes` names {name!r}, which is not a new task")
    wanted = [TaskSamples.of(n, tasks[n], counts.get(n), loss is None, device, seed) for n in names]
    wanted.sort(key=lambda task: min(len(task.x), batch_size))  # equal sizes run together
    held = wanted
    if validation is not None:
        if missing := [name for name in names if name not in validation]:
            raise ValueError(f"`validation` has no samples of the new task {missing[0]!r}")
        held = [
            TaskSamples.of(t.name, validation[t.name], t.n_classes, loss is None, device, seed)
            for t in wanted
        ]

    started = time.perf_counter()
    fits: dict[str, Fit] = {}
    with frozen(hnet):
        fitter = Fitter(hnet, wanted, held, restarts, loss)
        start = fitter.mixtures(seed) if space == "mixture" else fitter.starts(init, seed)
        z, statistics = fitter.fit(start, space, steps, batch_size)
        losses, statistics = fitter.assess(z, statistics)
        for i, task in enumerate(wanted):
            values = tuple(losses[i].tolist())
            if not all(map(math.isfinite, values)):
                raise ValueError(
                    f"the loss of the new task {task.name!r} is not finite, got {values}; look at "
                    "its samples"
                )
            best = values.index(min(values))
            rows = tuple([table[i] for table in statistics])
            fits[task.name] = Fit(task.name, z[i, best], values[best], z[i], values, rows, steps, 0)
    seconds = time.perf_counter() - started
    given = {task.name: (task.x, task.y) for task in wanted}
    for name in names:
        fit = fits[name]
        best = fit.losses.index(fit.loss)
        number = hnet.keep_embedding(name, fit.embedding)
        kept = [table[best : best + 1] for table in fit.statistics]
        hnet.target.statistics.set_rows(hnet.target.module, [number], kept)
        if hnet.head is not None:
            hnet.solve_head(name, given[name])
    return {name: replace(fits[name], seconds=seconds) for name in names}


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


class Fitter:
    """Fits the embeddings ``[tasks, restarts, dim]`` of some new tasks together."""

    def __init__(
        self,
        hnet: HyperNetwork,
        tasks: list[TaskSamples],
        held: list[TaskSamples],
        restarts: int,
        loss: Loss | None,
        rows: Sequence[int] | None = None,
    ) -> None:
        self._hnet = hnet
        self._tasks = tasks
        self._held = held
        self._restarts = restarts
        self._loss = loss
        self._rows = range(len(hnet.task_names)) if rows is None else rows
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
            losses = self.losses_of_known()
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
        self, start: Tensor, space: str, steps: int, batch_size: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Fit from the initial embeddings, or from logits of mixtures.

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
            points, _ = minimize(evaluate, start.flatten(0, 1), steps)
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
        samples: list[tuple[Tensor, Tensor]],
        tasks: list[TaskSamples],
    ) -> Tensor:
        """Mean losses ``[models]``, each on samples of its own.

        Args:
            raw: generator outputs for the models, ``[models, numel]``.
            statistics: batch-norm statistics of the models, ``[models, *shape]`` each; updated.
            samples: inputs and labels for each model.
            tasks: task of each model.
        """
        x, y = map(torch.cat, zip(*samples, strict=True))
        counts = [len(labels) for _, labels in samples]
        order = torch.arange(len(x), device=x.device)
        target = self._hnet.target
        outputs, changed = run_tasks(target, raw, statistics, counts, order, ((x,), {}))
        if changed is not None:
            for table, values in zip(statistics, changed, strict=True):
                table.copy_(values)
        repeats = torch.tensor(counts, device=x.device)
        owner = torch.arange(len(counts), device=x.device).repeat_interleave(repeats)
        if self._hnet.head is not None:
            outputs = self._hnet.head.leave_one_out(outputs, y, owner)
        if self._loss is None:
            check_outputs(outputs, tasks, "target", _MORE_OUTPUTS)
        limits = torch.tensor([task.n_classes for task in tasks], device=x.device)
        each = losses_of(outputs, y, limits.repeat_interleave(repeats), self._loss)
        return each.new_zeros(len(counts)).index_add(0, owner, each) / repeats

    @torch.no_grad()
    def losses_of_known(self) -> Tensor:
        """Mean loss of every known task's model on each new task, ``[new, known]``."""
        losses = self._known.new_empty(len(self._tasks), len(self._rows))
        for row, task in zip(losses, self._tasks, strict=True):
            some = task.x[:_MOST_COMPARED], task.y[:_MOST_COMPARED]
            for own in self._groups([len(some[0])] * len(self._rows)):
                raw = self._hnet.raw_theta(self._known[own])
                count = len(raw)
                rows = self._hnet.target.statistics.rows(self._hnet.target.module, self._rows[own])
                row[own] = self._losses(raw, rows, [some] * count, [task] * count)
        return losses
