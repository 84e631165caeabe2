"""Losses, gradients and scores that are not finite: errors that name the tasks they came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sparsehyper.heads import NonFiniteFeatures
from sparsehyper.training.checkpoint import TrainingState
from sparsehyper.training.evaluate import Evaluation
from sparsehyper.training.processes import Processes
from sparsehyper.training.run import Run
from sparsehyper.training.sources import Tasks


class NonFiniteError(ValueError):
    """A loss or gradient is infinite or NaN.

    Attributes:
        step: number of the update that was not made, from 1.
        tasks: names of the tasks that caused it.
    """

    def __init__(self, message: str, step: int, tasks: tuple[str, ...]) -> None:
        super().__init__(message)
        self.step = step
        self.tasks = tasks


def non_finite(
    loss: float,
    norm: float,
    state: TrainingState,
    seen: Sequence[tuple[Tensor, int | Tensor]],
    known: Tasks,
    here: Processes,
    run: Run | None,
) -> NonFiniteError:
    """The error of an update whose loss or gradient is not finite.

    Args:
        loss: the mean loss of this process.
        norm: the norm of the gradient.
        state: the state before the update.
        seen: losses ``[batch]`` of the update's batches, and their tasks, by the model's numbers.
        known: the tasks.
        here: the processes, which all call this.
        run: the run, if there is one.
    """
    present, guilty = counts = torch.zeros(2, len(known.known), device=here.device)
    for losses, task in seen:
        present[task] = 1
        if isinstance(task, int):
            guilty[task] += (~losses.isfinite()).sum()
        else:
            guilty[task.to(losses.device)[~losses.isfinite()]] = 1
    present, guilty = here.sum(counts).bool().tolist()
    chosen = guilty if any(guilty) else present
    pairs = zip(known.known, known.numbers.tolist(), strict=True)
    tasks = tuple(name for name, number in pairs if chosen[number])
    what = f"loss is {loss}" if any(guilty) else f"norm of the gradient is {norm}"
    return NonFiniteError(
        f"the {what} at step {state.step + 1}, on {_list(tasks)}; stopped before the update. "
        f"{_kept(run)}Lower `lr`, add `warmup`, or look for extreme values in the samples of "
        f"{'this task' if len(tasks) == 1 else 'these tasks'}",
        state.step + 1,
        tasks,
    )


@contextmanager
def features_finite(state: TrainingState, run: Run | None) -> Iterator[None]:
    """Context in which features that are not finite are a `NonFiniteError`: training diverged."""
    try:
        yield
    except NonFiniteFeatures as error:
        raise NonFiniteError(
            f"after step {state.step} the {error}. {_kept(run)}Lower `lr`, or add `warmup`",
            state.step,
            (error.task,),
        ) from error


def check_finite(evaluation: Evaluation, state: TrainingState, run: Run | None) -> None:
    """Raise `NonFiniteError` if a task's validation loss or score is not finite."""
    tasks = tuple(
        name
        for name, loss in zip(evaluation.tasks, evaluation.losses, strict=True)
        if not math.isfinite(loss)
    )
    if tasks:
        raise NonFiniteError(
            f"the validation loss is not finite after step {state.step}, on {_list(tasks)}. "
            f"{_kept(run)}Lower `lr`, add `warmup`, or look at the task's validation samples",
            state.step,
            tasks,
        )
    scored = zip(evaluation.tasks, evaluation.accuracies, strict=True)
    if tasks := tuple(name for name, score in scored if not math.isfinite(score)):
        raise NonFiniteError(
            f"the `metric` is not finite after step {state.step}, on {_list(tasks)}. {_kept(run)}"
            "Let it return a number for every batch of validation samples",
            state.step,
            tasks,
        )


def _list(tasks: Sequence[str]) -> str:
    return f"{'task' if len(tasks) == 1 else 'tasks'} {', '.join(map(repr, tasks))}"


def _kept(run: Run | None) -> str:
    return f"The last good checkpoint is {run.last}. " if run and run.last.exists() else ""
