"""The application: its commands, and what becomes of their errors."""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import os
import re
from collections.abc import Callable
from inspect import signature
from typing import Annotated, Any

import torch
import typer

from sparsehyper.lab.cli.adapt import adapt
from sparsehyper.lab.cli.bench import bench
from sparsehyper.lab.cli.compare import compare
from sparsehyper.lab.cli.evaluate import evaluate
from sparsehyper.lab.cli.export import export
from sparsehyper.lab.cli.inspect import inspect
from sparsehyper.lab.cli.output import echo, warnings_as_lines
from sparsehyper.lab.cli.predict import predict
from sparsehyper.lab.cli.report import report
from sparsehyper.lab.cli.study import study
from sparsehyper.lab.cli.tasks import tasks
from sparsehyper.lab.cli.train import train
from sparsehyper.training import NonFiniteError
from sparsehyper.training.interrupt import raising_signals

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LARGE = ("batch_size", "tasks_per_batch", "eval_batch_size", "budget", "workers")

app = typer.Typer(
    name="sparsehyper",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _reporting(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its errors as a line on stderr and an exit code."""
    # Errors name arguments as Python does; the reader of these has options.
    names = [name for name in signature(command).parameters if name != "context"]
    options = {name: f"--{name.replace('_', '-')}" for name in names} | {
        "source": "--data",
        "root": "--data",
        "file": "--out",
        "path": "--out",
        "directory": "--out",
    }
    if "name" in names:
        options["name"] = "NAME"
    if "run" in names:
        options |= {"run": "RUN", "directory": "RUN"}

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            with raising_signals(), warnings_as_lines():
                command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise SystemExit(str(error) or "interrupted") from None  # told by `run`
        except (typer.Exit, BrokenPipeError):
            raise  # nobody reads on: no error of ours
        except (
            *(ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError),
            *(ArithmeticError, MemoryError),
        ) as error:
            if os.environ.get("SPARSEHYPER_TRACEBACK"):
                raise
            if _is_out_of_memory(error):
                smaller = [options[name] for name in _LARGE if name in options]
                remedy = f"give a smaller {' or '.join(smaller)}" if smaller else "free some"
                what = str(error).partition("\n")[0] or "an allocation failed"
                echo(f"error: out of memory ({what}); {remedy}", err=True)
                raise typer.Exit(FAILED) from None
            if isinstance(error, OSError) and error.errno in _FULL:
                where = f", at {error.filename}" if error.filename else ""
                remedy = "make room and start again; what was written whole is kept"
                echo(f"error: {os.strerror(error.errno)}{where}; {remedy}", err=True)
                raise typer.Exit(FAILED) from None
            # A KeyError's own text is the repr of its message.
            message = error.args[0] if isinstance(error, LookupError) and error.args else error
            text = re.sub(r"`(\w+)`", lambda m: f"`{options.get(m[1], m[1])}`", str(message))
            echo(f"error: {text}", err=True)
            failed = isinstance(error, (NonFiniteError, RuntimeError))
            raise typer.Exit(FAILED if failed else BAD_INPUT) from None

    return wrapper


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's allocator for the CPU has no type of its own for this.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


for command in (
    *(train, evaluate, compare, inspect, adapt, predict, export, tasks, study, bench, report),
):
    app.command()(_reporting(command))


def _version(wanted: bool) -> None:
    if wanted:
        echo(importlib.metadata.version("sparsehyper"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    """One hypernetwork for many tasks.

    Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted. Set
    SPARSEHYPER_TRACEBACK=1 to see where an error comes from.
    """


def run(arguments: list[str] | None = None) -> int:
    """Run the command line, by default this process's, and return its exit code."""
    code: int | str | None = 0
    with raising_signals() as came:
        try:
            app(arguments)
        except SystemExit as stop:
            code = stop.code
        except OSError as error:  # of help, which has no command to report it
            echo(f"error: {error}", err=True)
            code = FAILED
    if isinstance(code, str) or (code and came()):  # typer says nothing of a signal
        echo(code if isinstance(code, str) else "interrupted", err=True)
        return INTERRUPTED
    return code or 0
