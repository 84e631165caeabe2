"""The command line, one file per command.

Exit codes: 0 done; 1 the work failed (a loss that is not finite, a failed run in a comparison);
2 bad input or usage; 130 interrupted, with the training so far kept.

PyTorch takes seconds to import. So commands import what they work with when they run: help, and
what a shell asks for to complete a line, are there at once.
"""

from __future__ import annotations

import importlib.util
import io
import sys


def main() -> None:
    """Entry point of ``sparsehyper`` and ``python -m sparsehyper``."""
    from sparsehyper._util.extras import MissingExtraError, require
    from sparsehyper._util.interrupt import raising_signals

    if sys.argv[1:] == ["--version"]:  # also where the command line's extra is not installed
        from importlib import metadata

        print(metadata.version("sparsehyper"))
        raise SystemExit(0)
    needed = ("typer", "rich", "accelerate", "filelock", "PIL", "pyarrow", "matplotlib")
    with raising_signals():
        try:
            for module in needed:
                if importlib.util.find_spec(module) is None:
                    require(module, "cli")
            from sparsehyper.lab.cli.app import run

            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # the terminal may lack a character
                    stream.reconfigure(errors="backslashreplace")
            code = run()
        except MissingExtraError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:  # before the command started
            print("interrupted", file=sys.stderr)
            code = 130
    raise SystemExit(code)
