"""Accuracy, loss and entropy of every task, each among its own classes (`mask_classes`).

Labels may be numbers to predict, floats ``[batch, outputs]``. The loss is then the mean squared
error, and what stands for the accuracy is R²: 1 - error / variance, the same variance for all
tasks, that of the labels within tasks: Σ squares ÷ Σ (samples - 1). Where no task has two labels
that differ, there is no R², and minus the loss is the score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_integer, check_number
from sparsehyper._util.classifiers import mask_classes
from sparsehyper._util.devices import to_device
from sparsehyper._util.inputs import Inputs
from sparsehyper._util.modes import evaluation_mode
from sparsehyper._util.objectives import squares_within, variance_within
from sparsehyper.training.config import PRECISIONS
from sparsehyper.training.processes import Processes
from sparsehyper.training.sources import ByTask, Measure, Measures, Tasks, condition

ACCURACY, R_SQUARED, METRIC = "accuracy", "R²", "metric"

LabelledBatch = tuple[Any, Tensor, Tensor]
"""Inputs, classes ``[batch]`` or numbers ``[batch, outputs]``, and tasks ``[batch]``."""


@runtime_checkable
class EvaluationData(Protocol):
    """Samples to evaluate on, task by task."""

    @property
    def counts(self) -> Sequence[int]:
        """Number of samples of each task."""

    def batches(self, task: int, batch_size: int) -> Iterator[LabelledBatch]:
        """All samples of a task once, in order."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        tasks: task names, in order.
        accuracies: accuracy of each task, in [0, 1]; of numbers R², at most 1; or its mean of a
            ``metric`` of one's own, or minus its loss where there is neither.
        losses: mean cross entropy of each task, in nats; of numbers the mean squared error; or the
            mean of a ``loss`` of one's own.
        score: what ``accuracies`` are: ``"accuracy"``, ``"R²"`` or ``"metric"``.
        entropies: mean entropy of each task's predictions, in nats: 0 where the model is certain;
            None of numbers, of a loss or metric of one's own, and in results from before it was
            measured.
    """

    tasks: tuple[str, ...]
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    score: str = ACCURACY
    entropies: tuple[float, ...] | None = None

    @property
    def accuracy(self) -> float:
        """Mean accuracy over tasks; all tasks have equal weight."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def loss(self) -> float:
        """Mean loss over tasks; all tasks have equal weight."""
        return sum(self.losses) / len(self.losses)

    @property
    def entropy(self) -> float | None:
        """Mean entropy over tasks; all tasks have equal weight."""
        return None if self.entropies is None else sum(self.entropies) / len(self.entropies)

    def is_better_than(self, other: Evaluation) -> bool:
        """Whether the accuracy is higher or, if both are equal, the loss lower.

        With R² the loss alone decides, whatever variance it was compared with.
        """
        if self.score == R_SQUARED:
            return self.loss < other.loss
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)

    @property
    def worst_accuracy(self) -> float:
        """Accuracy of `worst_task`."""
        return min(self.accuracies)

    @property
    def worst_task(self) -> str:
        """Name of the task with the lowest accuracy, the first one on a tie."""
        return self.tasks[self.accuracies.index(min(self.accuracies))]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict, with the means and the worst task."""
        score = {} if self.score == ACCURACY else {"score": self.score}
        values = {
            **score,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "worst_task": self.worst_task,
            "worst_accuracy": self.worst_accuracy,
            "accuracies": dict(zip(self.tasks, self.accuracies, strict=True)),
            "losses": dict(zip(self.tasks, self.losses, strict=True)),
        }
        if self.entropies is not None:
            values["entropy"] = self.entropy
            values["entropies"] = dict(zip(self.tasks, self.entropies, strict=True))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        accuracies, losses = values["accuracies"], values["losses"]
        score = values.get("score", ACCURACY)
        entropies = tuple(values["entropies"].values()) if "entropies" in values else None
        scores = tuple(accuracies.values())
        return cls(tuple(accuracies), scores, tuple(losses.values()), score, entropies)

    def shown(self, value: float) -> str:
        """An accuracy or R² in words."""
        return f"{value:.2%}" if self.score == ACCURACY else f"{self.score} {value:.3f}"


def evaluate(
    model: nn.Module,
    data: Iterable[Any] | EvaluationData,
    *,
    names: Sequence[str] | None = None,
    n_classes: Sequence[int] | None = None,
    batch_size: int = 500,
    precision: str = "fp32",
    loss: Measure | None = None,
    metric: Measure | None = None,
    variance: float | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Accuracy, loss and entropy of a model on every task, in evaluation mode, without gradients.

    Args:
        model: called as `train` calls it, with an int ``task``. Its mode is restored afterwards.
        data: batches as `train` takes them; or an object as `EvaluationData`.
        names: names of the tasks of the data, as `train` takes them; by default those of a
            hypernetwork, or ``"task 0"``, ``"task 1"``, ….
        n_classes: number of classes of each task, as `train` takes it; by default every output
            counts.
        batch_size: number of samples per batch, also for ``loss`` and ``metric``. Batches that are
            iterated over are put together anew; only samples of different shapes, such as sequences
            of several lengths, stay apart.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
        loss, metric: as `train` takes them.
        variance: of labels that are numbers, within tasks, for R²; above 0. None for that of the
            labels of ``data``, which takes at least a task with two samples.
        processes: processes to share the tasks among; each returns the whole result.

    Raises:
        ValueError: a task has no samples, or the lengths of the arguments differ.

    >>> class Digits:  # a task of two samples
    ...     counts = (2,)
    ...     def batches(self, task, batch_size):
    ...         yield torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([0, 0]), torch.zeros(2)
    >>> class Model(nn.Module):
    ...     def forward(self, x, task):
    ...         return x
    >>> evaluate(Model(), Digits()).accuracy
    0.5
    """
    check_integer("batch_size", batch_size, minimum=1)
    check_choice("precision", precision, PRECISIONS)
    if variance is not None:
        check_number("variance", variance, above=0)
    counted = len(data.counts) if isinstance(data, EvaluationData) else None
    tasks = Tasks.of(names, model, counted)
    if not isinstance(data, EvaluationData):
        data = ByTask(data, tasks.named)
    names, numbers = check_tasks(data.counts, tasks.named, n_classes), tasks.numbers.tolist()
    tensor = next(model.parameters(), torch.empty(0))
    here = processes or Processes(tensor.device)
    limits = [None] * len(names) if n_classes is None else n_classes
    # Sums stay on the device until the end, so that nothing waits for it before.
    measures = Measures(loss, metric, n_classes)
    own = loss is not None or metric is not None
    totals = torch.zeros(6, len(names), device=here.device)
    scored, lost, weights, spread, kinds, entropy = totals
    with evaluation_mode(model), torch.no_grad(), autocast(here.device, precision):
        for task in range(here.rank, len(names), here.count):
            labels = []
            for x, y, _ in data.batches(task, batch_size):
                measures.check_labels(y, limits[task])
                y = to_device(y, here.device)
                out = Inputs.of(x).to(here.device).call(model, **condition(model, numbers[task]))
                losses = measures.losses(out, y, limits[task])
                loss_sum, weight = measures.total(losses, y)
                lost[task] += loss_sum
                weights[task] += weight
                if own:
                    if metric is not None:
                        scored[task] += measures.scores(out, y, limits[task]).sum()
                elif y.is_floating_point():
                    labels.append(y.reshape(len(y), -1))
                else:
                    logits, y = mask_classes(out, limits[task]), y.long()
                    right = (logits.argmax(1) == y).float()
                    scored[task] += right.masked_fill(y < 0, torch.nan).sum()
                    entropy[task] += prediction_entropy(logits)
            if labels:
                kinds[task] = 1
                spread[task] = squares_within(torch.cat(labels))
    totals, counts = here.sum(totals).cpu().double(), torch.tensor(data.counts)
    scores, entropies = ((totals / counts)[i].tolist() for i in (0, 5))
    means = (totals[1] / totals[2]).tolist()
    if own:
        if metric is None:
            scores = [-mean for mean in means]
        return Evaluation(tuple(names), tuple(scores), tuple(means), METRIC)
    kinds = totals[4].bool()
    if bool(kinds.any()) and not bool(kinds.all()):
        of_numbers, of_classes = names[int(kinds.int().argmax())], names[int(kinds.int().argmin())]
        raise ValueError(
            f"tasks of classes and of numbers have no common score: labels of task {of_classes!r} "
            f"are class numbers, those of {of_numbers!r} floating-point numbers; give a `metric`"
        )
    if not bool(kinds.any()):
        return Evaluation(tuple(names), tuple(scores), tuple(means), entropies=tuple(entropies))
    variance = variance or variance_within(float(totals[3].sum()), data.counts)
    if variance is None:
        return Evaluation(tuple(names), tuple(-mean for mean in means), tuple(means), METRIC)
    scores = [1 - mean / variance for mean in means]
    return Evaluation(tuple(names), tuple(scores), tuple(means), R_SQUARED)


def prediction_entropy(logits: Tensor) -> Tensor:
    """The sum over samples of the entropy of their predictions, in nats.

    Args:
        logits: ``[batch, outputs]``; -inf for outputs that do not count.

    >>> prediction_entropy(torch.tensor([[0.0, 0.0, -torch.inf]]))
    tensor(0.6931)
    """
    return torch.special.entr(logits.softmax(1)).sum()


def check_tasks(
    counts: Sequence[int], names: tuple[str, ...], n_classes: Sequence[int] | None
) -> tuple[str, ...]:
    """The names of the tasks to evaluate, checked.

    Raises:
        ValueError: the arguments do not describe the same tasks, a name occurs twice, a task has
            no samples (``counts``), or a number of classes is below 1.
    """
    count = len(counts)
    for argument, values in (("names", names), ("n_classes", n_classes)):
        if values is not None and len(values) != count:
            raise ValueError(
                f"`{argument}` must have one entry for each of the {count} tasks, got {len(values)}"
            )
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise ValueError(f"`names` must not repeat a task's name, got {name!r} twice")
        seen.add(name)
        if counts[i] == 0:
            raise ValueError(
                f"task {name!r} has no samples to evaluate on; give it some, or give `names` "
                "without it"
            )
    for value in n_classes or ():
        check_integer("n_classes", value, minimum=1)
    return names


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
