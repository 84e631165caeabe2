"""New tasks by the best means that their images allow, as a user would learn them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.command_line import QUICK
from helpers.pictures import write_task
from sparsehyper.lab.runs import learning, load_run
from sparsehyper.lab.runs.ordinary import Leaf, form_from_dict, tensors_of
from sparsehyper.lab.runs.task_list import TaskList
from sparsehyper.training import CheckpointError

SHADES = {"new": 40, "old": 90, "torn": 140, "wet": 190, "worn": 240}


@pytest.fixture(scope="module", params=["ridge", "generated"])
def trained(request, tmp_path_factory) -> Path:
    """Images of known tasks of 2 classes and of a new one of 5, and a run that knows the former."""
    from sparsehyper.lab.cli.app import run

    root = tmp_path_factory.mktemp("auto")
    write_task(root / "data" / "shoes", {"new": 60, "worn": 190}, count=10)
    write_task(root / "data" / "bags", {"a": 190, "b": 60}, count=10, seed=1)
    write_task(root / "hats" / "train", SHADES, count=8, seed=2)
    write_task(root / "hats" / "test", SHADES, count=4, seed=3)
    options = [*QUICK, "--steps", "60", "--tasks-per-batch", "2", "--batch-size", "8"]
    data = ["--data", str(root / "data"), "--out", str(root / "run"), "--head", request.param]
    assert run(["train", *data, *options]) == 0
    return root


@pytest.fixture(scope="module")
def adapted(trained) -> tuple[Path, str]:
    """A run with the new task, and what the command printed."""
    from sparsehyper.lab.cli.app import run

    out, shown = trained / "adapted", io.StringIO()
    hats = ["--data", str(trained / "hats"), "--task", "hats"]
    with contextlib.redirect_stdout(shown):
        assert run(["adapt", str(trained / "run"), *hats, "--out", str(out)]) == 0
    return out, shown.getvalue()


def test_a_task_of_more_classes_is_learned_and_its_accuracy_stated(command, adapted):
    out, shown = adapted
    (row,) = [r for r in json.loads(command("tasks", out, "--json").out)["tasks"] if r["measured"]]
    measured = row["measured"]
    low, high = measured["interval"]
    assert 0.2 < low <= measured["expected"] <= high
    assert measured["test_accuracy"] > 0.5
    assert measured["expected"] <= measured["more"][0] <= measured["more"][1]
    assert re.match(r"On \d+ examples held out, ", measured["why"])
    assert row["origin"].startswith("auto: ")
    text = " ".join(shown.split())
    assert f"hats: {row['origin']}; expect {measured['expected']:.0%} (" in text
    assert "with twice as many images and" in text
    assert f"{measured['expected']:.0%}" in command("tasks", out).out


def test_every_command_takes_the_model_that_was_chosen(command, trained, adapted, tmp_path):
    out, _ = adapted
    done = command("predict", out, trained / "hats" / "test", "--task", "hats", "--format", "json")
    assert done.code == 0, done.err
    listed = json.loads(command("tasks", out, "--json").out)["tasks"]
    (entry,) = [row for row in listed if row["task"] == "hats"]
    assert json.loads(done.out)["accuracy"] == entry["measured"]["test_accuracy"]
    again = command("evaluate", out, "--added", trained / "hats", "--json")
    assert again.code == 2  # the folder holds classes, not tasks
    assert command("report", out, "--out", tmp_path / "page.html").code == 0
    assert entry["measured"]["why"] in (tmp_path / "page.html").read_text()
    told = command("predict", out, trained / "data" / "bags", "--format", "json")
    assert json.loads(told.out)["task"] == "bags"


def test_exported_mixtures_equal_the_run_s_own(command, adapted, tmp_path):
    out, _ = adapted
    run, x, files = load_run(out), torch.randn(5, 1, 8, 8), {}
    model = run.materialize("hats")
    expected = model(x).detach()
    assert expected.shape == (5, 5)
    for format in ("safetensors", "pt2", "onnx"):
        files[format] = tmp_path / f"hats.{format}"
        done = command("export", out, "--task", "hats", "--out", files[format])
        assert done.code == 0, done.err
        assert "5 logits (new, old, torn, wet, worn)" in done.out
    program = torch.export.load(files["pt2"]).module()
    torch.testing.assert_close(program(x), expected, atol=1e-5, rtol=1e-5)
    session = onnxruntime.InferenceSession(files["onnx"])
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-4)
    with safe_open(files["safetensors"], "pt") as file:
        about = json.loads(file.metadata()["sparsehyper"])
    (entry,) = (e for e in run.task_list.entries if e.name == "hats")
    assert form_from_dict(about["model"]) == entry.model
    state = load_file(files["safetensors"])
    model.load_state_dict(state)
    assert state.keys() == model.state_dict().keys()


def test_tasks_are_learned_as_if_each_were_the_only_one(command, trained, tmp_path):
    for name, shades in (("caps", (80, 170)), ("gloves", (170, 80))):
        write_task(tmp_path / "more" / name, {"a": shades[0], "b": shades[1]}, count=6)
    both, alone = tmp_path / "both", tmp_path / "alone"
    adapt = ("adapt", trained / "run", "--method", "head")
    assert command(*adapt, "--data", tmp_path / "more", "--out", both).code == 0
    gloves = tmp_path / "more" / "gloves"
    assert command(*adapt, "--data", gloves, "--task", "gloves", "--out", alone).code == 0
    models = [load_run(run).materialize("gloves") for run in (both, alone)]
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(models[0](x), models[1](x))
    assert load_run(both).tasks.names == ("bags", "shoes", "caps", "gloves")


def test_embeddings_alone_take_their_heads_along(command, trained, tmp_path):
    out, embedding = tmp_path / "out", ("--method", "embedding")
    hats = ("--data", trained / "hats", "--task", "hats", "--out", out)
    done = command("adapt", trained / "run", *hats, *embedding, "--json")
    if load_run(trained / "run").model.head is None:
        assert done.code == 2
        assert "has 5 classes, the target has 2 outputs" in done.err
        return
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["tasks"]
    assert row["test_accuracy"] > 0.5
    assert (row["expected"], row["method"]) == (None, "embedding")
    done = command("predict", out, trained / "hats" / "test", "--task", "hats")
    assert f"{row['test_accuracy']:.2%} are in the folder of their class" in done.err
    file = tmp_path / "hats.pt2"
    assert command("export", out, "--task", "hats", "--out", file).code == 0
    x = torch.randn(3, 1, 8, 8)
    expected = load_run(out).materialize("hats")(x)
    assert expected.shape == (3, 5)
    torch.testing.assert_close(torch.export.load(file).module()(x), expected)
    assert command("report", out, "--out", tmp_path / "page.html").code == 0
    # Trained tasks are what they were, and a task may be tuned and be followed by others.
    old, new = (load_run(run).materialize("bags") for run in (trained / "run", out))
    torch.testing.assert_close(old(x), new(x))
    more = tmp_path / "more"
    caps = ("--data", trained / "data" / "shoes", "--task", "caps", "--out", more)
    assert command("adapt", out, *caps, *embedding, "--tune", "last").code == 0
    assert load_run(more).materialize("caps")(x).shape == (3, 2)
    torch.testing.assert_close(load_run(more).materialize("hats")(x), expected)


def test_known_images_are_asked_where_a_class_has_few(command, trained, tmp_path, monkeypatch):
    asked = []
    adapt_tasks = learning.adapt_tasks

    def seen(*args, known, **settings):
        asked.append(known)
        return adapt_tasks(*args, known=known, **settings)

    monkeypatch.setattr(learning, "adapt_tasks", seen)
    write_task(tmp_path / "one", {"a": 60, "b": 190}, count=1)
    write_task(tmp_path / "more", {"a": 60, "b": 190}, count=6)
    adapt = ("adapt", trained / "run", "--task", "caps")
    assert command(*adapt, "--data", tmp_path / "one", "--out", tmp_path / "1").code == 0
    assert command(*adapt, "--data", tmp_path / "more", "--out", tmp_path / "2").code == 0
    data = trained / "data"
    data.rename(trained / "moved")
    try:
        assert command(*adapt, "--data", tmp_path / "one", "--out", tmp_path / "3").code == 0
    finally:
        (trained / "moved").rename(data)
    assert list(asked[0]) == ["bags", "shoes"]
    x, y = asked[0]["bags"]
    assert x.shape[1:] == (1, 8, 8)
    assert sorted(set(y.tolist())) == [0, 1]
    assert asked[1:] == [None, None]


def test_a_way_with_a_comma_in_its_name_is_one_in_a_list(command, trained, tmp_path, monkeypatch):
    adapt_tasks, way = learning.adapt_tasks, "embedding, all"
    monkeypatch.setattr(
        learning, "adapt_tasks", lambda *a, **s: adapt_tasks(*a, **{**s, "method": way})
    )
    hats = ("--data", trained / "data" / "bags", "--task", "hats", "--out", tmp_path / "out")
    done = command("adapt", trained / "run", *hats)
    assert "hats: auto: embedding + all 100%; expect " in " ".join(done.out.split())
    assert "auto: embedding + all 100%" in command("tasks", tmp_path / "out").out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "`--method` must be one of"),
        (["--seconds", "0"], "`--seconds` must be greater than 0, got 0"),
        (["--tune", "last"], "`--tune` is for `--method` 'embedding' alone, got 'last' with"),
        (["--restarts", "2", "--method", "all"], "`--restarts` is for `--method` 'embedding' a"),
        (["--tune-steps", "7"], "`--tune-steps` is for `--method` 'embedding' alone, got 7"),
        (
            ["--tune-steps", "7", "--method", "embedding"],
            "`--tune-steps` is for `--tune`, which is not given; got 7",
        ),
        (
            ["--seconds", "3", "--method", "embedding"],
            "`--seconds` is not for `--method` 'embedding', got 3",
        ),
    ],
)
def test_options_that_do_not_go_together(command, trained, tmp_path, options, message):
    hats = ("--data", trained / "hats", "--task", "hats", "--out", tmp_path / "out")
    done = command("adapt", trained / "run", *hats, *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_tensors_of_a_file_that_do_not_fit(trained, adapted):
    """Whatever is missing or too large is refused before a model of its size is built."""
    run = load_run(adapted[0])
    (entry,) = (e for e in run.task_list.entries if e.name == "hats")
    trained_info = load_run(trained / "run").tasks

    def refused(message, model=None, **changes):
        tensors = {**run.task_list.tensors, **{n: t for n, t in changes.items() if t is not None}}
        for name in [n for n, t in changes.items() if t is None]:
            del tensors[name]
        entries = tuple(
            replace(e, model=model) if model and e is entry else e for e in run.task_list.entries
        )
        fresh = load_run(trained / "run").model
        with pytest.raises(CheckpointError, match=message):
            TaskList(entries, tensors).apply(fresh, run.experiment, trained_info, Path("x"))

    key = entry.key
    refused(r"no tensor 0/model/0/… of 1048576 outputs", Leaf("target", 2**20))
    some = next(n for n in run.task_list.tensors if n.startswith(f"{key}/model/"))
    refused(f"lacks the tensor '{some}'|no tensor", None, **{some: None})
    if f"{key}/head/bias" in run.task_list.tensors:
        wide = torch.zeros(1000)
        refused(
            r"head/bias' has shape \[1000\], the model's is \[5\]", **{f"{key}/head/bias": wide}
        )
        refused("lacks the tensor '0/head/bias'", **{f"{key}/head/bias": None})
    assert tensors_of([torch.nn.Linear(2, 2)]).keys() == {"model/0/weight", "model/0/bias"}
