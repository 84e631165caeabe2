"""A process that has imported what commands need, and forks one process for each command.

Reads a request a line, as JSON. For a command, an object with its ``arguments``, ``setup`` (Python
to run first, or alone if there are no arguments) and the ``folder`` of its output, it writes the id
of its process, which signals reach from then on. For the id of a process it writes its exit code,
once it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback

MODULES = (
    "sparsehyper.lab.cli.app", "sparsehyper.lab.runs", "sparsehyper.lab.studies",
    "sparsehyper.lab.bench", "sparsehyper.lab.report.html", "accelerate", "filelock",
    "sklearn.datasets", "PIL.Image", "torch._dynamo",
)  # fmt: skip


def main() -> None:
    for module in MODULES:
        importlib.import_module(module)
    signals = {signal.SIGINT, signal.SIGTERM}
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), file=answers)
            continue
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        process = os.fork()
        if not process:
            answers = None
            work(request, signals)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        print(process, file=answers)


def work(request, signals) -> None:
    """Run the command as a shell would; never returns."""
    from sparsehyper._util.interrupt import raising_signals
    from sparsehyper.lab.cli import main

    os.setsid()
    output = f"{request['folder']}/{os.getpid()}"
    for number, name in ((0, os.devnull), (1, f"{output}.out"), (2, f"{output}.err")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.argv = ["sparsehyper", *request["arguments"]]
    code = 0
    try:
        with raising_signals():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            exec(request["setup"], {"__name__": "setup"})
            if request["arguments"]:
                main()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:  # just before or after `main`
        print("interrupted", file=sys.stderr)
        code = 130
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        code = 1
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
