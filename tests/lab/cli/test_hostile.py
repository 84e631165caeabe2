"""Hostile names and numbers, and what reaches terminals and spreadsheets."""

from __future__ import annotations

import ast
import csv
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.command_line import QUICK
from sparsehyper.lab import cli
from sparsehyper.lab.cli.output import print_csv, print_json
from sparsehyper.training.evaluate import Evaluation
from sparsehyper.training.progress import Progress

TASKS = ("\x1b]0;owned\x07", "=1+1 [red]")
CLASSES = ("@SUM(1)\n\x9b2J", "\u202e-1")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A folder of images with hostile names."""
    root, rng = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    for task in TASKS:
        for name in CLASSES:
            (root / task / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(root / task / name / f"={i}.png")
    return root


@pytest.fixture
def trained(command, hostile, tmp_path) -> Path:
    done = command("train", "--out", tmp_path / "run", "--data", hostile, *QUICK)
    assert done.code == 0, done.err
    check_shown(done.out + done.err)
    return tmp_path / "run"


def check_shown(text: str) -> None:
    """Assert that all characters are printable or line breaks."""
    hidden = [c for c in text if not c.isprintable() and c != "\n"]
    assert not hidden


@pytest.mark.filterwarnings("always")  # the images are of two tasks
def test_names_reach_the_terminal_as_text(command, hostile, trained, tmp_path):
    images, unknown = hostile / TASKS[1], "\x1b[2J"
    for words in (
        ["tasks", trained],
        ["evaluate", trained],
        ["inspect", trained],
        ["predict", trained, images],
        ["predict", trained, images, "--task", TASKS[0]],
        ["predict", trained, images, "--task", unknown],
        ["predict", trained, f"{images}/{unknown}"],
        ["export", trained, "--task", TASKS[0], "--out", tmp_path / "\x1b.safetensors"],
        ["tasks", trained, "--rename", TASKS[0], "\x1b[7mnew", "--out", tmp_path / "\x1b[1mrun"],
        [
            "adapt",
            trained,
            "--data",
            images,
            "--task",
            "hats\x07",
            "--out",
            tmp_path / "adapted",
            "--seconds",
            "1",
        ],
        ["report", trained, "--out", tmp_path / "\x1b.html"],
        ["train", "--out", tmp_path / "2", "--data", f"{unknown}"],
        ["train", "--out", tmp_path / "2", "--method", unknown],
        ["train", unknown],
        [unknown],
    ):
        done = command(*words)
        assert done.out or done.err
        check_shown(done.out + done.err)
    assert r"\x1b]0;owned\x07" in command("tasks", trained).out
    assert json.loads(command("tasks", trained, "--json").out)["tasks"][1]["task"] in TASKS


def test_names_in_progress_are_text(capsys):
    with Progress(10) as progress:
        progress.evaluated(5, Evaluation(("\x1b[2J",), (0.5,), (1.0,)), 0)
    err = capsys.readouterr().err
    assert r"\x1b[2J" in err
    check_shown(err)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("-1", "-1"),  # a number
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", r"'\t=1"),
        ("\r=1", r"'\r=1"),
        ("\n=1", r"'\n=1"),
        ("\uff1d1", "'\uff1d1"),
        ("a=1", "a=1"),
        ('a,"b"', 'a,"b"'),
        ("\x1b[2J", r"\x1b[2J"),
        ("", ""),
    ],
)
def test_cells_are_no_formulas(capsys, cell, written):
    print_csv(["file", "label"], [[cell, 0.5], ["x", cell]])
    found = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert found == [["file", "label"], [written, "0.5"], ["x", written]]


def test_json_has_no_numbers_that_are_not_finite(capsys):
    with pytest.raises(RuntimeError, match="has a number that is not finite"):
        print_json({"loss": float("nan")})
    assert not capsys.readouterr().out


def test_csv_of_hostile_names(command, hostile, trained, monkeypatch):
    monkeypatch.chdir(hostile / TASKS[1] / CLASSES[0])
    words = ["*.png", "--task", TASKS[1], "--format", "csv"]
    rows = list(csv.DictReader(io.StringIO(command("predict", trained, *words).out)))
    assert [row["file"] for row in rows] == [f"'={i}.png" for i in range(8)]
    assert {row["label"] for row in rows} <= {r"'@SUM(1)\n\x9b2J", r"\u202e-1"}
    shown = command("predict", "--help").out
    assert "apostrophe" in shown


def test_what_a_name_cannot_be_encoded_in_is_escaped(hostile, trained, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(hostile / TASKS[0] / CLASSES[0], odd)
    (odd / "=0.png").rename(odd / "\udcff.png")
    done = subprocess.run(
        [sys.executable, "-m", "sparsehyper", "predict", trained, odd, "--format", "csv"],
        capture_output=True,
        env={"PATH": "", "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\udcff.png," in done.stdout


def test_a_name_that_is_no_text_is_refused_before_training(command, hostile, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(hostile, root)
    (root / TASKS[0]).rename(root / "t\udcff")
    done = command("train", "--out", tmp_path / "run", "--data", root, *QUICK)
    assert done.code == 2
    assert r"t\udcff is not named in UTF-8" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "1e308"], "`--budget` must be at most 1e+06, got 1e+308"),
        (["--batch-size", 2**64], f"`--batch-size` must be at most 1048576, got {2**64}"),
        (["--split-seed", 10**30], "`--split-seed` must be at most 9223372036854775807, got"),
        (["--seed", 10**30], "`--seed` must be at most 9223372036854775807, got 1000"),
        (["--accumulate", 10**20], f"`--accumulate` must be at most 1048576, got {10**20}"),
        (["--steps", 10**20], f"`--steps` must be at most 9223372036854775807, got {10**20}"),
        (["--latent-dim", 10**9], "`--latent-dim` must be at most 1048576, got 1000000000"),
        (["--outputs", 10**9], "`--outputs` must be at most 1048576, got 1000000000"),
        (["--target", f"mlp:{10**30}"], "`--target` must be at most 1048576, got 1000"),
        (["--target", "resnet:depth=100000000002"], "`depth` must be at most 10000, got"),
        (["--target", "resnet:width=9999999"], "`width` must be at most 1048576, got 9999999"),
        (["--target", "resnet:stages=99,depth=200"], "`stages` must be at most 8, got 99"),
        (["--tasks", "permuted:1000000000"], "`n_tasks` must be at most 1000000, got"),
        (["--tasks", "rotated:1000000000"], "`angles` must be at most 1000000, got"),
        (
            ["--tasks", "split:2,all/permuted:100000"],
            "at most 1,000,000 tasks are allowed, 45 tasks in",
        ),
        (["--method", "sparse:growth=1.001", "--target", "mlp:64"], "`growth` must be larger"),
        (["--method", "dense:hidden=99999999"], "`hidden` must be at most 1048576, got"),
    ],
)
def test_numbers_out_of_range(command, tmp_path, words, message):
    small = ["--out", tmp_path / "run", *QUICK, "--latent-dim", "8", "--steps", "2"]
    done = command("train", *small, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "--tasks", 10**9], "`--tasks` must be at most 1000000, got 1000000000"),
        (["inspect", "--classes", 10**9], "`--classes` must be at most 1048576, got 1000000000"),
        (["inspect", "--image", "1x28x9000"], "`--image` must be at most 8192, got 9000"),
        (["inspect", "--image", "1x28x²"], "`--image` must be CHANNELSxHEIGHTxWIDTH"),
        (["compare", "--seeds", 10**9], "`--seeds` must be at most 10000, got 1000000000"),
        (["compare", "--seeds", 0], "`--seeds` must be at least 1, got 0"),
        (["study", "variations", "--workers", 10**6], "`--workers` must be at most 1000, got"),
        (["study", "scaling", "--seeds", 10**9], "`--seeds` must be at most 10000, got"),
        (["bench", "--rounds", 10**9], "`--rounds` must be at most 10000, got 1000000000"),
    ],
)
def test_numbers_out_of_range_of_other_commands(command, tmp_path, words, message):
    out = [] if words[0] == "inspect" else ["--out", tmp_path / "out"]
    done = command(*words, *out)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("error", [MemoryError("no room"), OverflowError("too large")])
def test_errors_of_arithmetic_and_memory_are_a_line(command, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "zeros", fail)
    done = command("inspect", "--target", "mlp:4", "--image", "1x4x4")
    assert done.code in (1, 2)
    assert re.fullmatch(r"error: .*(no room|too large).*\n", done.err)


def test_a_warning_is_a_line(command, hostile, trained):
    (hostile / "new.tif").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        done = command("predict", trained, hostile)
    (hostile / "new.tif").unlink()
    first = done.err.splitlines()[0]
    assert first.startswith("warning: images in other formats are ignored: ")
    check_shown(done.err)


def test_commands_print_by_what_makes_text_printable():
    for file in Path(inspect.getfile(cli)).parent.glob("*.py"):
        if file.name not in ("__init__.py", "output.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Attribute):
                    assert node.attr not in ("echo", "secho"), f"{file.name}:{node.lineno}"
                if isinstance(node, ast.Name):
                    assert node.id != "print", f"{file.name}:{node.lineno}"
