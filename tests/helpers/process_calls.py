"""Functions that tests call in another process, which imports them by name."""

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


def pid_or_death(die):
    if die:
        kill_itself()
    return os.getpid()


def outlive_ctrl_c(path):
    os.kill(os.getpid(), signal.SIGINT)
    return "it went on"


def nap_unless_first(settings, folder):
    """Return from the first call once the second has begun; never return from the second."""
    if settings["i"] > 0:
        nap(settings, folder)
    while not list(folder.glob("*.pid")):
        time.sleep(0.01)


def finish_when_told(path):
    """Wait for SIGTERM, then finish the work in hand."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    path.touch()
    told.wait()
    path.write_text("finished")


def touch(settings, folder):
    """Double a number, and log the call."""
    with (folder / "log").open("a") as log:
        log.write(f"{settings['i']}\n")
    return {"doubled": 2 * settings["i"]}


def half(settings, folder):
    return {"half": 1 / settings["i"]}


def nap(settings, folder):
    """Write the id of this process into the name of a file, and sleep until killed."""
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(3600)  # longer than the time limit of any test
