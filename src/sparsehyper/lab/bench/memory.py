"""Memory of one piece of work: what the process holds, and its peak, in a process of its own.

The peak is the kernel's own (``VmHWM``), reset before the work, so that it counts everything:
tensors, the allocator's slack, and what libraries keep to themselves. Linux only.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsehyper.training.isolation import call_in_process

_SELF = Path("/proc/self")


def can_measure() -> bool:
    """Whether this system tells the peak and lets it be reset."""
    return (_SELF / "clear_refs").exists()


def resident() -> int:
    """Bytes this process holds, after giving back what the C library keeps for later."""
    _trim()
    return _kilobytes(_SELF / "status", "VmRSS")


def peak() -> int:
    """The most bytes this process held since the last `reset_peak`."""
    return _kilobytes(_SELF / "status", "VmHWM")


def reset_peak() -> None:
    """Begin to look for the peak anew."""
    _trim()
    (_SELF / "clear_refs").write_text("5")


def available() -> int:
    """Bytes that can be taken without swapping, for all that the system tells."""
    meminfo = Path("/proc/meminfo")
    return _kilobytes(meminfo, "MemAvailable") if meminfo.exists() else 1 << 62


def shortage(need: int) -> str:
    """What to say where ``need`` bytes are more than there are; empty where they are not.

    >>> shortage(10**18)
    'would need 1000000000.0 GB of ... GB'
    """
    free = available()
    return f"would need {need / 1e9:.1f} GB of {free / 1e9:.1f} GB" if need > free else ""


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a new process of as many threads, which has done nothing else.

    Raises:
        ChildError, Interrupted: as `call_in_process`.

    >>> in_fresh_process(divmod, 7, 2)
    (3, 1)
    """
    return call_in_process(_call, torch.get_num_threads(), function, args)


def _trim() -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)


def _call(threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(threads)
    return function(*args)


def _kilobytes(file: Path, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    assert match, f"{file} has no {field}"
    return 1024 * int(match[1])
