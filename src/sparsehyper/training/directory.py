"""What every directory of results has: a lock, and the configuration that it belongs to."""

from __future__ import annotations

import json
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehyper._util.extras import require
from sparsehyper._util.files import CheckpointError, read_sealed
from sparsehyper.training.checkpoint import CHECKPOINTS, OLD_CHECKPOINTS

if TYPE_CHECKING:
    from filelock import FileLock

# Names that a run writes to. None of them may be a link or a special file.
_WRITTEN = (
    *(".lock", "config.json", "config.json.new", "result.json", "result.json.new"),
    *("metrics.jsonl", "tensorboard", CHECKPOINTS, OLD_CHECKPOINTS, "checkpoints.new"),
)


class RunInUseError(ValueError):
    """Another process is writing to the run directory."""


def lock(directory: Path) -> FileLock:
    """Acquire the lock of a directory; the caller must release it.

    Raises:
        RunInUseError: another process holds it.
        CheckpointError: the lock, or another file that a run writes to, is a link or a pipe.
    """
    for name in _WRITTEN:
        with suppress(FileNotFoundError):
            mode = (directory / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise CheckpointError(
                    f"{directory / name} is a link or a special file, which nothing is written "
                    "through; remove it"
                )
    filelock = require("filelock", "train")
    held = filelock.FileLock(directory / ".lock", timeout=0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise RunInUseError(
            f"the run directory {directory} is in use by another process; "
            "wait for it, stop it, or choose another path"
        ) from error
    return held


def read_config(directory: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a run: its id as ``run``, ``config`` and ``versions``.

    Raises:
        FileNotFoundError: there is no run in `directory`.
        CheckpointError: the file is damaged, or was edited.
    """
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"`directory` {directory} holds no run: it has no config.json")
    recorded = read_sealed(path)
    if not (isinstance(recorded.get("run"), str) and isinstance(recorded.get("config"), dict)):
        raise CheckpointError(f"{path} is damaged: it is not the configuration of a run")
    return recorded


def read_id(directory: Path) -> str:
    """Read the id of a run, which its checkpoints and its result contain too."""
    return read_config(directory)["run"]


def check_same(
    what: str, recorded: Mapping[str, Any], given: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    """Check that two JSON-ready configurations agree.

    Args:
        what: owner of the recorded configuration, for the error.
        recorded, given: the two configurations.
        may_differ: dotted keys that may differ.

    Raises:
        ValueError: they differ; the message names the first setting that does.
    """
    before, now = dict(_flatten(recorded)), dict(_flatten(given))
    for key in before | now:
        was, value = before.get(key, "nothing"), now.get(key, "nothing")
        if was != value and key not in may_differ:
            raise ValueError(
                f"{what} has other settings: its `{key}` is {was!r}, got {value!r}; give its own "
                "settings or another directory"
            )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def json_ready(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a configuration to what a JSON file would return: tuples become lists."""
    return json.loads(json.dumps(dict(config), allow_nan=False))
