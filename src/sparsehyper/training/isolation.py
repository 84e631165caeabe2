"""Calls in processes of their own, so that their peak memory and their crash are their own.

A process that makes a call ends with the one that started it, however that one ends. It takes no
notice of Ctrl-C, which the terminal sends to both: the one that started it passes it on as SIGTERM.
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

from sparsehyper.training.interrupt import Interrupted, deferred_signals

POLL_SECONDS = 0.2


class ChildError(RuntimeError):
    """The call raised; the message says what."""


class DiedError(ChildError):
    """The process of the call died; the message says how."""


def call_in_process(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a fresh process.

    A signal that asks this process to stop is passed on, and the other process may finish what
    it has in hand. A script that calls this must not do so on import: its main module needs the
    usual ``if __name__ == "__main__":``.

    Args:
        function: importable by name, as its arguments and what it returns must be picklable.

    Raises:
        ChildError: it raised, or its process died.
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
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], workers: int = 1
) -> Generator[tuple[int, Any]]:
    """``function(*args)`` for each of the ``arguments``, each in a fresh process.

    Use it within `contextlib.closing`, which ends the processes when this one fails.

    Args:
        function: as for `call_in_process`.
        arguments: of the calls.
        workers: processes at a time.

    Yields:
        As each call ends: its number, from 0, and what it returned or a `ChildError`.

    Raises:
        Interrupted: this process was asked to stop; the other processes were too, and have ended.
    """
    waiting = enumerate(arguments)
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while True:
            with deferred_signals() as asked_to_stop:
                while len(running) < workers and (item := next(waiting, None)):
                    number, args = item
                    receiver, process = _start(function, args)
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
def scratch(directory: Path) -> Iterator[Path]:
    """A folder ``.tasks`` for what other processes read, gone in the end.

    What a process that was killed has left of it is removed first.

    Args:
        directory: where it is; this process holds its lock.
    """
    folder = directory / ".tasks"
    if folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Connection, Any]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context(function).Process(target=_call, args=(sender, function, args))
    try:
        with _blocked(signal.SIGINT):  # which the process inherits
            process.start()
    finally:
        sender.close()
    return receiver, process


def _outcome(receiver: Any, running: dict[Connection, tuple[int, Any]]) -> tuple[int, Any]:
    """What a call returned, or a `ChildError`; waits for the end of its process."""
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
    if process.exitcode == -signal.SIGKILL:
        how += ", killed, most likely for want of memory"
    return number, DiedError(how)


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """What the other process does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    with suppress(BrokenPipeError):  # nobody waits for the outcome
        try:
            sender.send((True, function(*args)))
        except (Exception, KeyboardInterrupt) as error:
            sender.send((False, f"{type(error).__name__}: {error}".removesuffix(": ")))


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which unblocks signals where it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context(function: Callable[..., Any]) -> Any:
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    # What every call needs is imported once; PyTorch's optimisers import its compiler.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "accelerate", "torch._dynamo"])
    return context
