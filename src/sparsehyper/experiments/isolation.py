"""One call in a process of its own, so that its peak memory and its crash are its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from sparsehyper.training import Interrupted
from sparsehyper.training.interrupt import deferred_signals

POLL_SECONDS = 0.2


class ChildError(RuntimeError):
    """The call raised or its process died; the message says how."""


def call_in_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)`` in a fresh process.

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
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=_call, args=(sender, function, args, kwargs))
    with deferred_signals() as asked_to_stop:
        process.start()
        sender.close()
        told = False
        while not receiver.poll(POLL_SECONDS):
            if asked_to_stop() and not told:
                process.terminate()
                told = True
        try:
            succeeded, value = receiver.recv()
        except EOFError:
            succeeded, value = False, None
        process.join()
    if asked_to_stop():
        raise Interrupted("stopped", 0)
    if succeeded:
        return value
    raise ChildError(value or f"the process died with exit code {process.exitcode}")


def _call(
    sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        sender.send((True, function(*args, **kwargs)))
    except (Exception, KeyboardInterrupt) as error:
        sender.send((False, str(error) or type(error).__name__))


def context() -> Any:
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    # What every run imports is imported once; PyTorch's optimisers import its compiler.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparsehyper.experiments.run", "accelerate", "torch._dynamo"])
    return context
