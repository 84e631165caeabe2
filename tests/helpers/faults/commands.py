"""Commands in processes of their own, and what goes wrong with what they write."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
HANG = 300  # seconds; ten times what any command takes

SMALL = ["--data", "digits", "--tasks", "split:2", "--latent-dim", "8", "--target", "mlp:4"]
SMALL += ["--device", "cpu", "--quiet", "--warmup", "0"]
QUICK = [*SMALL, "--steps", "9", "--eval-every", "3"]


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that it wrote to stderr."""
        (line,) = self.err.splitlines()
        return line


class State(ctypes.Structure):
    """What faults.c calls ``struct state``."""

    _fields_ = (
        ("calls", ctypes.c_int64),
        ("at", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("root", ctypes.c_char * 1024),
        ("what", ctypes.c_char * 1024),
    )


COUNT, KILL, FULL, READ_ONLY = range(4)


class Commands:
    """Runs commands one after another; each starts at once, as all imports are done already.

    Args:
        folder: for what it needs, below which no command writes.
        library: of faults.c, if faults are wanted.
    """

    def __init__(self, folder: Path, library: Path | None = None) -> None:
        self.folder = folder
        self.number = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        if library is not None:
            shared = folder / "state"
            shared.write_bytes(bytes(ctypes.sizeof(State)))
            with shared.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
            self.state = State.from_buffer(self._memory)
            environment |= {"LD_PRELOAD": str(library), "FAULTS_STATE": str(shared)}
        self._zygote = subprocess.Popen(
            [sys.executable, HERE / "zygote.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )
        assert self._read() == "ready"

    def start(self, *arguments: object, setup: str = "") -> int:
        """Start a command, after some Python; returns its process."""
        request = {
            "arguments": [str(a) for a in arguments],
            "setup": setup,
            "out": str(self.folder / "out"),
            "err": str(self.folder / "err"),
        }
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self.process = int(self._read())
        return self.process

    def wait(self) -> Outcome:
        """How the command ended that was started."""
        self._zygote.stdin.write("wait\n")
        code = int(self._read())
        return Outcome(code, *((self.folder / name).read_text() for name in ("out", "err")))

    def run(self, *arguments: object, setup: str = "") -> Outcome:
        self.start(*arguments, setup=setup)
        return self.wait()

    def stop(self) -> Outcome:
        """Kill the command that was started, and return once all of its processes have ended."""
        os.kill(self.process, signal.SIGKILL)
        outcome = self.wait()
        self.wait_for_processes()
        return outcome

    def processes(self) -> list[int]:
        """Those of the command that was started last which have not ended."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process and fields[0] != "Z":  # of its session
                    found.append(int(entry.name))
        return found

    def wait_for_processes(self) -> None:
        """Return once all of them have ended."""
        until = time.monotonic() + HANG
        while found := self.processes():
            assert time.monotonic() < until, found
            time.sleep(0.02)

    def count(self, root: Path, kind: int, *arguments: object, setup: str = "") -> int:
        """How many calls of a command could go wrong."""
        self._arm(root, 0, kind)
        outcome = self.run(*arguments, setup=setup)
        self.state.root = b""
        assert outcome.code == 0, outcome.err
        return self.state.calls

    def fail(self, root: Path, kind: int, at: int, *arguments: object, setup: str = "") -> Outcome:
        """Run a command of which a call below ``root`` goes wrong, the one of this number."""
        self._arm(root, at, kind)
        outcome = self.run(*arguments, setup=setup)
        self.state.root = b""
        return outcome

    @property
    def fault(self) -> str:
        """The call that went wrong."""
        return self.state.what.decode()

    def close(self) -> None:
        if self._zygote.poll() is None:
            self._zygote.stdin.close()
            self._zygote.wait(HANG)
        self._zygote.stdout.close()

    def _arm(self, root: Path, at: int, kind: int) -> None:
        self.state.calls, self.state.at, self.state.kind = 0, at, kind
        self.state.what, self.state.root = b"", os.fsencode(root)

    def _read(self) -> str:
        def overdue(*_) -> None:
            raise AssertionError("the command hangs")

        before = signal.signal(signal.SIGALRM, overdue)
        signal.alarm(HANG)
        try:
            line = self._zygote.stdout.readline()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert line, "the zygote died"
        return line.strip()
