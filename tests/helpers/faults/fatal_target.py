"""A target that kills the first process of a comparison that trains it."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from pathlib import Path

from torch import nn

MARKER = "FATAL_TARGET_MARKER"  # environment variable: a file made before the kill


class Fatal(nn.Module):
    def forward(self, x):
        marker = Path(os.environ[MARKER])
        if multiprocessing.parent_process() is not None and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def net(image_shape, n_classes):
    return nn.Sequential(nn.Flatten(), Fatal(), nn.Linear(math.prod(image_shape), n_classes))
