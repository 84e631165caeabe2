from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import typer

import sparsehyper
from sparsehyper._util import kernels
from sparsehyper.lab.cli.app import app
from sparsehyper.lab.studies import STUDIES

OPTIONS = {
    "train": {
        "--out", "--method", "--budget", "--resume", "--quiet", "--json", "--data", "--tasks",
        "--data-dir", "--image-size", "--val-fraction", "--split-seed", "--augment", "--target",
        "--conditioner", "--latent-dim", "--similarity", "--head", "--base", "--init",
        "--norm-stats", "--steps", "--batch-size", "--tasks-per-batch",
        "--accumulate", "--optimizer", "--lr", "--weight-decay", "--schedule", "--plateau-patience",
        "--warmup",
        "--clip", "--eval-every", "--patience", "--precision", "--compile", "--device", "--seed",
        "--task-column", "--target-column", "--sequence-column", "--order-column", "--targets",
        "--cuda-graphs", "--config",
        "--log-with", "--shard", "--outputs", "--trust-target", "--help",
    },
    "evaluate": {
        "--split", "--added", "--resize", "--data", "--data-dir", "--device", "--json",
        "--trust-target", "--help",
    },
    "inspect": {
        "--generator", "--budget", "--base", "--target", "--image", "--classes", "--latent-dim",
        "--tasks", "--json", "--trust-target", "--help",
    },
    "adapt": {
        "--data", "--out", "--task", "--method", "--seconds", "--init", "--restarts", "--space",
        "--tune", "--steps", "--batch-size", "--tune-steps", "--tune-lr", "--resize", "--seed",
        "--device", "--json", "--trust-target", "--help",
    },
    "predict": {
        "--task", "--format", "--resize", "--batch-size", "--device", "--trust-target", "--help",
    },
    "export": {"--task", "--out", "--format", "--json", "--trust-target", "--help"},
    "tasks": {"--rename", "--remove", "--out", "--json", "--trust-target", "--help"},
    "study": {
        "--out", "--scale", "--data-dir", "--seeds", "--workers", "--engine", "--quiet", "--json",
        "--help",
    },
    "report": {"--out", "--data-dir", "--trust-target", "--help"},
    "doctor": {"--json", "--help"},
    "bench": {
        "--out", "--only", "--peers", "--device", "--rounds", "--seed", "--quick", "--json",
        "--help",
    },
}  # fmt: skip
OPTIONS["compare"] = OPTIONS["train"] - {"--resume", "--seed", "--trust-target"} | {"--seeds"}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_these_and_no_others(name):
    command = typer.main.get_command(app).commands[name]
    context = command.make_context(name, [], resilient_parsing=True)
    found = {o for p in command.get_params(context) for o in p.opts if o.startswith("--")}
    assert found == OPTIONS[name]


@pytest.mark.parametrize("name", OPTIONS)
def test_help_has_an_example(command, name):
    done = command(name, "--help")
    assert done.code == 0
    assert f"sparsehyper {name} " in done.out
    assert "Example" in done.out


def test_version_and_usage(command):
    assert command("--version").out.strip() == importlib.metadata.version("sparsehyper")
    assert command("trian").code == 2
    missing = command("train")
    assert missing.code == 2
    assert "--out" in missing.err


def test_errors_speak_of_what_the_command_line_has(command, tmp_path):
    for words in (["evaluate"], ["inspect"], ["tasks"], ["predict", "x.png"]):
        missing = command(words[0], tmp_path / "nope", *words[1:])
        assert missing.code == 2
        assert f"`RUN` {tmp_path / 'nope'} holds no run" in missing.err
    resumed = command("train", "--resume", "--out", tmp_path / "nope")
    assert f"`--out` {tmp_path / 'nope'} holds no run" in resumed.err
    both = command("inspect", tmp_path, "--tasks", 3)
    assert "`--tasks` describes a model, and so does `RUN`" in both.err


def test_what_to_mind_of_a_new_task_speaks_of_options_too(command, tmp_path, monkeypatch):
    learned = {
        "task": "hats",
        "classes": ["a", "b"],
        "images": 4,
        "accuracy": 1.0,
        "score": "accuracy",
        "expected": None,
        "interval": None,
        "more": None,
        "error": None,
        "expected_error": None,
        "test_images": 0,
        "test_accuracy": None,
        "method": "head",
        "seconds": 1.0,
        "warnings": ["`seconds` sufficed for 1 of 3", "mind `batch_size` and `others`"],
    }
    experiment = SimpleNamespace(data=SimpleNamespace(samples="images"))
    for name, found in (
        *(("adapt_run", [learned]), ("read_experiment", experiment), ("shares_weights", True)),
    ):
        monkeypatch.setattr(f"sparsehyper.lab.runs.{name}", lambda *_, found=found, **__: found)
    done = command("adapt", tmp_path, "--data", tmp_path, "--out", tmp_path / "out")
    assert "hats: head. `--seconds` sufficed for 1 of 3. mind `--batch-size` and `others`." in (
        done.out
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 1, "error: out of memory (an allocation failed); give a smaller --batch"),
        (torch.OutOfMemoryError("CUDA: 9 GB\nsee"), 1, "error: out of memory (CUDA: 9 GB); give a"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "error: out of memory (Def",
        ),
        (
            OSError(28, "", "a/file"),
            1,
            "error: No space left on device, at a/file; free some space",
        ),
        (OSError(28, ""), 1, "error: No space left on device; free some space and start again"),
        (OSError(30, "Read-only file system", "a"), 2, "error: [Errno 30] Read-only file system: "),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_lacks_is_a_line(command, tmp_path, monkeypatch, error, code, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("sparsehyper.lab.runs.run_experiment", fail)
    failed = command("train", "--out", tmp_path / "run", "--quiet")
    assert failed.code == code
    assert failed.err.startswith(line)
    assert len(failed.err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_command_begins(command, monkeypatch, number):
    """While the arguments are parsed, here those that ask for the version."""
    monkeypatch.setattr("importlib.metadata.version", lambda _: signal.raise_signal(number))
    stopped = command("--version")
    assert (stopped.code, stopped.err) == (130, "interrupted\n")


def test_the_help_names_the_studies():
    from sparsehyper.lab.cli.study import _NAMES

    assert tuple(STUDIES) == _NAMES


def test_doctor_tells_what_is_there_and_what_is_missing(command, monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("SPARSEHYPER_DATA", str(tmp_path))
    found = json.loads(command("doctor", "--json").out)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["sparsehyper"] == sparsehyper.__version__
    assert found["kernels"]["cpu"] == "there, with OpenMP"
    assert found["data"]["in it"] == "mnist"
    monkeypatch.setattr(kernels, "compiled", None)
    monkeypatch.setattr(kernels, "why_missing", "no module")
    assert "cpu: missing (no module), so everything" in command("doctor").out


def without(modules: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own that cannot import some modules."""
    script = f"import sys; sys.modules.update(dict.fromkeys({modules!r}.split()))\n"
    script += "import sparsehyper.lab.cli as cli; cli.main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [("--version", "0."), ("--help", "Exit codes"), ("train --help", "--steps")],
)
def test_help_needs_no_pytorch(arguments, shown):
    done = without("torch numpy", *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


def test_without_extras_the_version_is_told_and_the_rest_says_what_to_install():
    done = without("torch typer rich", "--version")
    assert done.stdout.strip() == sparsehyper.__version__
    refused = without("torch typer rich", "train")
    assert refused.returncode == 2
    assert 'pip install "sparsehyper[cli]"' in refused.stderr


def test_a_shell_can_complete_the_commands():
    script = "import sys; sys.argv[0] = 'sparsehyper'; import sparsehyper.lab.cli as c; c.main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "_SPARSEHYPER_COMPLETE": "complete_bash", "COMP_WORDS": "sparsehyper tr",
             "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "sparsehyper tr"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "train", done.stderr


def test_as_a_module_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "sparsehyper", "inspect", "--generator", "what"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: `--generator` must be one of")
