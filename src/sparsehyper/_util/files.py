"""Files and directories that appear complete or not at all, and that are verified when read.

Whatever is read may come from a stranger. Only regular files are opened: a link may lead anywhere,
and a pipe or a device may never end. JSON is checked, not trusted.

Windows has no descriptors of directories, flushes only what is open for writing, and moves nothing
that another process has open.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_SEAL = b',\n "sha256": "'


class CheckpointError(ValueError):
    """A saved file is damaged, or does not belong to the others; the message names the file."""


WINDOWS = os.name == "nt"
_BINARY = getattr(os, "O_BINARY", 0)  # on Windows descriptors are of text otherwise
_TRIES, _PAUSE = 100, 0.05

# Errors of file systems without hard links.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def check_absent(argument: str, path: Path) -> None:
    """Raise ``FileExistsError`` if ``path`` exists."""
    if os.path.lexists(path):
        raise FileExistsError(f"`{argument}` {str(path)!r} exists; nothing is ever written over")


@contextmanager
def whole(argument: str, path: Path) -> Iterator[Path]:
    """Context with a temporary path, whose file or directory becomes ``path`` at the end.

    It gets its name once everything is on the disk.

    Raises:
        FileExistsError: ``path`` exists.
    """
    check_absent(argument, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        partial = Path(folder, path.name)
        yield partial
        for made in (*partial.rglob("*"), partial):
            about = made.lstat()
            # Safetensors makes files for their owner only. A hard link may be somebody else's file.
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
                made.chmod(0o644)
            if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
                sync(made)
        _move(argument, partial, path)
    sync(path.parent)


def _move(argument: str, partial: Path, path: Path) -> None:
    """Move a file or directory to its path, unless another process was faster."""
    try:
        if partial.is_dir() or WINDOWS:  # where renaming replaces nothing
            rename(partial, path)
        else:
            os.link(partial, path)  # renaming would replace an existing file
    except OSError as error:
        check_absent(argument, path)
        if partial.is_dir() or error.errno not in _NO_HARD_LINKS:
            raise
        partial.rename(path)


def rename(path: Path, new: Path, *, replace: bool = False) -> None:
    """Rename a file or directory, as ``Path.rename`` and ``Path.replace`` do.

    On Windows it is tried again for some seconds while another process, such as a reader or a virus
    scanner, has a file of it open.
    """
    for attempt in range(_TRIES if WINDOWS else 1):
        if attempt:
            time.sleep(_PAUSE)
        try:
            path.replace(new) if replace else path.rename(new)
        except PermissionError as error:
            refused = error
        else:
            return
    raise refused


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Context with a new file, which replaces ``path`` at the end, complete or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # left by a process that died, or a stranger's link
    try:
        with temporary.open("xb") as file:  # this mode follows no link
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path, replace=True)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Return once a file or directory is on the disk; for a directory on Windows, at once."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, (os.O_RDWR if WINDOWS else os.O_RDONLY) | _BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file(
    path: Path, folder: int | None = None, *, follow_links: bool = False
) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: path of the file.
        folder: an open descriptor of its directory, to read from that directory even if it has
            been renamed.
        follow_links: accept a link to a regular file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is a link (without ``follow_links``), a pipe, a device or a
            directory.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    link = f"{path} is a link, which is not followed; put a file there"
    other = f"{path} is not a regular file; put a file there"
    if WINDOWS and not follow_links and path.is_symlink():
        raise CheckpointError(link)
    try:
        if folder is None:
            descriptor = os.open(path, flags)
        else:
            descriptor = os.open(path.name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(link) from error
        if WINDOWS and path.is_dir():
            raise CheckpointError(other) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(other)
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, *, follow_links: bool = False) -> bytes:
    """The content of a regular file; raises as `open_file` does."""
    with open_file(path, follow_links=follow_links) as file:
        return file.read()


def digest(path: Path) -> str:
    """SHA-256 of a regular file, in hex."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: bytes, path: Path) -> Any:
    """The value of a JSON document.

    Args:
        data: the content of a file.
        path: path of the file, for errors.

    Raises:
        CheckpointError: invalid JSON, a number that is not finite, or nesting that is too deep.
    """
    try:
        return json.loads(data.decode(), parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises ``CheckpointError`` if the file is damaged."""
    value = parse_json(read_file(path), path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file's contents by a JSON document, complete or not at all."""
    with replaced(path) as file:
        file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def sealed(value: Mapping[str, Any]) -> str:
    """A JSON document whose last entry, ``sha256``, is the digest of everything before it.

    >>> print(sealed({"step": 1}))
    {
     "step": 1,
     "sha256": "a006d12545e7966be640b6221a2ec764ad438b7cb7bffe62be4f6d7360006b6b"
    }
    <BLANKLINE>
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    return _seal(text.removesuffix("\n}").encode()).decode()


def read_sealed(path: Path, *, follow_links: bool = False) -> dict[str, Any]:
    """Read and verify a file that `sealed` made; return its value without the digest.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file was changed.
    """
    data = read_file(path, follow_links=follow_links)
    body, seal, _ = data.rpartition(_SEAL)
    if not seal or data != _seal(body):
        raise CheckpointError(
            f"{path} is damaged or was edited: its `sha256` is not the digest of what stands "
            "before it; restore the file as it was written"
        )
    value = parse_json(data, path)
    del value["sha256"]
    return value


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file's contents by a document of `sealed`, complete or not at all."""
    with replaced(path) as file:
        file.write(sealed(value).encode())


def _seal(body: bytes) -> bytes:
    return b'%b%b%b"\n}\n' % (body, _SEAL, hashlib.sha256(body).hexdigest().encode())


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a valid number")
