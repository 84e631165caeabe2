"""The metrics of training: ``metrics.jsonl``, and a tracker of experiments on request."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from sparsehyper._util.extras import require
from sparsehyper.training.config import TRACKERS
from sparsehyper.training.processes import is_main_process
from sparsehyper.training.run import Run

Callback = Callable[[str, int, Mapping[str, Any]], object]

_PROJECT = "sparsehyper"


class Recorder:
    """Writes metrics to all their files; a context manager.

    Args:
        run: the run directory; ``None`` writes nothing.
        callback: called with the arguments of every `write` of the main process.
        log_with: the tracker that gets all numbers too, one of `TRACKERS`, by ``accelerate``.
            TensorBoard's event files go into ``tensorboard`` in the run directory. The others get a
            run of the directory's name in a project ``sparsehyper``; they are set up by their own
            environment variables.
        config: what the tracker shows as the configuration; may nest.
        start: number of updates already made; later events of an earlier process are superseded.

    Raises:
        ValueError: `log_with` is TensorBoard, without `run`.
        MissingExtraError: the tracker is not installed.
    """

    def __init__(
        self,
        run: Run | None,
        callback: Callback | None = None,
        *,
        log_with: str | None = None,
        config: Mapping[str, Any] | None = None,
        start: int = 0,
    ) -> None:
        check_tracker(log_with, has_run=run is not None)
        self._run = run
        self._callback = callback if is_main_process() else None
        self._tracker: Any = None
        if log_with is not None and is_main_process():
            self._tracker = _started(log_with, run, start)
            try:
                self._tracker.store_init_configuration(dict(_flat(config or {})))
            except BaseException:
                self._tracker.finish()
                raise

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of metrics of a kind, measured after `step` updates."""
        if self._run is not None:
            self._run.write_metrics({"kind": kind, "step": step, **values})
        if self._callback is not None:
            self._callback(kind, step, values)
        if self._tracker is not None:
            numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
            named = {f"{kind}/{name}": v for name, v in numbers.items()}
            self._try("metrics", lambda: self._tracker.log(named, step=step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracker is not None:
            self._try("the end", self._tracker.finish)

    def _try(self, what: str, send: Callable[[], object]) -> None:
        """Send something to the tracker; training goes on if that fails, as without a network."""
        try:
            send()
        except Exception as error:
            warnings.warn(
                f"the tracker has not got {what}: {type(error).__name__}: {error}", stacklevel=3
            )


def check_tracker(name: str | None, *, has_run: bool) -> None:
    """Raise unless a tracker can be used, before any work is done.

    Raises:
        ValueError: it is TensorBoard, without a run directory.
        MissingExtraError: it is not installed, or accelerate does not know it.
    """
    if name is None:
        return
    if name == "tensorboard" and not has_run:
        raise ValueError("`log_with` is 'tensorboard', which needs a run directory; give `run`")
    require(name, name)
    if name not in require("accelerate.tracking", "train").LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"`log_with` {name!r} needs a newer version of accelerate; update it")


def _started(name: str, run: Run | None, start: int) -> Any:
    """A tracker of accelerate, which has begun."""
    assert name in TRACKERS
    kind = require("accelerate.tracking", "train").LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        assert run is not None
        tracker = kind("tensorboard", str(run.path), purge_step=start + 1)
    else:
        title = {"mlflow": "run_name"}.get(name, "name")
        tracker = kind(_PROJECT, **({} if run is None else {title: run.path.name}))
    if hasattr(tracker, "start"):  # earlier versions begin when they are made
        tracker.start()
    return tracker


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted names; lists become text, as trackers take numbers and text alone."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield prefix + name, json.dumps(value)
        elif value is not None:
            yield prefix + name, value
