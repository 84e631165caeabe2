"""The samples of new tasks: gathered, checked and divided into batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import check_integer, class_numbers, is_one_hot
from sparsehyper._util.inputs import Inputs, labelled
from sparsehyper._util.objectives import check_numbers, own_losses, sample_losses
from sparsehyper._util.random import seeded
from sparsehyper.conditioning import Conditioner, TaskConditioner
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.norm_statistics import has_one_value

Samples = Iterable[Any]
"""A pair ``(x, y)`` of inputs and labels ``[n, …]``, or batches of such; all are kept in memory.

Inputs are what the target takes: a tensor, a tuple of its arguments, or a dict of them by name,
each with the n samples along the first dimension. NumPy arrays are taken too. A dict with
``"labels"`` is a pair.
"""

Loss = Callable[[Any, Tensor], Tensor]
"""Function of outputs and labels of n samples; returns the loss of each sample, ``[n]`` or
``[n, …]``, of which the mean is taken. One with a ``reduction``, such as ``nn.MSELoss()``, is used
without it. Of outputs that hold ``logits`` it gets these.
"""


class Unsuitable(ValueError):
    """A way to adapt does not apply to this target or these samples."""


@dataclass(frozen=True)
class TaskSamples:
    """All samples of one task.

    Attributes:
        name: task name.
        x, y: inputs and labels.
        n_classes: number of classes; 0 for numbers to predict, and with a loss of the caller's own.
        loss: a loss of the caller's own; None for that of `sample_losses`.
    """

    name: str
    x: Inputs
    y: Tensor
    n_classes: int
    loss: Loss | None = None

    @classmethod
    def of(
        cls,
        name: str,
        samples: Samples,
        device: torch.device,
        *,
        n_classes: int | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> TaskSamples:
        """Gather samples, move and shuffle them, check labels, and interleave classes.

        Args:
            name: task name.
            samples: the samples.
            device: device to move the samples to.
            n_classes: number of classes; None for the largest label plus one.
            loss: a loss of the caller's own, for any labels.
            seed: seed of the shuffle.
        """
        x, y = shuffled(*joined(name, samples, device), seed)
        if loss is not None:
            return cls(name, x, y, 0, loss)
        if y.is_floating_point() and n_classes is None:
            if wrong := len(Inputs.of(y).not_finite):
                raise ValueError(
                    f"labels of task {name!r} must be finite, got others for {wrong} of {len(y)} "
                    "samples; for samples without a label give a `loss` that leaves them out"
                )
            if is_one_hot(y):
                warnings.warn(
                    f"labels of task {name!r} are one-hot floating-point numbers, which are "
                    "predicted as numbers; for classes give their `argmax(1)`",
                    stacklevel=3,
                )
            return cls(name, x, y, 0)
        remedy = "; numbers to predict are floating-point, and other labels need a `loss`"
        if y.is_floating_point():
            remedy = "; for numbers to predict leave out `n_classes`"
        y = class_numbers(f"labels of task {name!r}", y, len(x), remedy)
        classes = int(y.max()) + 1 if n_classes is None else n_classes
        if int(y.min()) == int(y.max()):
            raise ValueError(
                f"task {name!r} needs samples of at least 2 classes, got {int(y.min())} alone"
            )
        check_integer("n_classes", classes, minimum=2, context=f" for task {name!r}")
        if int(y.max()) >= classes:
            raise ValueError(
                f"labels of task {name!r} must be below its {classes} classes, got {int(y.max())}"
            )
        order = _interleaved(y)
        return cls(name, x[order], y[order], classes)

    def some(self, rows: slice | Tensor) -> TaskSamples:
        """Some of the samples, by numbers, a slice or a mask."""
        return replace(self, x=self.x[rows], y=self.y[rows])

    @cached_property
    def first_equal(self) -> Tensor:
        """As `Inputs.first_equal`."""
        return self.x.first_equal

    @property
    def form(self) -> tuple[Any, ...]:
        """What the samples of several tasks must have in common to run together."""
        return self.x.form, self.y.dtype, self.y.shape[1:]

    def losses(self, outputs: Any, y: Tensor, n_classes: int | Tensor | None = None) -> Tensor:
        """The loss of each of some samples, ``[n]``.

        Args:
            outputs: outputs of a model.
            y: labels.
            n_classes: as `mask_classes` takes it; None for those of this task.
        """
        if self.loss is None:
            return sample_losses(outputs, y, self.n_classes if n_classes is None else n_classes)
        each = own_losses(outputs, y, self.loss)
        if each.ndim == 0:
            raise ValueError(
                "`loss` must return the losses [n] or [n, …] of n samples, got their mean; leave "
                "out its mean"
            )
        return each

    def check_outputs(self, outputs: Any, y: Tensor, module: str, remedy: str | None) -> None:
        """Raise ``ValueError`` if outputs have no loss, unless it is the caller's own.

        Args:
            outputs: outputs of a module.
            y: labels.
            module: name of the module, for the error.
            remedy: advice for fewer outputs than classes, for the error; None to allow them.
        """
        if self.loss is not None:
            return
        if not self.n_classes:
            check_numbers(outputs, y, f"labels of task {self.name!r}")
            return
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            tensor = isinstance(outputs, Tensor)
            found = list(outputs.shape) if tensor else repr(type(outputs).__name__)
            raise ValueError(
                f"the {module} must return logits [n, outputs], got {found}; give a `loss`"
            )
        if remedy is not None and self.n_classes > outputs.shape[1]:
            raise ValueError(
                f"task {self.name!r} has {self.n_classes} classes, the {module} has "
                f"{outputs.shape[1]} outputs; {remedy}"
            )


@dataclass(frozen=True)
class ModelBatch:
    """Samples of several models, one model's after another's.

    Attributes:
        x, y: inputs and labels.
        counts: number of samples of each model.
        owner: number of the model of each sample.
        limits: number of classes of each sample's task.
        tasks: task of each model; all have one `TaskSamples.form`.
    """

    x: Inputs
    y: Tensor
    counts: list[int]
    owner: Tensor
    limits: Tensor
    tasks: list[TaskSamples]

    @classmethod
    def of(cls, samples: Sequence[tuple[Inputs, Tensor]], tasks: list[TaskSamples]) -> ModelBatch:
        """The batch of one model for each of the tasks, on these inputs and labels of it."""
        y = torch.cat([y for _, y in samples])
        counts = [len(labels) for _, labels in samples]
        repeats = torch.tensor(counts, device=y.device)
        owner = torch.arange(len(counts), device=y.device).repeat_interleave(repeats)
        limits = torch.tensor([task.n_classes for task in tasks], device=y.device)
        return cls(Inputs.cat([x for x, _ in samples]), y, counts, owner, limits[owner], tasks)

    def losses(self, outputs: Any) -> Tensor:
        """The loss of each sample, ``[n]``."""
        return self.tasks[0].losses(outputs, self.y, self.limits)

    def means(self, values: Tensor) -> Tensor:
        """The mean over each model's samples, of values ``[n]``."""
        counts = torch.tensor(self.counts, device=values.device)
        return values.new_zeros(len(counts)).index_add(0, self.owner, values) / counts


class SampleBatches:
    """Batches of a task's samples, reshuffled when fewer are left than a batch needs."""

    def __init__(self, task: TaskSamples, batch_size: int, seed: int) -> None:
        self._task = task
        self._count = min(len(task.x), batch_size)
        self._rng = seeded(seed)
        self._left = torch.empty(0, dtype=torch.long)

    def next(self) -> tuple[Inputs, Tensor]:
        """The next inputs and labels."""
        x, y = self._task.x, self._task.y
        if self._count == len(y):
            return x, y
        if len(self._left) < self._count:
            self._left = torch.randperm(len(y), generator=self._rng)
        place, self._left = self._left.split([self._count, len(self._left) - self._count])
        place = place.to(y.device)
        return x[place], y[place]


def joined(name: str, samples: Samples, device: torch.device) -> tuple[Inputs, Tensor]:
    """Inputs and labels of all samples of a task, on a device, in the order given."""
    batches = list(labelled(f"the samples of task {name!r}", samples))
    if not batches:
        raise ValueError(f"task {name!r} needs at least one sample, got none")
    x = Inputs.cat([x for x, _ in batches]).to(device)
    y = torch.cat([y for _, y in batches]).to(device)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"task {name!r} needs at least one sample, and as many inputs as labels, got "
            f"{len(x)} and {len(y)}"
        )
    return x, y


def shuffled(x: Inputs, y: Tensor, seed: int = 0) -> tuple[Inputs, Tensor]:
    """Inputs and labels in random order."""
    order = torch.randperm(len(y), generator=seeded(seed)).to(y.device)
    return x[order], y[order]


def gather(
    hnet: HyperNetwork,
    tasks: Mapping[str, Samples],
    n_classes: int | Mapping[str, int] | None,
    loss: Loss | None,
    seed: int,
    overwrite: bool,
) -> tuple[list[TaskSamples], tuple[int, ...]]:
    """The samples of new tasks, checked, and the numbers of the tasks to start from.

    Args:
        hnet: the hypernetwork that gets the tasks.
        tasks: samples of each.
        n_classes: number of classes of all, or of each by name; None for the largest label plus
            one.
        loss: a loss of the caller's own.
        seed: seed of the shuffle.
        overwrite: whether they may be known tasks.
    """
    check_named("tasks", tasks)
    if not tasks:
        raise ValueError("`tasks` must name at least one new task, got none")
    for name in tasks:
        _check_kept(hnet.conditioner, name, overwrite)
    known = tuple(range(len(hnet.task_names)))
    if not hnet.conditioner.described:  # a described task may start from itself
        known = tuple(row for row in known if hnet.task_names[row] not in tasks)
    if not known:
        raise ValueError("`overwrite` must leave a known task to start from, got all of them")
    if not (n_classes is None or isinstance(n_classes, (int, Mapping))):
        raise TypeError(f"`n_classes` must be a number, or map names to them, got {n_classes!r}")
    counts = n_classes if isinstance(n_classes, Mapping) else dict.fromkeys(tasks, n_classes)
    for name in counts:
        if name not in tasks:
            raise ValueError(f"`n_classes` names {name!r}, which is not a new task")
    found = [
        TaskSamples.of(name, samples, hnet.device, n_classes=counts.get(name), loss=loss, seed=seed)
        for name, samples in tasks.items()
    ]
    return found, known


def _check_kept(table: Conditioner, name: str, overwrite: bool) -> None:
    """Raise unless a task of this name may be learned."""
    if not isinstance(table, TaskConditioner):
        raise TypeError(
            "this needs a hypernetwork whose `conditioner` is a TaskEmbedding, TaskFeatures or "
            f"TaskExamples, got a {type(table).__name__}"
        )
    if table.described:
        table.index(name)
    elif name not in table.names:
        table.check_new("name", name)
    elif not overwrite:
        raise ValueError(
            f"`name` must not repeat a task, got {name!r}; `overwrite=True` learns it anew"
        )


def check_named(argument: str, tasks: Any) -> None:
    """Raise ``TypeError`` unless samples are given by the names of tasks."""
    if not isinstance(tasks, Mapping):
        raise TypeError(
            f"`{argument}` must map each new task's name to its samples, as in "
            f'{{"hats": (x, y)}}, got a {type(tasks).__name__}'
        )


def pieces(task: TaskSamples, size: int) -> list[tuple[Inputs, Tensor]]:
    """Divide the samples into pieces of about equal size, at most ``size``."""
    count = len(task.y)
    parts = torch.arange(count).tensor_split(-(-count // size))
    slices = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in parts]
    return [(task.x[some], task.y[some]) for some in slices]


def model_pieces(tasks: Sequence[TaskSamples], size: int) -> list[ModelBatch]:
    """The samples of tasks that have equally many `pieces`, piece by piece."""
    each = zip(*[pieces(task, size) for task in tasks], strict=True)
    return [ModelBatch.of(some, list(tasks)) for some in each]


def check_loss(loss: Tensor, task: TaskSamples, when: str = "") -> None:
    """Raise `Unsuitable` unless the loss of a task is finite; ``when`` says which loss it is."""
    if not loss.isfinite():
        raise Unsuitable(
            f"the loss of task {task.name!r} is {loss.item()}{when}; look at its samples"
        )


@contextmanager
def unsuitable_for_one() -> Iterator[None]:
    """Context in which a batch norm that gets a single value a channel raises `Unsuitable`."""
    try:
        yield
    except ValueError as error:
        if has_one_value(error):
            raise Unsuitable(
                "a batch norm cannot use the statistics of a single sample; give more samples"
            ) from error
        raise


@contextmanager
def with_gradients() -> Iterator[None]:
    """Context in which gradients are enabled, even if the caller has disabled them."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "fitting takes gradients, which `torch.inference_mode()` rules out; call it outside, "
            "or within `torch.no_grad()`"
        )
    with torch.enable_grad():
        yield


def _interleaved(y: Tensor) -> Tensor:
    """The order that interleaves the classes, as long as each has samples left."""
    by_class = y.argsort(stable=True)
    _, counts = y[by_class].unique_consecutive(return_counts=True)
    turn = torch.empty_like(by_class)
    turn[by_class] = torch.cat([torch.arange(n, device=y.device) for n in counts.tolist()])
    return turn.argsort(stable=True)
