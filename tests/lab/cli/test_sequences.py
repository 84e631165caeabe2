"""From windows of machines' sensors to models of new machines, as a user would."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.windows import write_windows
from sparsehyper.lab.data import Columns, read_rows
from sparsehyper.lab.runs import build_target, load_run

COLUMNS = ["--task-column", "machine", "--sequence-column", "window", "--order-column", "time"]
QUICK = ["--steps", "60", "--eval-every", "30", "--warmup", "0", "--quiet"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run of 6 machines, one of it with two more of 10 windows each, and 30 others of these."""
    from sparsehyper.lab.cli.app import run

    root = tmp_path_factory.mktemp("machines")
    write_windows(root / "windows.csv", range(6), 40)
    write_windows(root / "new.csv", range(6, 8), 10, seed=1)
    write_windows(root / "more.csv", range(6, 8), 30, seed=2)
    data = ["--data", str(root / "windows.csv"), "--out", str(root / "run")]
    assert run(["train", *data, *COLUMNS, "--target-column", "state", *QUICK]) == 0
    new = ["--data", str(root / "new.csv"), "--out", str(root / "more")]
    assert run(["adapt", str(root / "run"), *new, "--method", "head"]) == 0
    return root


def test_known_machines_are_learned_by_a_cnn(command, root):
    found = json.loads(command("evaluate", root / "run", "--json").out)
    assert found["accuracy"] > 0.8
    run = load_run(root / "run")
    assert run.experiment.target == "cnn:16-32-64,norm=batch,pool=max"
    module = run.materialize("m03")
    assert [type(layer).__name__ for layer in module[0]] == ["Conv1d", "BatchNorm1d"]
    assert module(torch.randn(5, 4, 24)).shape == (5, 2)


def test_new_machines_are_learned_from_a_few_windows(command, root):
    done = command("evaluate", root / "more", "--added", root / "more.csv", "--json")
    found = json.loads(done.out)
    assert list(found["accuracies"]) == ["m06", "m07"]
    assert found["accuracy"] > 0.75
    rows = json.loads(command("tasks", root / "more", "--json").out)["tasks"]
    assert [row["measured"]["images"] for row in rows[-2:]] == [10, 10]
    shown = command("tasks", root / "more").out
    assert "sequences" in shown
    assert "images" not in shown


def test_what_train_and_adapt_say_is_of_sequences(command, root, tmp_path):
    data = ("--data", root / "windows.csv", "--out", tmp_path / "run", *COLUMNS)
    done = command("train", *data, "--target-column", "state", *QUICK[:-1], "--steps", 2)
    assert re.search(r"\d+ sequences to train on, \d+ to validate, 48 to test", done.err)
    assert "4 × 24 (channels × steps)" in done.err
    new = ("adapt", root / "run", "--data", root / "new.csv", "--out", tmp_path / "more")
    done = command(*new, "--seconds", 0.2)
    assert done.code == 0, done.err
    assert "sequences" in done.out
    assert "images" not in done.out


def test_every_sequence_gets_one_prediction(command, root):
    predict = ("predict", root / "more", root / "more.csv", "--format")
    done = command(*predict, "csv")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 60
    with (root / "more.csv").open() as file:
        true = {(r["machine"], r["window"]): r["state"] for r in csv.DictReader(file)}
    assert {(row["machine"], row["window"]) for row in rows} == true.keys()
    right = [true[row["machine"], row["window"]] == row["predicted state"] for row in rows]
    assert sum(right) > 0.75 * len(right)
    found = json.loads(command(*predict, "json").out)["rows"]
    assert [(r["task"], r["sequence"], r["predicted"]) for r in found] == [
        (r["machine"], r["window"], r["predicted state"]) for r in rows
    ]
    assert "sequence" in command(*predict, "table").out


def test_one_task_and_no_states_are_enough(command, root, tmp_path):
    with (root / "more.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["machine"] == "m06"]
    with (tmp_path / "one.csv").open("w", newline="") as file:
        names = ["window", "time", "vibration", "heat", "mode"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    one = ("predict", root / "more", tmp_path / "one.csv", "--task", "m06", "--format", "json")
    found = json.loads(command(*one).out)["rows"]
    whole = ("predict", root / "more", root / "more.csv", "--format", "json")
    expected = json.loads(command(*whole).out)["rows"]
    assert {r["sequence"]: r["predicted"] for r in found} == {
        r["sequence"]: r["predicted"] for r in expected if r["task"] == "m06"
    }


def test_exported_models_take_sequences(command, root, tmp_path):
    file = tmp_path / "machine.safetensors"
    done = command("export", root / "more", "--task", "m01", "--out", file)
    assert "sequences 4 × 24 (channels × steps)" in done.out
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["sparsehyper"])
    assert about["preprocessing"][-1] == "float32 [batch, 4, 24]: batch, channel, step"
    columns = Columns.from_dict(about["columns"])
    x = read_rows(root / "windows.csv", columns).x
    module = build_target(about["target"], tuple(about["image_shape"]), about["outputs"])
    module.load_state_dict(load_file(file))
    file = file.with_suffix(".pt2")
    assert command("export", root / "more", "--task", "m01", "--out", file).code == 0
    program = torch.export.load(file).module()
    with torch.no_grad():
        torch.testing.assert_close(program(x), module.eval()(x))


def test_the_other_commands_work(command, root, tmp_path):
    done = command("report", root / "run", root / "more", "--out", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert "multiply_adds" in command("inspect", root / "run", "--json").out


def test_numbers_of_sequences_of_any_length(command, tmp_path):
    write_windows(tmp_path / "wear.csv", range(6), 40, steps=(16, 28), numbers=True)
    data = ("--data", tmp_path / "wear.csv", "--target-column", "wear", *COLUMNS)
    done = command("train", *data, "--out", tmp_path / "run", *QUICK)
    assert done.code == 0, done.err
    found = json.loads(command("evaluate", tmp_path / "run", "--json").out)
    assert found["score"] == "R²"
    assert found["accuracy"] > 0.3
    write_windows(tmp_path / "new.csv", range(6, 7), 12, steps=(16, 28), seed=1, numbers=True)
    new = ("--data", tmp_path / "new.csv", "--out", tmp_path / "more")
    assert command("adapt", tmp_path / "run", *new).code == 0
    predict = ("predict", tmp_path / "more", tmp_path / "new.csv", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(command(*predict).out)))
    assert len(rows) == 12
    assert all(-100 < float(row["predicted wear"]) < 200 for row in rows)


BAD = {
    "resnet": (["--target", "resnet"], "sequences are 4 channels of 24 steps; give cnn:WIDTHS"),
    "augmented": (["--augment", "crop"], "`--augment` is for images"),
    "no column": (["--sequence-column", "id"], "the table has no column 'id'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_what_sequences_cannot_do(command, root, tmp_path, options, message):
    data = ("--data", root / "windows.csv", "--out", tmp_path / "run", *COLUMNS)
    done = command("train", *data, "--target-column", "state", *QUICK, *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_images_have_no_sequences(command, tmp_path):
    data = ("--data", "digits", "--sequence-column", "window")
    done = command("train", *data, "--out", tmp_path / "run")
    assert done.code == 2
    assert "`--sequence-column` is for a table, *.csv or *.parquet" in done.err
