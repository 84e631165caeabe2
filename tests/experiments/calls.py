"""What test_isolation.py calls in another process, which must find it by name."""

from __future__ import annotations

import os
import signal
import threading


def process_and_argument(argument):
    return os.getpid(), argument


def raise_error(message):
    raise ValueError(message)


def finish_when_told(path):
    """Wait for the signal, then finish what is in hand."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    path.touch()
    path.write_text("finished" if told.wait(10) else "never told")
