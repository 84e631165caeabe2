"""What tests call in another process, which must find it by name."""

from __future__ import annotations

import os
import signal
import threading
import time


def process_and_argument(argument):
    return os.getpid(), argument


def raise_error(message):
    raise ValueError(message)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def outlive_ctrl_c(path):
    os.kill(os.getpid(), signal.SIGINT)
    return "it went on"


def nap_unless_first(settings, folder):
    """The first call returns once the second has begun."""
    if settings["i"] > 0:
        nap(settings, folder)
    while not list(folder.glob("*.pid")):
        time.sleep(0.01)


def finish_when_told(path):
    """Wait for the signal, then finish what is in hand."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    path.touch()
    path.write_text("finished" if told.wait(10) else "never told")


def touch(settings, folder):
    """Doubles a number, and notes that it was called."""
    with (folder / "log").open("a") as log:
        log.write(f"{settings['i']}\n")
    return {"doubled": 2 * settings["i"]}


def half(settings, folder):
    return {"half": 1 / settings["i"]}


def nap(settings, folder):
    """Says which process it is in, and sleeps for longer than any test."""
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)
    return {"i": settings["i"]}
