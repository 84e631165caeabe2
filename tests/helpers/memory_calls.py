"""Functions that tests of memory call in another process."""

from __future__ import annotations

import os

import torch

from sparsehyper.lab.bench import memory

SIZE = 64 << 20


def hold_and_release():
    """Bytes above the start: the peak, after the release, and the peak since."""
    before = memory.resident()
    held = torch.ones(SIZE // 4)
    del held
    peak, after = memory.peak() - before, memory.resident() - before
    memory.reset_peak()
    return peak, after, memory.peak() - before


def die():
    os._exit(3)
