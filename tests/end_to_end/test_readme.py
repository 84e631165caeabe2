"""What the README says works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from sparsehyper.lab.cli.app import app, run
from sparsehyper.lab.cli.options import experiment_from
from sparsehyper.lab.runs import load_run, parse_method

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_trains_the_reader_s_module():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines()[3:] if line]) <= 12
    names: dict = {}
    exec(code, names)
    model = names["model"]
    assert type(model) is torch.nn.Sequential
    x = torch.randn(500, 10)
    y = 2 * x.sum(1, keepdim=True)  # of site-b, the second
    assert torch.nn.functional.mse_loss(model(x), y) < 0.1 * y.var()


def test_the_commands_train_on_a_folder_of_images(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for task in ("front", "back"):
        for shade, name in ((70, "good"), (180, "scratched")):
            (tmp_path / "FOLDER" / task / name).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(shade - 50, shade + 50, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "FOLDER" / task / name / f"{i}.webp")
    (tmp_path / "HATS").mkdir()
    for name in ("good", "scratched"):
        (tmp_path / "FOLDER" / "back" / name).rename(tmp_path / "HATS" / name)
    (tmp_path / "FOLDER" / "back").rmdir()
    shutil.copytree(tmp_path / "FOLDER" / "front", tmp_path / "FOLDER" / "side")
    monkeypatch.chdir(tmp_path)
    section = README.split("## Your own images")[1].split("## Results")[0]
    commands = re.findall(r"^    sparsehyper (.*)$", section, re.MULTILINE)
    kinds = ["train", "evaluate", "inspect", "report", "adapt", "predict", "export", "tasks"]
    assert [c.split()[0] for c in commands] == kinds
    for command in commands:
        arguments = shlex.split(command.partition("#")[0])
        if arguments[0] == "train":
            arguments += ["--steps", "30", "--batch-size", "8", "--eval-every", "10", "--quiet"]
        assert run(arguments) == 0, capsys.readouterr().err
    model = load_run("runs/shop").materialize("front")
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 2)
    shown = capsys.readouterr().out
    assert "front" in shown
    assert "per generated parameter" in shown


def test_every_picture_and_file_it_names_exists():
    names = [*re.findall(r"\]\(([^)#:]+)\)", README), "constraints.txt", "LICENSE"]
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_its_make_targets_exist(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def comparisons() -> list[str]:
    """Every comparison that the README and the Makefile name, as a line."""
    text = (README + (ROOT / "Makefile").read_text()).replace("\\\n", " ")
    return re.findall(r"sparsehyper (compare --out [^#\n]*)", text)


@pytest.mark.parametrize("line", comparisons())
def test_its_comparisons_are_understood(line):
    command = typer.main.get_command(app).commands["compare"]
    context = command.make_context("compare", shlex.split(line)[1:])
    options = context.params
    experiment = experiment_from({**options, "seed": 0}, {"kind": "sparse"})
    assert experiment.training.steps == options["steps"]
    for method in options["method"] or []:
        parse_method(method)


def test_there_are_comparisons():
    assert len(comparisons()) == 5
