"""The progress display of training: a bar on a terminal, plain lines elsewhere.

It goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from sparsehyper._util.extras import require
from sparsehyper._util.text import printable
from sparsehyper.training.evaluate import Evaluation

_WIDE = 80  # columns, from which there is room for a bar


class Progress:
    """Shows progress, throughput, times and validation accuracy; a context manager.

    Args:
        steps: total number of updates.
        start: number of updates already made.
        show: whether to show anything.
    """

    def __init__(self, steps: int, start: int = 0, *, show: bool = True) -> None:
        self._steps = steps
        self._lines = show and not sys.stderr.isatty()
        self._validation = "-"
        self._loss = self._rate = 0.0
        self._started = time.perf_counter()
        self._bar = self._task = None
        if show and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=steps, completed=start, status="")

    def update(self, step: int, loss: float, rate: float) -> None:
        """Show the state of training after `step` updates."""
        self._loss, self._rate = loss, rate
        if self._bar is not None:
            status = f"loss {loss:.4f}  val {self._validation}"
            if self._bar.console.width >= _WIDE:
                status += f"  {rate:,.0f} samples/s"
            self._bar.update(self._task, completed=step, status=status)

    def evaluated(self, step: int, evaluation: Evaluation, seconds_left: float) -> None:
        """Show an evaluation made after `step` updates."""
        self._validation = evaluation.shown(evaluation.accuracy)
        if self._lines:
            worst = f"worst {evaluation.shown(evaluation.worst_accuracy)} "
            worst += printable(evaluation.worst_task)
            elapsed = _clock(time.perf_counter() - self._started)
            print(
                f"step {step}/{self._steps} ({step / self._steps:.0%})  loss {self._loss:.4f}  "
                f"val {self._validation} ({worst})  {self._rate:,.0f} samples/s  "
                f"{elapsed} elapsed  {_clock(seconds_left)} left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Any:
    progress = require("rich.progress", "train")
    console = require("rich.console", "train").Console(stderr=True)
    columns = [progress.TaskProgressColumn(), progress.TimeElapsedColumn()]
    if console.width >= _WIDE:
        columns = [progress.BarColumn(), progress.MofNCompleteColumn(), *columns]
        columns.append(progress.TimeRemainingColumn())
    return progress.Progress(
        *columns, progress.TextColumn("{task.fields[status]}"), console=console
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
