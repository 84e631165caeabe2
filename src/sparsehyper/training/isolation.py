"""Function calls in separate processes: each has its own peak memory and may crash alone.

Such a process ends with the one that started it, however that one ends. It ignores Ctrl-C, which
the terminal sends to both: the parent passes it on as SIGTERM.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from sparsehyper._util.interrupt import Interrupted, deferred_signals

POLL_SECONDS = 0.2


class ChildError(RuntimeError):
    """The call raised an exception; the message names it."""


class DiedError(ChildError):
    """The process of the call died; the message gives its exit code."""


def call_in_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function(*args)`` in a fresh process with as many threads as this one.

    A signal that asks this process to stop is passed on, and the other process may finish the step
    it is in. A script must not call this on import: its main module needs the usual
    ``if __name__ == "__main__":``.

    Args:
        function: importable by name.
        *args: picklable, as the result must be too.

    Raises:
        ChildError: the function raised, or its process died.
        Interrupted: this process was asked to stop.

    >>> call_in_process(divmod, 7, 2)
    (3, 1)
    """
    with closing(calls_in_processes(function, [args])) as outcomes:
        ((_, outcome),) = outcomes
    if isinstance(outcome, ChildError):
        raise outcome
    return outcome


def calls_in_processes(
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    *,
    workers: int = 1,
    threads: int | None = None,
) -> Generator[tuple[int, Any]]:
    """Call ``function(*args)`` for each of the ``arguments``, each in a fresh process.

    Use it within `contextlib.closing`, which ends the processes when this one fails.

    Args:
        function: as for `call_in_process`.
        arguments: one tuple per call.
        workers: number of processes at a time.
        threads: PyTorch threads per process; None for as many as this process has.

    Yields:
        As each call ends: its number, from 0, and what it returned or a `ChildError`.

    Raises:
        Interrupted: this process was asked to stop. It passed this on, and all calls have ended.
    """
    waiting = enumerate(arguments)
    threads = threads or torch.get_num_threads()
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while True:
            with deferred_signals() as asked_to_stop:
                while len(running) < workers and (item := next(waiting, None)):
                    number, args = item
                    receiver, process = _start(threads, function, args)
                    running[receiver] = number, process
                if not running:
                    return
                while not (ready := wait(list(running), POLL_SECONDS)):
                    if asked_to_stop():
                        break
                outcomes = [_outcome(receiver, running) for receiver in ready]
                if asked_to_stop():
                    for _, process in running.values():
                        process.terminate()
                    while running:
                        _outcome(next(iter(running)), running)
                    raise Interrupted("stopped", 0)
            yield from outcomes
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


@contextmanager
def scratch(directory: Path, name: str = ".tasks") -> Iterator[Path]:
    """Create a temporary folder for files that other processes read.

    A folder that a killed process has left is removed first.

    Args:
        directory: parent of the folder; this process holds its lock.
        name: name of the folder.
    """
    folder = directory / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    threads: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Connection, Any]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context(function).Process(target=_call, args=(sender, threads, function, args))
    try:
        with _blocked(signal.SIGINT):  # the process inherits this
            process.start()
    finally:
        sender.close()
    return receiver, process


def _outcome(receiver: Any, running: dict[Connection, tuple[int, Any]]) -> tuple[int, Any]:
    """Wait for the end of a call; returns its number and its result or a `ChildError`."""
    try:
        succeeded, value = receiver.recv()
    except (EOFError, OSError):
        succeeded, value = False, None
    number, process = running[receiver]
    process.join()
    del running[receiver]
    receiver.close()
    if succeeded:
        return number, value
    if value is not None:
        return number, ChildError(value)
    how = f"the process died with exit code {process.exitcode}"
    if process.exitcode == -9:  # SIGKILL, which Windows has not
        how += ", killed, most likely because memory ran out"
    return number, DiedError(how)


def _call(
    sender: Connection, threads: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Make the call and send its outcome; runs in the other process."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with suppress(BrokenPipeError):  # the parent no longer waits for the outcome
        try:
            sender.send((True, function(*args)))
        except (Exception, KeyboardInterrupt) as error:
            sender.send((False, f"{type(error).__name__}: {error}".removesuffix(": ")))


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context(function: Callable[..., Any]) -> Any:
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    # Import what calls need once, for all of them: what this process has of this package, as later
    # calls may be of other functions. PyTorch's optimisers import its compiler.
    context = multiprocessing.get_context("forkserver")
    own = [name for name in list(sys.modules) if name.split(".")[0] == "sparsehyper"]
    context.set_forkserver_preload([*own, function.__module__, "accelerate", "torch._dynamo"])
    return context
