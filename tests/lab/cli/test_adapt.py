"""From a run to new tasks, predictions and files, as a user would."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.command_line import QUICK
from helpers.pictures import write_task
from sparsehyper.lab.runs import build_target, load_run
from sparsehyper.lab.runs.task_list import TaskEntry, TaskList

EMBEDDING = ("--method", "embedding")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Images of two known tasks and a new one, and a run that knows the two."""
    from sparsehyper.lab.cli.app import run

    root = tmp_path_factory.mktemp("adapt")
    write_task(root / "data" / "shoes", {"new": 60, "worn": 190}, count=10)
    write_task(root / "data" / "bags", {"new": 190, "worn": 60}, count=10, seed=1)
    write_task(root / "hats", {"old": 90, "new": 160}, count=10, seed=2)
    options = [*QUICK, "--steps", "60", "--tasks-per-batch", "2", "--batch-size", "8"]
    data = ["--data", str(root / "data"), "--out", str(root / "run")]
    assert run(["train", *data, *options, "--outputs", "3"]) == 0
    return root


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def adapt_hats(command, trained: Path, out: Path):
    data = ("--data", trained / "hats", "--task", "hats")
    return command("adapt", trained / "run", *data, "--out", out, *EMBEDDING)


@pytest.fixture
def adapted(command, trained, tmp_path) -> Path:
    out = tmp_path / "adapted"
    done = adapt_hats(command, trained, out)
    assert done.code == 0, done.err
    return out


def test_adapt_shares_the_weights_and_changes_nothing(command, trained, tmp_path):
    before, out = contents(trained / "run"), tmp_path / "new"
    done = command(
        *("adapt", trained / "run", "--data", trained / "hats", "--task", "hats"),
        *("--out", out, "--json", *EMBEDDING),
    )
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["tasks"]
    assert row["task"] == "hats"
    assert row["classes"] == ["new", "old"]
    assert row["images"] == 20
    assert row["accuracy"] > 0.9
    assert contents(trained / "run") == before
    weights = "checkpoints/best/model.safetensors"
    assert os.path.samefile(out / weights, trained / "run" / weights)
    old, new = load_run(trained / "run"), load_run(out)
    assert new.tasks.names == ("bags", "shoes", "hats")
    for name, tensor in old.materialize("bags").state_dict().items():
        assert torch.equal(new.materialize("bags").state_dict()[name], tensor)


def test_adapted_runs_can_be_adapted_and_all_tasks_of_a_folder_at_once(
    command, trained, adapted, tmp_path
):
    for name, shades in (("caps", (80, 170)), ("gloves", (170, 80))):
        write_task(tmp_path / "more" / name, {"new": shades[0], "worn": shades[1]}, count=10)
    out = tmp_path / "again"
    done = command(
        *("adapt", adapted, "--data", tmp_path / "more", "--out", out, "--tune", "last"),
        *("--tune-lr", "0.01", *EMBEDDING),
    )
    assert done.code == 0, done.err
    assert "caps" in done.out
    assert "Fitted in" in done.out
    run = load_run(out)
    assert run.tasks.names == ("bags", "shoes", "hats", "caps", "gloves")
    caps, bare = run.materialize("caps").state_dict(), run.model.materialize("caps").state_dict()
    changed = [name for name in caps if not torch.equal(caps[name], bare[name])]
    assert changed == ["3.weight", "3.bias"]
    listed = json.loads(command("tasks", out, "--json").out)["tasks"]
    origins = ["trained", "trained", "embedding", "embedding + last", "embedding + last"]
    assert [row["origin"] for row in listed] == origins
    hats = [load_run(path).materialize("hats").state_dict() for path in (adapted, out)]
    torch.testing.assert_close(*hats, rtol=0, atol=0)


def test_test_images_are_only_measured(command, trained, tmp_path):
    write_task(tmp_path / "parts" / "train", {"new": 90, "worn": 160}, count=5)
    write_task(tmp_path / "parts" / "test", {"new": 90, "worn": 160}, count=7, seed=1)
    done = command(
        *("adapt", trained / "run", "--data", tmp_path / "parts", "--task", "hats"),
        *("--out", tmp_path / "new", "--json", *EMBEDDING),
    )
    (row,) = json.loads(done.out)["tasks"]
    assert (row["images"], row["test_images"]) == (10, 14)
    assert row["test_accuracy"] > 0.8


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_predict(command, trained, adapted, format):
    files = [trained / "hats" / "old" / "*.png", trained / "hats" / "new" / "3.png"]
    done = command("predict", adapted, *files, "--task", "hats", "--format", format)
    assert done.code == 0, done.err
    if format != "json":
        assert "11 images, task 'hats' as given" in done.err
        assert "in the folder of their class" in done.err
    if format == "table":
        assert "old" in done.out
        return
    if format == "csv":
        rows = list(csv.DictReader(io.StringIO(done.out)))
    else:
        rows = json.loads(done.out)["images"]
    assert len(rows) == 11
    right = [Path(row["file"]).parent.name == row["label"] for row in rows]
    assert sum(right) >= 10
    model = load_run(adapted)
    pixels = np.asarray(Image.open(rows[0]["file"]))[None, None]
    logits = model.materialize("hats")(model.tasks.normalise(torch.tensor(pixels)))[0, :2]
    assert float(rows[0]["probability"]) == pytest.approx(logits.softmax(0).max().item(), abs=1e-4)


def test_predict_tells_the_task(command, adapted, tmp_path):
    folder = tmp_path / "fresh"
    write_task(folder, {"old": 90, "new": 160}, count=10, seed=9)
    done = command("predict", adapted, folder, "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["task"] == "hats"
    probabilities = found["task_probabilities"]
    assert list(probabilities) == ["bags", "shoes", "hats"]
    assert probabilities["hats"] == max(probabilities.values())
    assert found["p_value"] > 0.01
    assert len(found["images"]) == 20
    shown = command("predict", adapted, folder).err
    assert (
        f"20 images, task 'hats' told from the images (probability {probabilities['hats']:.1%}"
        in shown
    )
    assert "%; next '" in shown
    given = json.loads(
        command("predict", adapted, folder, "--task", "bags", "--format", "json").out
    )
    assert given["task_probabilities"] is given["p_value"] is None


def test_predict_says_that_images_are_of_no_known_task(command, trained, adapted, tmp_path):
    write_task(tmp_path / "caps", {"a": 125, "b": 215}, count=10)
    done = command("predict", adapted, tmp_path / "caps")
    assert done.code == 2
    assert f"the images are not like those of any one task of {adapted} (p = " in done.err
    assert "name the task by `--task`, or learn a new one by `adapt`" in done.err
    assert command("predict", adapted, tmp_path / "caps", "--task", "hats").code == 0
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for folder in (trained / "hats", trained / "data" / "bags"):
        for i, path in enumerate(sorted(folder.rglob("*.png"))):
            shutil.copy(path, mixed / f"{folder.name}{i}.png")
    done = command("predict", adapted, mixed)
    assert done.code == 2
    assert "if they are of several tasks, about " in done.err
    assert "% 'hats'" in done.err
    assert "% 'bags'" in done.err


def test_tasks_are_told_after_others_were_renamed_and_removed(command, trained, adapted, tmp_path):
    out, fewer = tmp_path / "renamed", tmp_path / "fewer"
    assert command("tasks", adapted, "--rename", "hats", "caps", "--out", out).code == 0
    assert command("tasks", out, "--remove", "shoes", "--out", fewer).code == 0
    found = json.loads(command("predict", fewer, trained / "hats", "--format", "json").out)
    assert found["task"] == "caps"
    assert list(found["task_probabilities"]) == ["bags", "caps"]


def test_exported_models_equal_the_hypernetwork(command, adapted, tmp_path):
    run, x = load_run(adapted), torch.randn(5, 1, 8, 8)
    expected = run.model(x, task="hats").detach()
    files = {}
    for format in ("safetensors", "pt2", "onnx"):
        files[format] = tmp_path / f"hats.{format}"
        done = command(*("export", adapted, "--task", "hats", "--out", files[format]))
        assert done.code == 0, done.err
        assert "2 logits (new, old)" in done.out
    expected = expected[:, :2]
    plain = build_target("mlp:16", (1, 8, 8), 2)
    plain.load_state_dict(load_file(files["safetensors"]))
    torch.testing.assert_close(plain(x), expected, atol=1e-5, rtol=0)
    extra = {"sparsehyper": ""}
    program = torch.export.load(files["pt2"], extra_files=extra).module()
    torch.testing.assert_close(program(x), expected, atol=1e-5, rtol=0)
    session = onnxruntime.InferenceSession(files["onnx"])
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=0)
    with safe_open(files["safetensors"], "pt") as file:
        kept = [file.metadata()["sparsehyper"], extra["sparsehyper"]]
    kept.append(session.get_modelmeta().custom_metadata_map["sparsehyper"])
    for text in kept:
        about = json.loads(text)
        assert about["classes"] == ["new", "old"]
        assert about["mean"] == list(run.tasks.mean)
        assert about["image_shape"] == [1, 8, 8]


def test_tasks_are_renamed_and_removed_in_new_runs(command, trained, adapted, tmp_path):
    before = contents(adapted)
    renamed, fewer = tmp_path / "renamed", tmp_path / "fewer"
    last = tmp_path / "last"
    assert (
        command("tasks", adapted, *("--remove", "bags", "--remove", "hats"), "--out", last).code
        == 0
    )
    assert load_run(last).tasks.names == ("shoes",)
    assert command("tasks", adapted, "--rename", "bags", "sacks", "--out", renamed).code == 0
    shown = command("tasks", renamed, "--remove", "shoes", "--out", fewer)
    assert shown.code == 0
    assert "sacks" in shown.out
    assert contents(adapted) == before
    run, old = load_run(fewer), load_run(adapted)
    assert run.tasks.names == ("sacks", "hats")
    for name, was in (("sacks", "bags"), ("hats", "hats")):
        now, then = run.materialize(name).state_dict(), old.materialize(was).state_dict()
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    # A name that another task has given up.
    back = tmp_path / "back"
    assert command("tasks", fewer, "--rename", "sacks", "shoes", "--out", back).code == 0
    assert load_run(back).tasks.names == ("shoes", "hats")


def test_an_adapted_run_is_not_trained(command, adapted):
    done = command("train", "--resume", "--out", adapted)
    assert done.code == 2
    assert "has other tasks than it was trained on" in done.err
    assert command("inspect", adapted).code == 0


@pytest.mark.filterwarnings("always")
def test_an_adapted_run_is_evaluated_on_its_own_images_and_on_those_of_new_tasks(
    command, trained, adapted, tmp_path
):
    before = json.loads(command("evaluate", trained / "run", "--json").out)["accuracies"]
    done = command("evaluate", adapted, "--json")
    assert json.loads(done.out)["accuracies"] == before
    assert "warning: tasks that were added are not evaluated: 'hats'" in done.err
    write_task(tmp_path / "more" / "hats", {"old": 90, "new": 160}, count=6, seed=5)
    done = command("evaluate", adapted, "--added", tmp_path / "more", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert list(found["accuracies"]) == ["hats"]
    assert found["accuracy"] > 0.8
    assert done.err == ""
    write_task(tmp_path / "other" / "hats", {"old": 90, "worn": 160}, count=2)
    done = command("evaluate", adapted, "--added", tmp_path / "other")
    assert "task 'hats' of" in done.err
    assert "has the class 'worn'; the run knows its classes 'new', 'old'" in done.err
    done = command("evaluate", trained / "run", "--added", tmp_path / "more")
    assert "unknown task 'hats'" in done.err


def test_tables_have_a_line_for_a_task_and_a_mean(command, adapted, monkeypatch):
    shown = command("tasks", adapted).out
    assert len([line for line in shown.splitlines() if "%" in line]) == 2  # hats and the mean
    assert "worn" not in shown
    monkeypatch.setenv("COLUMNS", "40")
    narrow = command("tasks", adapted).out.splitlines()
    assert narrow[narrow.index("hats") + 1 :][:2] == ["  classes: 2", "  origin: embedding"]
    assert max(map(len, narrow[1:])) <= 40


def test_a_run_finds_its_relative_folder_from_another(command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    out = tmp_path / "run"
    assert command("train", "--data", "data", "--out", out, *QUICK, "--steps", "2").code == 0
    monkeypatch.chdir(tmp_path)
    done = command("evaluate", out)
    assert done.code == 0, done.err


def test_added_tasks_of_larger_images_are_resized(command, adapted, tmp_path):
    write_task(tmp_path / "more" / "hats", {"old": 90, "new": 160}, count=3)
    for file in (tmp_path / "more").rglob("*.png"):
        with Image.open(file) as image:
            image.resize((16, 16)).save(file)
    added = ("evaluate", adapted, "--added", tmp_path / "more")
    assert "16 × 16" in command(*added).err
    done = command(*added, "--resize", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["accuracy"] > 0.6
    assert "`--resize` is for images of `--added`" in command("evaluate", adapted, "--resize").err


def test_images_in_the_present_folder_are_counted_by_its_name(command, trained, monkeypatch):
    monkeypatch.chdir(trained / "data" / "bags" / "new")
    done = command("predict", trained / "run", ".", "--task", "bags")
    assert "in the folder of their class" in done.err


def test_added_tasks_are_evaluated_on_validation_images(command, adapted, tmp_path):
    for seed, (part, count) in enumerate((("train", 2), ("test", 2), ("val", 3))):
        write_task(tmp_path / "more" / part / "hats", {"old": 90, "new": 160}, count, seed=seed)
    done = command("evaluate", adapted, "--added", tmp_path / "more", "--split", "val", "--json")
    assert json.loads(done.out)["accuracy"] > 0.6
    shutil.rmtree(tmp_path / "more" / "val")
    done = command("evaluate", adapted, "--added", tmp_path / "more", "--split", "val")
    assert done.code == 2
    assert "needs a folder val/" in done.err


def test_errors_of_evaluate_name_its_own_options(command, trained, adapted, tmp_path):
    done = command("evaluate", adapted, "--added", trained / "hats")  # classes, and no task
    assert "put <class>/*.png into a folder of the task's name (`adapt --task NAME` t" in done.err
    done = command("evaluate", adapted, "--added", tmp_path / "nowhere")
    assert f"error: no folder of images at {tmp_path / 'nowhere'}" in done.err
    done = command("evaluate", adapted, "--data", tmp_path / "nowhere")
    assert "it has moved, say where it is now: `evaluate` and `train --resume` take `--" in done.err
    done = command("evaluate", adapted, "--added", trained / "hats", "--data", trained / "data")
    assert "`--data` is for the data of the run, and those of `--added` are evaluated" in done.err
    shutil.copytree(trained / "data", tmp_path / "data")
    paint(tmp_path / "data" / "bags" / "new" / "x.png", (4, 4))
    done = command("evaluate", adapted, "--data", tmp_path / "data")
    assert "make them so, or train with an `image_size` to resize them to" in done.err


@pytest.mark.filterwarnings("always")
def test_a_task_that_was_hardly_learned_is_told_of(command, trained, tmp_path):
    write_task(tmp_path / "same" / "hats", {"old": 120, "new": 120}, count=40)
    options = ["--task", "noise", "--steps", "2"]
    done = command(
        *("adapt", trained / "run", "--data", tmp_path / "same" / "hats"),
        *(*options, "--out", tmp_path / "new", *EMBEDDING),
    )
    assert done.code == 0
    assert "warning: the new task 'noise' was hardly learned: " in done.err
    assert "of its own 80 images are right, and 50% are of one class" in done.err
    assert "(`--method` 'auto', or `--tune` 'all')" in done.err


def paint(path: Path, size=(8, 8), mode="L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (200, 10, 10) if mode == "RGB" else 0).save(path)


BAD = {
    "other sizes": (lambda d: paint(d / "old" / "x.png", (4, 4)), "hats", "takes 8 × 8"),
    "colour": (lambda d: paint(d / "old" / "x.png", mode="RGB"), "hats", "takes grey images"),
    "existing": (lambda d: None, "bags", "needs a name that no task has, got 'bags'"),
    "one class": (lambda d: shutil.rmtree(d / "old"), "hats", "has one class, 'new'"),
    "no images": (lambda d: [p.unlink() for p in d.rglob("*.png")], "hats", "has no images"),
    "corrupt": (lambda d: (d / "old" / "0.png").write_bytes(b"x"), "hats", "cannot read image"),
    "no folder": (shutil.rmtree, "hats", "no folder of images at "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_refused_and_nothing_is_changed(command, trained, tmp_path, case):
    spoil, task, message = BAD[case]
    shutil.copytree(trained / "hats", tmp_path / "hats")
    spoil(tmp_path / "hats")
    before = contents(trained / "run")
    done = command(
        *("adapt", trained / "run", "--data", tmp_path / "hats", "--task", task),
        *("--out", tmp_path / "new"),
    )
    assert done.code == 2
    assert message in done.err
    assert contents(trained / "run") == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] in (["hats"], [])


def test_more_classes_than_outputs(command, trained, tmp_path):
    for name in "abcd":
        paint(tmp_path / "hats" / name / "0.png")
    done = command(
        *("adapt", trained / "run", "--data", tmp_path / "hats", "--task", "hats"),
        *("--out", tmp_path / "new", *EMBEDDING),
    )
    assert done.code == 2
    assert "has 4 classes, the target has 3 outputs" in done.err


def test_other_bad_input(command, trained, adapted, tmp_path, monkeypatch):
    def refused(*words: object) -> str:
        done = command(*words)
        assert done.code == 2
        return done.err

    images = trained / "hats" / "old"
    file = tmp_path / "file.safetensors"
    assert "unknown task 'caps'; the tasks are: 'bags', 'shoes', 'hats'" in refused(
        "predict", adapted, images, "--task", "caps"
    )
    (tmp_path / "x.bmp").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        told = refused("predict", adapted, tmp_path)
    assert f"warning: images in other formats are ignored: {tmp_path / 'x.bmp'};" in told
    assert "folders or globs; PNG, JPEG and WebP are read" in told
    assert "no image at" in refused("predict", adapted, tmp_path / "*.jpg")
    assert "unknown task 'caps'" in refused("export", adapted, "--task", "caps", "--out", file)
    assert "`--format` must be one of" in refused(
        *("export", adapted, "--task", "hats", "--out", file, "--format", "h5")
    )
    assert "nothing is ever written over" in refused(
        *("adapt", adapted, "--data", images, "--task", "x", "--out", trained / "run")
    )
    assert "needs `--out`" in refused("tasks", adapted, "--remove", "hats")
    assert "`--format` 'pt2' does not go with .onnx" in refused(
        *("export", adapted, "--task", "hats", "--out", "x.onnx", "--format", "pt2")
    )
    assert "`--tune-lr` must be greater than 0" in refused(
        *("adapt", adapted, "--data", trained / "hats", "--task", "x", "--out", tmp_path / "o"),
        *("--tune", "last", "--tune-lr", "-1", *EMBEDDING),
    )
    assert "no parameters that `--tune` 'norm' names" in refused(
        *("adapt", adapted, "--data", trained / "hats", "--task", "x", "--out", tmp_path / "o"),
        *("--tune", "norm", *EMBEDDING),
    )
    assert "no task has, got 'bags'; taken are: 'bags', 'shoes', 'hats'" in refused(
        *("tasks", adapted, "--rename", "hats", "bags", "--out", file)
    )
    assert "a new task needs a name, got ' '" in refused(
        *("tasks", adapted, "--rename", "hats", " ", "--out", file)
    )
    assert "`--format` is needed" in refused("export", adapted, "--task", "hats", "--out", "x.bin")
    assert "x.bin has none of the suffixes .safetensors, .pt2, .onnx" in refused(
        "export", adapted, "--task", "hats", "--out", "x.bin"
    )
    file.write_text("kept")
    assert "nothing is ever written over" in refused(
        "export", adapted, "--task", "hats", "--out", file
    )
    assert file.read_text() == "kept"
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert 'pip install "sparsehyper[onnx]"' in refused(
        *("export", adapted, "--task", "hats", "--format", "onnx", "--out", tmp_path / "f.onnx")
    )


def test_a_damaged_adapted_run_is_told(command, adapted):
    tensors = adapted / "tasks.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\1")
    done = command("tasks", adapted)
    assert done.code == 2
    assert "tasks.safetensors is damaged: it is not what was written" in done.err
    tensors.unlink()
    assert "tasks.safetensors is missing from the run" in command("tasks", adapted).err
    tasks = adapted / "tasks.json"
    tasks.write_text(tasks.read_text().replace('"hats"', '"cats"'))
    assert "tasks.json is damaged or was edited" in command("tasks", adapted).err


def test_weights_are_copied_where_they_cannot_be_linked(command, trained, tmp_path, monkeypatch):
    def elsewhere(source, destination, **_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", elsewhere)
    out, renamed = tmp_path / "new", tmp_path / "renamed"
    done = adapt_hats(command, trained, out)
    assert "has a copy of its weights" in done.out
    weights = "checkpoints/best/model.safetensors"
    assert not os.path.samefile(out / weights, trained / "run" / weights)
    done = command("tasks", out, "--rename", "hats", "caps", "--out", renamed)
    assert f"has a copy of the weights of {out}" in done.out


def test_names_that_are_taken_are_listed_as_far_as_one_can_read_them():
    entries = tuple(TaskEntry(f"task {i}", ("a", "b"), row=i) for i in range(45))
    with pytest.raises(ValueError, match=r"taken are: 'task 0', .*'task 9' and 35 more"):
        TaskList(entries, {}).check_new("task 30")


@pytest.fixture
def permuted(command, tmp_path) -> Path:
    out = tmp_path / "permuted"
    options = ["--tasks", "permuted:2", "--batch-size", "8"]
    assert command("train", "--data", "digits", *options, "--out", out, *QUICK).code == 0
    return out


def test_tasks_of_altered_images_are_not_told_from_image_files(
    command, trained, permuted, tmp_path
):
    images = trained / "hats"
    done = command("predict", permuted, images)
    assert done.code == 2
    assert f"`RUN` {permuted} knows only tasks trained on images altered by 'permuted:2'" in (
        done.err
    )
    done = command("predict", permuted, images, "--task", "permutation-0")
    assert done.code == 2
    assert "`--task` 'permutation-0' was trained on images altered by 'permuted:2'" in done.err
    assert "export its model" in done.err
    out = tmp_path / "new"
    adapt = ("adapt", permuted, "--data", images, "--task", "hats", "--out", out, *EMBEDDING)
    assert command(*adapt).code == 0
    done = command("predict", out, images / "new" / "3.png", "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["task"] == "hats"
    assert list(found["task_probabilities"]) == ["hats"]
    one = command("predict", out, images / "new" / "3.png")
    assert one.err.startswith("1 image, task 'hats' told from the images (probability 100.0%), ")


@pytest.fixture(scope="module")
def baselines(trained):
    """Runs of the baselines on the tasks of `trained`, by name."""
    from sparsehyper.lab.cli.app import run

    found = {}
    for method in ("shared_trunk", "experts"):
        found[method] = trained / method
        options = [*QUICK, "--steps", "60", "--tasks-per-batch", "2", "--batch-size", "8"]
        data = ["--data", str(trained / "data"), "--out", str(found[method])]
        assert run(["train", *data, *options, "--method", method]) == 0
    return found


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("method", ["shared_trunk", "experts"])
@pytest.mark.parametrize("tune", [None, "all"])
def test_baselines_learn_new_tasks_of_any_number_of_classes(
    command, trained, baselines, tmp_path, method, tune
):
    shades = {"new": 50, "old": 100, "torn": 150, "wet": 200}
    write_task(tmp_path / "hats" / "train", shades, count=10)
    write_task(tmp_path / "hats" / "test", shades, count=5, seed=1)
    run, out = baselines[method], tmp_path / "out"
    done = command(
        *("adapt", run, "--data", tmp_path / "hats", "--task", "hats", "--out", out, "--json"),
        *([] if tune is None else ["--tune", tune]),
    )
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["tasks"]
    where = {"shared_trunk": "the shared trunk", "experts": "the nearest expert"}[method]
    learned = f"last layer on {where}" + (" + all" if tune else "")
    assert row["method"] == learned
    assert min(row["accuracy"], row["test_accuracy"]) > 0.8
    # Every command knows the task, and how it was learned.
    listed = json.loads(command("tasks", out, "--json").out)["tasks"]
    assert [entry["origin"] for entry in listed] == ["trained", "trained", learned]
    assert listed[2]["measured"]["test_accuracy"] == row["test_accuracy"]
    assert learned in command("tasks", out).out
    done = command("predict", out, tmp_path / "hats" / "test", "--task", "hats")
    assert f"{row['test_accuracy']:.2%} are in the folder of their class" in done.err
    file = tmp_path / "hats.safetensors"
    assert command("export", out, "--task", "hats", "--out", file).code == 0
    plain = build_target("mlp:16", (1, 8, 8), 4)
    plain.load_state_dict(load_file(file))
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(plain(x), load_run(out).materialize("hats")(x))
    assert command("report", out, "--out", tmp_path / "report.html").code == 0
    assert learned in (tmp_path / "report.html").read_text()
    # The trained tasks are what they were, under new names too.
    renamed = tmp_path / "renamed"
    assert command("tasks", out, "--rename", "bags", "sacks", "--out", renamed).code == 0
    trained_model = load_run(run).model
    expected = trained_model(x, task=trained_model.task_names.index("bags"))
    torch.testing.assert_close(load_run(renamed).materialize("sacks")(x), expected)
    before = json.loads(command("evaluate", run, "--json").out)["accuracies"]
    after = json.loads(command("evaluate", renamed, "--json").out)["accuracies"]
    assert after == {"sacks": before["bags"], "shoes": before["shoes"]}


def test_what_baselines_cannot_do(command, trained, baselines, tmp_path):
    run = baselines["shared_trunk"]
    done = command("predict", run, trained / "hats")
    assert done.code == 2
    assert "`--task` must be given, as the run in" in done.err
    done = command(
        *("adapt", run, "--data", trained / "hats", "--task", "h", "--out", tmp_path / "o"),
        *("--restarts", 3),
    )
    assert done.code == 2
    assert (
        "`--restarts` is for hypernetworks; a run of SharedTrunk learns a last layer; got 3"
        in done.err
    )
    done = command("inspect", run)
    assert done.code == 2
    assert f"`RUN` {run} holds the baseline SharedTrunk" in done.err


@pytest.mark.filterwarnings("always")
def test_images_of_several_tasks_are_not_taken_for_one(command, trained):
    done = command("predict", trained / "run", trained / "data")
    assert done.code == 2
    assert "must all be of one task, got the folders of 'bags', 'shoes'" in done.err
    done = command("predict", trained / "run", trained / "data", "--task", "bags")
    assert done.code == 0
    assert "warning: `--task` is 'bags', but images are in the folders of" in done.err


def test_an_exported_file_states_how_images_become_inputs(command, trained, adapted, tmp_path):
    file = tmp_path / "hats.safetensors"
    assert command("export", adapted, "--task", "hats", "--out", file).code == 0
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["sparsehyper"])
    mean, std = load_run(adapted).tasks.mean, load_run(adapted).tasks.std
    assert about["preprocessing"] == [
        "decode as 8-bit grey, upright by its EXIF orientation, transparency over white",
        "files have 8 × 8 pixels (height × width); none was resized",
        f"(image / 255 - mean) / std with mean {list(mean)} and std {list(std)}",
        "float32 [batch, 1, 8, 8]",
    ]
    assert (about["origin"], about["outputs"]) == ("embedding", 2)
