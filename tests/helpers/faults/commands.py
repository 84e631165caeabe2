"""Commands in processes of their own, with faults in what they write."""

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

from helpers import environment
from helpers.faults import zygote

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
    """``struct state`` of faults.c."""

    _fields_ = (
        ("calls", ctypes.c_int64),
        ("at", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("root", ctypes.c_char * 1024),
        ("what", ctypes.c_char * 1024),
    )


COUNT, KILL, FULL, READ_ONLY = range(4)


class Commands:
    """Runs commands, each in a process of its own that starts at once: all imports are done.

    Args:
        folder: Folder for its own files; no command writes below it.
        library: the compiled faults.c.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.running: set[int] = set()
        shared = folder / "state"
        shared.write_bytes(bytes(ctypes.sizeof(State)))
        with shared.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.state = State.from_buffer(self._memory)
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._zygote = subprocess.Popen(
            [sys.executable, zygote.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment(**threads, LD_PRELOAD=str(library), FAULTS_STATE=str(shared)),
        )
        assert self._read() == "ready"

    def start(self, *arguments: object, setup: str = "") -> int:
        """Start a command, after some Python, or Python alone; return the id of its process."""
        request = {
            "arguments": [str(a) for a in arguments],
            "setup": setup,
            "folder": str(self.folder),
        }
        process = int(self._ask(request))
        self.running.add(process)
        return process

    def wait(self, process: int) -> Outcome:
        """Wait for a command to end."""
        try:
            code = int(self._ask(process))
        except BaseException:  # the time limit of the test
            os.killpg(process, signal.SIGKILL)
            self._read()
            raise
        finally:
            self.running.discard(process)
        files = [self.folder / f"{process}.{name}" for name in ("out", "err")]
        # A process that was killed at once has opened neither.
        return Outcome(code, *(file.read_text() if file.exists() else "" for file in files))

    def run(self, *arguments: object, setup: str = "") -> Outcome:
        return self.wait(self.start(*arguments, setup=setup))

    def stop(self, process: int) -> Outcome:
        """Kill a command, and return once all of its processes have ended."""
        os.kill(process, signal.SIGKILL)
        outcome = self.wait(process)
        self.wait_for_processes(process)
        return outcome

    def stop_all(self) -> None:
        """Kill the commands that no one has waited for."""
        for process in list(self.running):
            self.stop(process)

    def processes(self, command: int) -> list[int]:
        """The processes of a command that have not ended."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == command and fields[0] != "Z":  # in its session
                    found.append(int(entry.name))
        return found

    def wait_for_processes(self, command: int) -> None:
        """Return once all processes of a command have ended."""
        while self.processes(command):
            time.sleep(0.02)

    def count(self, root: Path, kind: int, *arguments: object, setup: str = "") -> int:
        """Count the calls of a command that could go wrong."""
        self._arm(root, 0, kind)
        outcome = self.run(*arguments, setup=setup)
        self.state.root = b""
        assert outcome.code == 0, outcome.err
        return self.state.calls

    def fail(self, root: Path, kind: int, at: int, *arguments: object, setup: str = "") -> Outcome:
        """Run a command whose call number ``at`` below ``root`` goes wrong."""
        self._arm(root, at, kind)
        outcome = self.run(*arguments, setup=setup)
        self.state.root = b""
        return outcome

    @property
    def fault(self) -> str:
        """The call that went wrong."""
        return self.state.what.decode()

    def close(self) -> None:
        self._zygote.stdin.close()
        self._zygote.wait()
        self._zygote.stdout.close()

    def _arm(self, root: Path, at: int, kind: int) -> None:
        self.state.calls, self.state.at, self.state.kind = 0, at, kind
        self.state.what, self.state.root = b"", os.fsencode(root)

    def _ask(self, request: object) -> str:
        self._zygote.stdin.write(json.dumps(request) + "\n")
        return self._read()

    def _read(self) -> str:
        line = self._zygote.stdout.readline()
        assert line, "the zygote died"
        return line.strip()
