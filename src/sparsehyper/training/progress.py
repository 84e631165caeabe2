"""The progress display of training: a bar on a terminal, plain lines elsewhere.

It goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
from typing import Any, Self

from sparsehyper._util.extras import require
from sparsehyper._util.text import printable
from sparsehyper.training.evaluate import Evaluation


class Progress:
    """Shows throughput, time left and validation accuracy; a context manager.

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
        self._bar = self._task = None
        if show and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=steps, completed=start, status="")

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        """Show the state of training after `step` updates."""
        self._loss, self._rate = loss, images_per_second
        if self._bar is not None:
            status = f"loss {loss:.4f}  val {self._validation}  {images_per_second:,.0f} images/s"
            self._bar.update(self._task, completed=step, status=status)

    def evaluated(self, step: int, evaluation: Evaluation, seconds_left: float) -> None:
        """Show an evaluation made after `step` updates."""
        self._validation = _score(evaluation.accuracy)
        if self._lines:
            worst = f"worst {_score(evaluation.worst_accuracy)} {printable(evaluation.worst_task)}"
            print(
                f"step {step}/{self._steps}  loss {self._loss:.4f}  val {self._validation} "
                f"({worst})  {self._rate:,.0f} images/s  {_clock(seconds_left)} left",
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
    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[status]}"),
        progress.TimeRemainingColumn(),
        console=require("rich.console", "train").Console(stderr=True),
    )


def _score(value: float) -> str:
    """An accuracy in percent; another metric as it is, where it cannot be a share."""
    return f"{value:.2%}" if 0 <= value <= 1 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
