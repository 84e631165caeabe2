"""The metrics of training: ``metrics.jsonl``, and TensorBoard event files on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from sparsehyper._util.extras import require
from sparsehyper.training.processes import is_main_process
from sparsehyper.training.run import Run

Callback = Callable[[str, int, Mapping[str, Any]], object]


class Recorder:
    """Writes metrics to all their files; a context manager.

    Args:
        run: the run directory; ``None`` writes nothing.
        callback: called with the arguments of every `write` of the main process.
        tensorboard: also write event files, into ``tensorboard`` in the run directory.
        start: number of updates already made; later events of an earlier process are superseded.

    Raises:
        ValueError: `tensorboard` without `run`.
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(
        self,
        run: Run | None,
        callback: Callback | None = None,
        *,
        tensorboard: bool = False,
        start: int = 0,
    ) -> None:
        if tensorboard and run is None:
            raise ValueError("`tensorboard` is True, which needs a run directory; give `run`")
        self._run = run
        self._callback = callback if is_main_process() else None
        self._board: Any = None
        if tensorboard and run is not None and is_main_process():
            require("tensorboard", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(run.path / "tensorboard", purge_step=start + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of metrics of a kind, measured after `step` updates."""
        if self._run is not None:
            self._run.write_metrics({"kind": kind, "step": step, **values})
        if self._callback is not None:
            self._callback(kind, step, values)
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()
