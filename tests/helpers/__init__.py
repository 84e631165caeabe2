"""Helpers that several tests share; they import no test."""

from __future__ import annotations

import os
import sys


def environment(**variables: str) -> dict[str, str]:
    """Environment of another Python process, which can import what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
