"""The machine that results were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsehyper._util import kernels


def machine() -> dict[str, Any]:
    """Hardware, versions, threads and environment variables that affect speed, JSON-ready.

    Memory is in bytes; ``accelerator`` is None on a machine that has only a CPU.
    """
    memory = _linux("/proc/meminfo", r"MemTotal:\s*(\d+)")
    return {
        "cpu": _linux("/proc/cpuinfo", "model name\\s*: (.*)")
        or platform.processor()
        or platform.machine(),
        "cores": os.cpu_count(),
        "memory": 1024 * int(memory) if memory else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "kernels": kernels.available(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("OMP_", "KMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES"))
        },
    }


def _linux(file: str, pattern: str) -> str | None:
    """The first match of a pattern in a file that only Linux has."""
    try:
        found = re.search(pattern, Path(file).read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1].strip() if found else None
