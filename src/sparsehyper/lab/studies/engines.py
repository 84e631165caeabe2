"""Where cells are computed: in processes of this machine, by SLURM, or by Ray.

An engine is a text:

===============================  ===================================================================
``local``                        processes of this machine
``slurm:partition=P,time=600``   SLURM's jobs, submitted from this machine by ``submitit``; with
                                 ``partition``, ``account``, ``qos``, ``time`` (minutes), ``mem``
                                 (GB) and ``gpus`` of a job, each of which may be left out;
                                 ``time`` is a day then
``ray:address=A,mem=8,gpus=1``   tasks of the Ray cluster at ``address``, with ``mem`` (GB) and
                                 ``gpus`` for each; without ``address`` that of ``RAY_ADDRESS``, or
                                 one that runs on this machine, or one started for this
===============================  ===================================================================

All machines must see the study's directory under the same path and have this package installed.
Jobs and tasks that are not done end with the command, unless it is killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsehyper._util.checks import check_choice
from sparsehyper._util.extras import require
from sparsehyper._util.interrupt import Interrupted, deferred_signals
from sparsehyper.training.isolation import ChildError, DiedError, calls_in_processes, scratch

_POLL_SECONDS = 0.5
_MINUTES = 24 * 60  # of a job, by default; submitit's are 5
# Engines, with their settings as submitit and Ray call them, and the types of these.
_SETTINGS: dict[str, dict[str, tuple[str, type]]] = {
    "local": {},
    "slurm": {
        "partition": ("slurm_partition", str),
        "account": ("slurm_account", str),
        "qos": ("slurm_qos", str),
        "time": ("timeout_min", int),
        "mem": ("mem_gb", int),
        "gpus": ("gpus_per_node", int),
    },
    "ray": {"address": ("address", str), "mem": ("memory", int), "gpus": ("num_gpus", int)},
}

Outcomes = Generator[tuple[int, Any]]
"""As each call ends: its number, from 0, and what it returned or a `ChildError`."""


class _Job(NamedTuple):
    done: Callable[[], bool]
    result: Callable[[], Any]
    cancel: Callable[[], object]


def calls_by(
    engine: str,
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    directory: Path,
    *,
    workers: int,
) -> Outcomes:
    """Call ``function(*args)`` for each of the ``arguments``, with one thread each.

    Use it within `contextlib.closing`, which ends the calls when this process fails.

    Args:
        engine: see above; `check_engine` accepts it.
        function: importable by name.
        arguments: one tuple per call.
        directory: where all machines can read and write; the caller holds its lock.
        workers: number of calls at a time.

    Raises:
        Interrupted: this process was asked to stop.
        MissingExtraError: the engine's library is not installed.
    """
    kind, settings = check_engine(engine)
    if kind == "local":
        yield from calls_in_processes(function, arguments, workers=workers, threads=1)
        return
    if kind == "ray":
        with _ray(**settings) as submit:
            yield from _outcomes(submit, function, arguments, workers)
        return
    with scratch(directory, ".jobs") as folder:
        submit = _to_slurm("slurm", folder, settings)
        yield from _outcomes(submit, function, arguments, workers)


def check_engine(engine: str) -> tuple[str, dict[str, Any]]:
    """Read an engine: its kind, and its settings as submitit or Ray call them.

    Raises:
        ValueError: an unknown kind or setting, or a value that it cannot take.

    >>> check_engine("slurm:partition=gpu,gpus=1")
    ('slurm', {'slurm_partition': 'gpu', 'gpus_per_node': 1})
    """
    kind, _, rest = engine.partition(":")
    check_choice("engine", kind, _SETTINGS)
    settings: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        name, _, value = item.partition("=")
        known = _SETTINGS[kind]
        if name not in known or not value:
            allowed = f"settings such as {', '.join(f'{n}=…' for n in known)}" if known else "none"
            raise ValueError(f"`engine` {kind!r} takes {allowed}, got {item!r}")
        key, type_ = known[name]
        if type_ is int and not (value.isascii() and value.isdigit()):
            raise ValueError(f"`engine` must have a whole number for {name!r}, got {value!r}")
        settings[key] = type_(value)
    return kind, settings


def _to_slurm(cluster: str, folder: Path, settings: dict[str, Any]) -> Callable[..., _Job]:
    submitit = require("submitit", "slurm")
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    settings = {"timeout_min": _MINUTES, **settings}
    executor.update_parameters(name="sparsehyper", cpus_per_task=1, **settings)

    def submit(*call: Any) -> _Job:
        job = executor.submit(_attempt, *call)
        return _Job(job.done, job.result, job.cancel)

    return submit


@contextmanager
def _ray(
    address: str | None = None, memory: int | None = None, num_gpus: int | None = None
) -> Iterator[Callable[..., _Job]]:
    """Context with a function that submits calls to Ray, each of which has a process of its own."""
    ray = require("ray", "ray")
    connected = ray.is_initialized()  # by the caller
    if not connected:
        ray.init(address=address, log_to_driver=False)
    bytes_ = None if memory is None else memory * 2**30
    options = {"num_cpus": 1, "num_gpus": num_gpus, "memory": bytes_}
    task = ray.remote(max_calls=1, max_retries=0, **options)(_attempt)

    def submit(*call: Any) -> _Job:
        ref = task.remote(*call)
        return _Job(
            lambda: bool(ray.wait([ref], timeout=0)[0]),
            lambda: ray.get(ref),
            lambda: ray.cancel(ref, force=True),
        )

    try:
        yield submit
    finally:
        if not connected:
            ray.shutdown()


def _outcomes(
    submit: Callable[..., _Job],
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    workers: int,
) -> Outcomes:
    waiting = enumerate(arguments)
    running: dict[int, _Job] = {}
    try:
        while True:
            with deferred_signals() as asked_to_stop:
                while len(running) < workers and (item := next(waiting, None)):
                    number, args = item
                    running[number] = submit(function, args)
                if not running:
                    return
                while (
                    not (ready := [number for number, job in running.items() if job.done()])
                    and not asked_to_stop()
                ):
                    time.sleep(_POLL_SECONDS)
                stop = asked_to_stop()
            for number in ready:
                yield number, _outcome(running.pop(number))
            if stop:
                raise Interrupted("stopped", 0)
    finally:
        for job in running.values():
            with suppress(Exception):  # it has ended meanwhile
                job.cancel()


def _outcome(job: _Job) -> Any:
    try:
        error, value = job.result()
    except Exception as failure:  # whatever the engine raises for a job that it lost
        return DiedError(f"the job died: {failure}")
    return value if error is None else ChildError(error)


def _attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str | None, Any]:
    """In a job: the error that the call raised, if any, and what it returned."""
    torch.set_num_threads(1)
    try:
        return None, function(*args)
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}".removesuffix(": "), None
