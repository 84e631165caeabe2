"""What Windows refuses, on a system that does not: for tests of files.

On Windows directories have no descriptors, descriptors of text translate line ends, only what is
open for writing is flushed, and nothing moves that is open. `os` lacks some flags, and Python the
module ``resource``.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest

_BINARY = 1 << 30


def pretend_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process meet with what it would meet with on Windows."""
    import fcntl

    from sparsehyper._util import files

    open_, fsync, link = os.open, os.fsync, os.link
    rename, replace, write_text = Path.rename, Path.replace, Path.write_text

    def ours() -> bool:
        return sys._getframe(2).f_globals["__name__"].startswith("sparsehyper")

    def open_as_there(path, flags, mode=0o777, *, dir_fd=None):
        if dir_fd is not None:
            raise NotImplementedError("dir_fd unavailable on this platform")
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        assert flags & _BINARY or not ours(), f"{path} is opened as text"
        return open_(path, flags & ~_BINARY, mode)

    def fsync_as_there(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(descriptor)

    def link_as_there(source, destination, *, follow_symlinks=True):
        if not follow_symlinks:
            raise NotImplementedError("link: follow_symlinks unavailable on this platform")
        link(source, destination)

    def moved_as_there(call):
        def move(self, new):
            for descriptor in os.listdir("/proc/self/fd"):
                try:
                    file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
                except OSError:  # the listing's own
                    continue
                here = Path(os.path.realpath(self))
                if here in (file, *file.parents) or file == Path(os.path.realpath(new)):
                    raise PermissionError(errno.EACCES, "it is open", str(self))
            return call(self, new)

        return move

    def write_as_there(self, data, encoding=None, errors=None, newline=None):
        return write_text(self, data, encoding or "cp1252", errors, newline or "\r\n")

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "_BINARY", _BINARY)
    monkeypatch.setattr(os, "O_BINARY", _BINARY, raising=False)
    monkeypatch.setattr(os, "open", open_as_there)
    monkeypatch.setattr(os, "fsync", fsync_as_there)
    monkeypatch.setattr(os, "link", link_as_there)
    for flag in ("O_DIRECTORY", "O_NOFOLLOW"):
        monkeypatch.delattr(os, flag)
    for name in ("SIGKILL", "pthread_sigmask"):
        monkeypatch.delattr(signal, name)
    monkeypatch.setattr(Path, "rename", moved_as_there(rename))
    monkeypatch.setattr(Path, "replace", moved_as_there(replace))
    monkeypatch.setattr(Path, "write_text", write_as_there)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # which follow from `os`
    about = types.SimpleNamespace(peak_wset=3 * 10**8)
    process = types.SimpleNamespace(memory_info=lambda: about)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setitem(sys.modules, "psutil", types.SimpleNamespace(Process=lambda: process))
