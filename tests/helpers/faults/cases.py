"""Commands that write something, with checks that it is whole and reproducible."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from helpers.faults.commands import QUICK, SMALL, Commands
from sparsehyper.lab.runs import load_run
from sparsehyper.lab.studies.cells import read_cells

STUDY = """
from sparsehyper.lab.studies.scaling import Scaling
settings = Scaling("digits", (16, 32), (2, 3), 16, 2, steps={steps}, trials=2, seeds=1)
Scaling.smoke = lambda: settings
"""
ENDLESS = 10**9  # updates, far beyond the time limit of any test
TIMES = ("seconds", "step_ms", "model_ms", "peak_memory", "peak_memory_mb", "images_per_second")


class Case(NamedTuple):
    """A command that writes something.

    Attributes:
        arguments: Command line, without ``--out``.
        check: Asserts that what is there is whole.
        end: Reads what the command leaves, without times.
        out: Name of what it writes.
        again: Further arguments with which it goes on.
        setup: Python to run first.
    """

    arguments: list[object]
    check: Callable[[Path], None]
    end: Callable[[Path], Any]
    out: str = "run"
    again: tuple[str, ...] = ()
    setup: str = ""

    def start(self, folder: Path) -> list[object]:
        return [*self.arguments, "--out", folder / self.out]

    def undisturbed(self, commands: Commands, folder: Path) -> tuple[float, Any]:
        """Run the command; return the seconds that it took, and what it leaves."""
        started = time.monotonic()
        done = commands.run(*self.start(folder), setup=self.setup)
        assert done.code == 0, done.err
        return time.monotonic() - started, self.end(folder / self.out)

    def go_on(self, commands: Commands, folder: Path) -> None:
        done = commands.run(*self.start(folder), *self.again, setup=self.setup)
        if done.code == 2 and "holds no run" in done.err:  # killed before there was a run
            done = commands.run(*self.start(folder), setup=self.setup)
        if not (done.code == 2 and "exists" in done.err and not self.again):
            assert done.code == 0, done.err


def all_cases(base: Path, images: Path) -> dict[str, Case]:
    """All cases by name.

    Args:
        base: A run.
        images: A folder of new tasks.
    """
    adapted = ["adapt", base, "--data", images, "--device", "cpu"]
    adapted += ["--method", "embedding", "--steps", "3"]
    return {
        "train": Case(["train", *QUICK], check_run, end_of_run, again=("--resume",)),
        "adapt": Case(adapted, check_adapted, end_of_adapted),
        "export": Case(
            ["export", base, "--task", "2-3"], check_export, load_file, "model.safetensors"
        ),
        "tasks": Case(["tasks", base, "--rename", "0-1", "low"], check_run, end_of_adapted),
        "report": Case(["report", base], check_page, Path.exists, "report.html"),
        "compare": comparison(6),
        "endless compare": comparison(ENDLESS),
        "study": study(6),
        "endless study": study(ENDLESS),
    }


def comparison(steps: int) -> Case:
    methods = ["--method", "dense", "--method", "experts", "--seeds", "1"]
    arguments = ["compare", *SMALL, "--steps", steps, "--eval-every", "2", *methods]
    return Case(arguments, check_comparison, end_of_comparison)


def study(steps: int) -> Case:
    arguments = ["study", "scaling", "--scale", "smoke", "--quiet"]
    return Case(arguments, check_study, end_of_study, setup=STUDY.format(steps=steps))


def check_run(run: Path) -> None:
    with suppress(FileNotFoundError):  # there is no run or no checkpoint yet
        load_run(run)


def check_adapted(run: Path) -> None:
    if run.exists():
        assert "hats" in load_run(run).tasks.names


def check_export(file: Path) -> None:
    if file.exists():
        assert load_file(file)


def check_page(file: Path) -> None:
    if file.exists():
        assert file.read_text().rstrip().endswith("</html>")


def check_comparison(out: Path) -> None:
    for run in (out / "runs").glob("*"):
        check_run(run)
    if (out / "results.json").exists():
        json.loads((out / "results.json").read_text())


def check_study(out: Path) -> None:
    for file in out.glob("*.json"):
        json.loads(file.read_text())
    read_cells(out)


def end_of_run(run: Path) -> Any:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    # A run that was asked to stop has one more line of kind "training".
    lines = [line for line in lines if line["kind"] == "validation"]
    state, found = dict(load_run(run).model.state_dict()), result(run / "result.json")
    found = {part: found[part] for part in ("experiment", "training", "test")}
    return state, timeless(lines), found


def end_of_adapted(run: Path) -> Any:
    loaded = load_run(run)
    return dict(loaded.model.state_dict()), loaded.tasks


def end_of_comparison(out: Path) -> Any:
    runs = {path.name: end_of_run(path) for path in (out / "runs").iterdir()}
    return runs, result(out / "results.json")


def end_of_study(out: Path) -> Any:
    results = result(out / "results.json")
    for name in ("exponents", "claims"):  # some are of times
        results.pop(name)
    return results, timeless(read_cells(out))


def leftovers(folder: Path) -> list[str]:
    """Files that are there only while a command is at work."""
    found = folder.rglob("*")
    return [
        str(path.relative_to(folder))
        for path in found
        if path.name != ".lock" and (path.name.startswith(".") or path.suffix in (".new", ".old"))
    ]


def result(file: Path) -> Any:
    return timeless(json.loads(file.read_text()))


def timeless(value: Any) -> Any:
    """A result without its times and amounts of memory."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two results differ; tensors must be equal to the bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for k in a for found in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (x, y) in pairs for found in differences(x, y, f"{where}/{i}")]
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [f"{where}: {a} is not {b}"]
