"""Ctrl-C and SIGTERM: both ask to stop, and training finishes its current step first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0

Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and stopped after a complete step.

    Attributes:
        step: number of updates made.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer signals: within the block, a first signal only sets a flag.

    A second signal acts at once, unless it follows so soon that it is the same one: a launcher of
    several processes passes on the Ctrl-C that the terminal has already sent to them. Outside the
    main thread, where Python allows no handlers, signals act as usual; an ignored signal stays
    ignored.

    Yields:
        A function that tells whether a signal has come.
    """
    asked_at: float | None = None

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = time.monotonic()
        elif time.monotonic() - asked_at > ECHO_SECONDS:
            restore()
            signal.raise_signal(number)

    restore = _handle(ask)
    try:
        yield lambda: asked_at is not None
    finally:
        restore()


@contextmanager
def raising_signals() -> Iterator[Callable[[], bool]]:
    """Context in which SIGTERM raises ``KeyboardInterrupt``, as Ctrl-C does.

    Any error after a signal becomes a ``KeyboardInterrupt`` too, as some libraries turn an
    interrupt into an error of their own. Outside the main thread, and for an ignored signal,
    nothing changes.

    Yields:
        A function that tells whether a signal has come.
    """
    came = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    restore = _handle(interrupt)
    try:
        yield lambda: came
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        restore()


def _handle(handler: Handler) -> Callable[[], None]:
    """Install a handler for signals that are not ignored; returns a function that undoes it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    for number in before:
        signal.signal(number, handler)
    return restore
