"""Ctrl-C and SIGTERM that wait for the step in hand."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and did so after a whole step.

    Attributes:
        step: updates made.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Within, a first signal only makes the function that this yields return True.

    A second one acts at once, unless it comes so soon that it is the same one again: a launcher of
    several processes passes on the Ctrl-C that the terminal has already sent them. Outside the
    main thread, where Python allows no handlers, signals act as they always do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    asked_at: float | None = None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = time.monotonic()
        elif time.monotonic() - asked_at > ECHO_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield lambda: asked_at is not None
    finally:
        restore()
