"""The application: its commands, and how their errors are reported."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from inspect import signature
from typing import Annotated, Any

import typer

from sparsehyper._util.interrupt import raising_signals
from sparsehyper.lab.cli.adapt import adapt
from sparsehyper.lab.cli.bench import bench
from sparsehyper.lab.cli.compare import compare
from sparsehyper.lab.cli.doctor import doctor
from sparsehyper.lab.cli.evaluate import evaluate
from sparsehyper.lab.cli.export import export
from sparsehyper.lab.cli.inspect import inspect
from sparsehyper.lab.cli.output import as_options, echo, naming_options, warnings_as_lines
from sparsehyper.lab.cli.predict import predict
from sparsehyper.lab.cli.report import report
from sparsehyper.lab.cli.study import study
from sparsehyper.lab.cli.tasks import tasks
from sparsehyper.lab.cli.train import train

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_MEMORY_OPTIONS = ("batch_size", "tasks_per_batch", "eval_batch_size", "budget", "workers")

app = typer.Typer(
    name="sparsehyper",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command report its errors as a line on stderr and an exit code."""
    # Errors and warnings name Python arguments; the user gave options.
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
    @naming_options(options)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            with raising_signals(), warnings_as_lines():
                command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise SystemExit(str(error) or "interrupted") from None  # `run` prints it
        except (typer.Exit, BrokenPipeError):
            raise  # a closed pipe is the reader's choice and no error
        except (
            *(ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError),
            *(ArithmeticError, MemoryError),
        ) as error:
            if os.environ.get("SPARSEHYPER_TRACEBACK"):
                raise
            if _is_out_of_memory(error):
                smaller = [options[name] for name in _MEMORY_OPTIONS if name in options]
                remedy = f"give a smaller {' or '.join(smaller)}" if smaller else "free some"
                what = str(error).partition("\n")[0] or "an allocation failed"
                echo(f"error: out of memory ({what}); {remedy}", err=True)
                raise typer.Exit(FAILED) from None
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                where = f", at {error.filename}" if error.filename else ""
                remedy = "free some space and start again; complete files are kept"
                echo(f"error: {os.strerror(error.errno)}{where}; {remedy}", err=True)
                raise typer.Exit(FAILED) from None
            # str() of a KeyError is the repr of its message.
            message = error.args[0] if isinstance(error, LookupError) and error.args else error
            echo(f"error: {as_options(message)}", err=True)
            from sparsehyper.training import NonFiniteError

            failed = isinstance(error, (NonFiniteError, RuntimeError))
            raise typer.Exit(FAILED if failed else BAD_INPUT) from None

    return wrapper


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    # PyTorch's CPU allocator has no exception type for this.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


for command in (
    *(train, evaluate, compare, inspect, adapt, predict, export, tasks, study, bench, report),
    doctor,
):
    app.command()(_reporting(command))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        echo(metadata.version("sparsehyper"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """One hypernetwork for many tasks.

    Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted. Set
    SPARSEHYPER_TRACEBACK=1 to see the traceback of an error.
    """


def run(arguments: list[str] | None = None) -> int:
    """Run the command line, by default with this process's arguments; returns the exit code."""
    code: int | str | None = 0
    with raising_signals() as came:
        try:
            app(arguments, obj=sys.argv[1:] if arguments is None else arguments)
        except SystemExit as stop:
            code = stop.code
        except OSError as error:  # raised while printing help, outside any command
            echo(f"error: {error}", err=True)
            code = FAILED
    if isinstance(code, str) or (code and came()):  # typer reports no signal
        echo(code if isinstance(code, str) else "interrupted", err=True)
        return INTERRUPTED
    return code or 0
