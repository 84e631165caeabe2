"""What several tests share. Tests import it by name; it imports no test."""

from __future__ import annotations

import os
import sys


def environment(**variables: str) -> dict[str, str]:
    """That of another Python that can import what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
