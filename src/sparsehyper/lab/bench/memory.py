"""Resident and peak memory of this process, and the memory that is available.

The peak is the one that the Linux kernel keeps (``VmHWM``), reset before the work. It includes
everything: tensors, the allocator's slack and what libraries keep for themselves.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_SELF = Path("/proc/self")


def can_measure() -> bool:
    """Whether this system reports the peak and allows it to be reset."""
    return (_SELF / "clear_refs").exists()


def resident() -> int:
    """Bytes that this process holds, after returning what the C library keeps for later."""
    _trim()
    return _kilobytes(_SELF / "status", "VmRSS")


def peak() -> int:
    """Largest number of bytes that this process held since the last `reset_peak`."""
    return _kilobytes(_SELF / "status", "VmHWM")


def reset_peak() -> None:
    """Start a new measurement of the peak."""
    _trim()
    (_SELF / "clear_refs").write_text("5")


def available_memory() -> int:
    """Bytes available without swapping; a huge number where the system does not say."""
    meminfo = Path("/proc/meminfo")
    return _kilobytes(meminfo, "MemAvailable") if meminfo.exists() else 1 << 62


def shortage(need: int) -> str:
    """Why ``need`` bytes cannot be allocated; empty where they can.

    >>> shortage(10**18)
    'would need 1000000000.0 GB of ... GB'
    """
    free = available_memory()
    return f"would need {need / 1e9:.1f} GB of {free / 1e9:.1f} GB" if need > free else ""


def _trim() -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)


def _kilobytes(file: Path, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    assert match, f"{file} has no {field}"
    return 1024 * int(match[1])
