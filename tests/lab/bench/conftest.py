from __future__ import annotations

import sys
from pathlib import Path

import pytest

# One library answers as the protocol asks, another one cannot be used.
WORKER = """
import json, sys
if sys.argv[1] == "hyperlight":
    print(json.dumps({"error": "ImportError: no such thing"}), flush=True)
    sys.exit()
print(json.dumps({"library": sys.argv[1], "trainable": int(sys.argv[3])}), flush=True)
for _ in sys.stdin:
    print(0.5, flush=True)
"""


@pytest.fixture
def peers(tmp_path) -> Path:
    """A folder with a worker and an environment, as ``benchmarks/peers`` is."""
    folder = tmp_path / "peers"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (folder / "worker.py").write_text(WORKER)
    return folder
