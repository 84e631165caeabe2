"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # of file systems without hard links


def check_absent(argument: str, path: Path) -> None:
    """Raise ``FileExistsError`` if ``path`` exists."""
    if path.exists():
        raise FileExistsError(f"`{argument}` {str(path)!r} exists; nothing is ever written over")


@contextmanager
def whole(argument: str, path: Path) -> Iterator[Path]:
    """A place to make a new file or directory, which becomes ``path`` once all is on the disk.

    Raises:
        FileExistsError: ``path`` exists.
    """
    check_absent(argument, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        partial = Path(folder, path.name)
        yield partial
        for made in (*partial.rglob("*"), partial):
            # Safetensors files are for their owner alone; a linked file is another's as well.
            if made.is_file() and made.stat().st_nlink == 1:
                made.chmod(0o644)
            sync(made)
        _name(argument, partial, path)
    sync(path.parent)


def _name(argument: str, partial: Path, path: Path) -> None:
    """Give what was made its name, unless another process was first."""
    try:
        if partial.is_dir():
            partial.rename(path)
        else:
            os.link(partial, path)  # a renaming would replace what is there
    except OSError as error:
        check_absent(argument, path)
        if partial.is_dir() or error.errno not in _NO_LINKS:
            raise
        partial.rename(path)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A place to write a file that takes the place of ``path``, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Return once a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
