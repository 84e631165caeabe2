"""The command line, one file a command.

Exit codes: 0 done; 1 the work failed (a loss that is not finite, a run of a comparison that
failed); 2 bad input or usage; 130 interrupted, with what was trained kept.
"""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Entry point of ``sparsehyper`` and ``python -m sparsehyper``."""
    from sparsehyper._extras import MissingExtraError, require

    try:
        for module in ("typer", "rich", "accelerate", "filelock", "PIL", "pyarrow", "matplotlib"):
            require(module, "cli")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    from sparsehyper.cli.app import run

    for stream in (sys.stdout, sys.stderr):  # what the terminal has no characters for
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(run())
