"""Open a stranger's files in every way there is, and tell what that ran.

It makes hostile variants of the runs in a folder and calls every command that reads a run on each.
An audit hook notes whatever a file could have caused: processes, imports of the modules that the
files name, unpickling, connections, and files opened, changed or linked that are none of the run's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import stat
import sys
import tarfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsehyper import HyperNetwork
from sparsehyper._util.files import read_sealed, sealed
from sparsehyper.lab.cli.app import run as command_line
from sparsehyper.lab.runs import build_target

MARKER = "executed"  # a file that hostile code would make
MODULE = "hostile_module"  # a module that makes the marker when imported

PROCESSES = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.forkpty", "pty.spawn", "ctypes.dlopen"),
}


class Executes:
    """Runs a command when unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {MARKER}",)


CHANGES = {"os.chmod", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watch(secret: Path, folder: Path) -> list[str]:
    """Install an audit hook; return the list that it extends by what files must not cause.

    Args:
        secret: A file that nothing may open.
        folder: The only place that may be written to.
    """
    noted: list[str] = []
    secret, folder = secret.resolve(), folder.resolve()

    def outside(path):
        return not isinstance(path, int) and not Path(os.path.realpath(path)).is_relative_to(folder)

    def opens_wrongly(path, flags):
        if isinstance(path, int) or (flags & os.O_NOFOLLOW and os.path.islink(path)):
            return False
        return os.path.realpath(path) == str(secret) or (flags & WRITES and outside(path))

    def hook(event, arguments):
        if event in PROCESSES or event == "pickle.find_class" or event == "socket.connect":
            noted.append(f"{event} {arguments}")
        elif event == "import" and str(arguments[0]).startswith(MODULE):
            noted.append(f"import {arguments[0]}")
        elif event == "open" and opens_wrongly(arguments[0], arguments[2]):
            noted.append(f"open {arguments[0]}")
        elif event in CHANGES and outside(arguments[0]):
            noted.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    return noted


# ── hostile content ─────────────────────────────────────────────────────────────────────────────


def archives(folder: Path) -> dict[str, bytes]:
    """Files of other formats, by name; those that can contain code do."""
    pickled, saved, zipped = pickle.dumps(Executes()), io.BytesIO(), io.BytesIO()
    torch.save(Executes(), saved)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("data.pkl", pickled)
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(str(folder / "escaped")), io.BytesIO())
    return {
        "pickle": pickled,
        "torch.save": saved.getvalue(),
        "zip": zipped.getvalue(),
        "tar": tarred.getvalue(),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': ()}\n"
        + pickled,
        "empty": b"",
        "yaml": b"!!python/object/apply:os.system ['touch executed']\n",
        "python": f"open({MARKER!r}, 'w')".encode(),
        "nested": b'{"config":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "nested objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        "numbers": b'{"step": 1e999, "format": ' + b"9" * 5000 + b"}",
        "not a number": b'{"step": NaN, "best": Infinity}',
        "huge header": b"\xff" * 8 + b"{}",
        "long header": (2**40).to_bytes(8, "little") + b"{}",
    }


TARGETS = [
    *(f"{MODULE}:run", f"{MODULE}:run/masked:0.5", f"{MODULE}.sub:run", f"resnet32:{MODULE}"),
    *(f"mlp:{MODULE}", f"{MODULE}:run:run", f"./{MODULE}:run", f"mlp/{MODULE}:run"),
    *("os:system", "subprocess:call", "subprocess:call/masked:0.1", "builtins:exec", "pty:spawn"),
    *("importlib:import_module", "torch:load", "pickle:loads", "x:", ":x", "", ":", "/"),
]


def settings(folder: Path) -> dict[str, dict]:
    """Changes of a run's configuration, by description; a dotted key is a path."""
    command = ["sh", "-c", f"touch {folder / MARKER}"]
    shape = {"resolved.tasks.image_shape": command}
    changes = {f"target {target}": {"target": target, **shape} for target in TARGETS}
    changes |= {f"plain target {t}": {"target": t} for t in TARGETS}
    code = f"__import__('os').system('touch {MARKER}')"
    for name in ("optimizer", "schedule", "precision", "device"):
        changes[f"{name} code"] = {f"training.{name}": code}
        changes[f"{name} module"] = {f"training.{name}": f"{MODULE}.run"}
        changes[f"{name} list"] = {f"training.{name}": command}
    for name in ("base", "init", "norm_stats", "target", "latent_dim", "outputs"):
        for what in (code, command, {"_target_": f"{MODULE}.run"}, None, True, -1, 10**400):
            changes[f"{name} {str(what)[:20]}"] = {name: what}
    for kind in (f"{MODULE}:run", "Sparse", "__class__", command, {"kind": "sparse"}, None):
        changes[f"kind {kind}"] = {"method.kind": kind}
    deep = {"kind": "dense"}
    for _ in range(900):
        deep = {"kind": "low_rank", "rank": 1, "of": deep}
    changes |= {
        "hydra": {"_target_": f"{MODULE}.run", "_args_": command},
        "method hydra": {"method": {"_target_": f"{MODULE}.run"}},
        "method setting": {"method.__class__": f"{MODULE}.run"},
        "deep method": {"method": deep},
        "a list for a method": {"method": command},
        "class for tasks": {"data.tasks": f"{MODULE}:run"},
        "a list for the source": {"data.source": command},
        "an address": {"data.source": "http://127.0.0.1:9/images"},
        "a place": {"data.source": "\0"},
        "names": {"resolved.tasks.names": command},
        "names no list": {"resolved.tasks.names": 3},
        "classes": {"resolved.tasks.classes": [[1, {}]]},
        "shape": {"resolved.tasks.image_shape": [1, 10**30, 1]},
        "mean": {"resolved.tasks.mean": ["x"]},
        "nothing resolved": {"resolved": None},
        "no training": {"training": None},
        "no data": {"data": []},
    }
    return changes


def changed(config: dict, changes: dict) -> dict:
    config = json.loads(json.dumps(config))
    for path, value in changes.items():
        *parents, last = path.split(".") if not path.startswith("_") else [path]
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    return config


def replace(file: Path, content: bytes) -> None:
    """Give a file other content, with the matching digest where there is one."""
    file.unlink()
    file.write_bytes(content)
    sums = file.parent / "SHA256SUMS"
    if sums.exists() and file != sums:
        lines = [
            f"{hashlib.sha256(content).hexdigest()}  {file.name}\n"
            if line.endswith(f"  {file.name}\n")
            else line
            for line in sums.read_text().splitlines(keepends=True)
        ]
        sums.unlink()
        sums.write_text("".join(lines))


# ── every way to read ───────────────────────────────────────────────────────────────────────────


class Attack(NamedTuple):
    """A change of a directory, and the call that then reads it."""

    what: str
    kind: str  # kind of directory
    change: Callable[[Path], Any]
    read: Callable[[Path], int]


def commands(run: Path) -> list[list[Any]]:
    """Every command that reads a run."""
    new = run.parent / "new"
    return [
        ["tasks", run],
        ["tasks", run, "--rename", "0-1-2-3-4", "low", "--out", new],
        ["evaluate", run, "--device", "cpu"],
        ["predict", run, run],
        ["adapt", run, "--data", run, "--out", new, "--device", "cpu"],
        ["export", run, "--task", "0-1-2-3-4", "--out", run.parent / "new.safetensors"],
        ["inspect", run, "--json"],
        ["report", run, "--out", run.parent / "new.html"],
        ["train", "--out", run, "--resume", "--quiet"],
        ["train", "--out", run, "--resume", "--steps", "13", "--quiet"],
    ]


def command(number: int) -> Callable[[Path], int]:
    return lambda run: command_line([str(word) for word in commands(run)[number]])


def load(directory: Path) -> int:
    try:
        HyperNetwork.load(directory, build_target("mlp:4", (1, 8, 8), 5))
    except ValueError:
        return 2
    return 0


def attacks(runs: Path, folder: Path, secret: Path) -> Iterator[Attack]:
    every = [command(number) for number in range(len(commands(Path())))]
    files = {
        kind: [f.relative_to(runs / kind) for f in sorted((runs / kind).rglob("*")) if f.is_file()]
        for kind in ("run", "adapted")
    }
    for what, changes in settings(folder).items():

        def reconfigure(run: Path, changes: dict = changes) -> None:
            about = read_sealed(run / "config.json")
            about["config"] = changed(about["config"], changes)
            replace(run / "config.json", sealed(about).encode())
            (run / "result.json").unlink()

        yield from (Attack(f"config: {what}", "run", reconfigure, read) for read in every)
    contents = archives(folder)
    for kind, names in files.items():
        for name in names:
            for what, content in contents.items():
                for read in every:
                    change = lambda run, n=name, c=content: replace(run / n, c)  # noqa: E731
                    yield Attack(f"{what} as {kind}/{name}", kind, change, read)
    for name in ("config.json", "model.safetensors"):
        for what, content in contents.items():

            def rewrite(model: Path, name: str = name, content: bytes = content) -> None:
                replace(model / name, content)
                if name == "model.safetensors":
                    config = read_sealed(model / "config.json")
                    config["weights"] = hashlib.sha256(content).hexdigest()
                    replace(model / "config.json", sealed(config).encode())

            yield Attack(f"model: {what} as {name}", "model", rewrite, load)
    for content in (
        *contents.values(),
        b'{"config": 1, "rows": 1, "numel": 1, "tasks": 1}',
        b'{"study": {}, "name": "compare"}',
        b'{"study": {}, "name": ["x"]}',
        b'{"study": 3, "name": "new-tasks", "rows": [{"method": 3}]}',
    ):

        def results(run: Path, content: bytes = content) -> None:
            (run / "config.json").unlink()
            (run / "results.json").write_bytes(content)

        yield Attack(f"results.json: {content[:40]!r}", "run", results, every[7])
    yield from elsewhere(files, folder, secret, every)


def elsewhere(
    files: dict[str, list[Path]], folder: Path, secret: Path, every: list[Callable[[Path], int]]
) -> Iterator[Attack]:
    """Files of a run that point elsewhere or never end."""
    places = (secret, os.path.relpath(secret, folder), "/dev/zero", "/proc/self/pagemap")
    for kind in ("best", "last"):
        for name in places:
            line = f"{'0' * 64}  {name}\n"

            def list_it(run: Path, kind: str = kind, line: str = line) -> None:
                (run / "result.json").unlink()
                sums = run / "checkpoints" / kind / "SHA256SUMS"
                replace(sums, (line + sums.read_text()).encode())

            yield from (Attack(f"{kind}/SHA256SUMS: {name}", "run", list_it, r) for r in every)

    def listen(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)

    kinds: dict[str, Callable[[Path], Any]] = {
        "link": lambda path: path.symlink_to(secret),
        "endless": lambda path: path.symlink_to("/dev/zero"),
        "pipe": os.mkfifo,
        "socket": listen,
        "folder": Path.mkdir,
    }
    for what, make in kinds.items():
        for kind, names in files.items():
            for name in names:

                def put(run: Path, name: Path = name, make: Any = make) -> None:
                    (run / name).unlink()
                    make(run / name)

                for read in every:
                    yield Attack(f"{what} as {kind}/{name}", kind, put, read)
    planted = {
        "run": (
            *("config.json.new", "result.json.new", "checkpoints.new"),
            *("checkpoints/best/x", "checkpoints/last/x", "checkpoints/best/model.safetensors.new"),
        ),
        "adapted": ("tasks.json.new", "checkpoints/best/x"),
    }
    for what in ("link", "endless", "pipe", "socket"):
        for kind, entries in planted.items():
            for name in entries:

                def plant(run: Path, name: str = name, make: Any = kinds[what]) -> None:
                    (run / "result.json").unlink(missing_ok=True)
                    make(run / name)

                for read in every:
                    yield Attack(f"{what} planted as {kind}/{name}", kind, plant, read)


def main(runs: Path, work: Path, stride: int) -> None:
    """Try attacks, and print what was found as JSON.

    Args:
        runs: The runs of `make_runs`.
        work: A folder to work in, which is on the path of imports.
        stride: Distance between the attacks that are tried; 1 for all of them.
    """
    folder, secret = work / "folder", work / "secret"
    secret.write_text("of others\n")
    secret.chmod(0o600)
    (work / f"{MODULE}.py").write_text(f"open({str(work / MARKER)!r}, 'w')\n")
    os.chdir(work)

    def attempt(attack: Attack) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs / attack.kind, folder / attack.kind)
        attack.change(folder / attack.kind)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return attack.read(folder / attack.kind)

    for number in range(len(commands(folder))):  # first use imports modules
        attempt(Attack("", "run", lambda run: (run / "result.json").unlink(), command(number)))
    noted = watch(secret, folder)
    tried, accepted, failures = 0, [], []
    for attack in list(attacks(runs, folder, secret))[::stride]:
        tried += 1
        try:
            if attempt(attack) == 0:
                accepted.append(attack.what)
        except BaseException:  # the command line lets no error of a file's through
            failures.append(f"{attack.what}: {traceback.format_exc()[-1500:]}")
    found = list(noted)  # before this program itself opens the secret
    print(
        json.dumps(
            {
                "tried": tried,
                "noted": found,
                "markers": [str(path) for path in work.rglob(MARKER)],
                "secret": [secret.read_text(), stat.S_IMODE(secret.stat().st_mode)],
                "accepted": accepted,
                "failures": failures,
            }
        )
    )
