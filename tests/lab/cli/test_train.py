from __future__ import annotations

import datetime
import json
import re
import shlex
import warnings

import pytest

from helpers.command_line import QUICK
from sparsehyper import HyperNetwork
from sparsehyper.lab.runs import build_target, read_experiment


def test_trains_evaluates_and_refuses_to_write_over(command, tmp_path):
    out = tmp_path / "run"
    done = command("train", "--out", out, *QUICK)
    assert done.code == 0
    assert done.err == ""
    assert "0-1" in done.out
    assert "the best model is in" in done.out
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    again = command("train", "--out", out, *QUICK)
    assert again.code == 2
    assert again.err.startswith("error: ")
    assert f"`--out` {out} already holds a run; `--resume` it" in again.err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before

    shown = command("evaluate", out, "--json")
    assert shown.code == 0
    result = json.loads((out / "result.json").read_text())
    assert json.loads(shown.out)["accuracy"] == result["test"]["accuracy"]
    assert result["command"].startswith(f"sparsehyper train --out {out} ")
    assert datetime.date.fromisoformat(result["date"])


def test_resume_goes_on_with_the_recorded_configuration(command, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    common = [*QUICK, "--schedule", "constant", "--method", "chunked:chunks=4"]
    assert command("train", "--out", whole, *common, "--steps", 40).code == 0
    assert command("train", "--out", halves, *common).code == 0
    resumed = command("train", "--out", halves, "--resume", "--steps", 40, "--quiet", "--json")
    assert resumed.code == 0
    assert (
        json.loads(resumed.out)["test"] == json.loads((whole / "result.json").read_text())["test"]
    )


def test_resume_refuses_another_configuration(command, tmp_path):
    assert command("train", "--out", tmp_path / "run", *QUICK).code == 0
    other = command("train", "--out", tmp_path / "run", "--resume", "--latent-dim", 8, "--quiet")
    assert other.code == 2
    assert "`--latent-dim`" in other.err


def test_a_refused_resume_leaves_the_run_as_it_was(command, tmp_path):
    out = tmp_path / "run"
    assert command("train", "--out", out, *QUICK).code == 0
    before = (out / "config.json").read_bytes()
    fewer = command("train", "--out", out, "--resume", "--steps", 5, "--quiet")
    assert fewer.code == 2
    assert "`--steps` is 5; the run has already made 20" in fewer.err
    assert (out / "config.json").read_bytes() == before


def test_the_user_s_own_folder(command, folder, tmp_path):
    done = command(
        "train", "--out", tmp_path / "run", "--data", folder, *QUICK, "--batch-size", 8, "--json"
    )
    assert done.code == 0
    result = json.loads(done.out)
    assert list(result["test"]["accuracies"]) == ["bags", "shoes"]
    target = build_target("mlp:16", (1, 8, 8), 2)
    hnet = HyperNetwork.load(tmp_path / "run" / "checkpoints" / "best", target)
    assert hnet.task_names == ("bags", "shoes")


def test_a_loss_that_is_not_finite_exits_1_and_keeps_the_last_checkpoint(command, tmp_path):
    done = command(
        "train", "--out", tmp_path / "run", *QUICK, "--optimizer", "sgd", "--lr", 1e30, "--clip", 0
    )
    assert done.code == 1
    assert "step" in done.err
    assert "task" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "sprase"], ["'sprase'", "'sparse'", "'chunked'"]),
        (["--method", "sparse:topology=ring"], ["'ring'", "'circulant'"]),
        (["--method", "sparse:fan_in=0"], ["`fan_in`", "got 0"]),
        (["--method", "sparse:sigma=-1"], ["`sigma`", "-1"]),
        (["--method", "sparse:growth=1"], ["`growth`", "got 1"]),
        (["--method", "sparse:growth=abc"], ["`growth`", "got 'abc', in sparse:growth=abc"]),
        (["--base", "pretrained"], ["`--base` 'pretrained'", "`--target` 'mlp:16'", "at random"]),
        (["--target", "math:zzz"], ["`--target` 'math:zzz'", "math has no 'zzz'"]),
        (["--target", "math:hypot"], ["`--target`", "(image_shape, n_classes)"]),
        (["--latent-dim", "0"], ["`--latent-dim`", "got 0"]),
        (["--data", "nowhere"], ["`--data`", "'nowhere'", "'digits'"]),
        (["--tasks", "splat:2"], ["splat", "split"]),
        (["--tasks", "split:0-77"], ["77"]),
        (["--target", "vgg"], ["'vgg'", "mlp"]),
        (["--budget", "0.5"], ["`--budget`", "greater than 1", "'zeros' has none"]),
        (["--base", "zeros", "--budget", "0.001"], ["`--budget`", "at least"]),
        (["--schedule", "linear"], ["`--schedule`", "'linear'", "'cosine'"]),
        (["--steps", "0"], ["`--steps`", "got 0"]),
        (["--augment", "blur"], ["'blur'", "crop"]),
        (["--val-fraction", "0"], ["`--val-fraction`", "got 0"]),
        (["--tasks-per-batch", "7"], ["`--tasks-per-batch`", "7"]),
        (["--norm-stats", "none"], ["`--norm-stats`", "'none'", "'per_task'"]),
        (["--cuda-graphs", "--device", "cpu"], ["`--cuda-graphs`", "CUDA device", "'cpu'"]),
        (["--cuda-graphs", "--accumulate", "2"], ["`--cuda-graphs`", "`--accumulate` 2"]),
    ],
)
def test_bad_input_exits_2_says_what_is_wrong_and_leaves_nothing(
    command, tmp_path, arguments, words
):
    done = command("train", "--out", tmp_path / "run", *QUICK, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert not (tmp_path / "run").exists()


def test_an_image_that_cannot_be_read_is_named(command, folder, tmp_path):
    (folder / "bags" / "new" / "3.png").write_bytes(b"not an image")
    done = command("train", "--out", tmp_path / "run", "--data", folder, *QUICK)
    assert done.code == 2
    assert "3.png" in done.err


def test_a_damaged_checkpoint_is_named(command, tmp_path):
    assert command("train", "--out", tmp_path / "run", *QUICK).code == 0
    weights = tmp_path / "run" / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = command("evaluate", tmp_path / "run")
    assert done.code == 2
    assert "model.safetensors" in done.err


def test_evaluate_refuses_a_folder_without_a_run(command, tmp_path):
    done = command("evaluate", tmp_path)
    assert done.code == 2
    assert str(tmp_path) in done.err


def test_names_of_tasks_are_shown_as_they_are(command, folder, tmp_path):
    (folder / "bags").rename(folder / "[red] été :smile:")
    done = command("train", "--out", tmp_path / "r", "--data", folder, *QUICK, "--batch-size", 8)
    assert done.code == 0
    assert "[red] été :smile:" in done.out


def test_a_target_of_one_s_own_is_named_each_time(command, tmp_path, monkeypatch):
    (tmp_path / "cli_target.py").write_text(
        "from torch import nn\n"
        "def net(image_shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run, new = tmp_path / "run", tmp_path / "new"
    trained = command("train", "--out", run, *QUICK, "--target", "cli_target:net")
    assert trained.code == 0, trained.err
    more = ["train", "--out", run, "--resume", "--quiet", "--steps"]
    for words in (
        ["evaluate", run],
        ["tasks", run],
        ["tasks", run, "--remove", "0-1", "--out", new],
        ["inspect", run],
        ["export", run, "--task", "0-1", "--out", tmp_path / "a.safetensors"],
        ["report", run, "--out", tmp_path / "report.html"],
        [*more, 30],
    ):
        refused = command(*words)
        assert refused.code == 2
        assert "a function that would be imported and called" in refused.err
        option = re.findall(r"--trust-target \S+", refused.err)
        allowed = command(*words, *option[0].split())
        assert allowed.code == 0, allowed.err
    assert command("predict", new, "x.png").code == 2
    assert "--trust-target" in command("predict", new, "x.png").err
    assert "--trust-target" in command("adapt", new, "--data", run, "--out", tmp_path / "x").err
    # Naming a function as the target means trusting it.
    named = command(*more, 35, "--target", "cli_target:net")
    assert named.code == 0, named.err
    assert "--trust-target cli_target:net" in command(*more, 40, "--target", "mlp:8").err


def test_resume_says_that_it_goes_on_from_the_best_checkpoint(command, tmp_path):
    run = tmp_path / "run"
    assert command("train", "--out", run, *QUICK).code == 0
    weights = run / "checkpoints" / "last" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-100])
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # not an error, as in other tests
        done = command("train", "--out", run, "--resume", "--steps", 30, "--quiet")
    assert done.code == 0
    assert done.err.startswith(f"warning: {weights} is damaged: ")
    assert "; continuing from the best checkpoint, of step " in done.err
    assert done.err.count("\n") == 1


def test_a_target_of_one_s_own_may_be_pretrained(command, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(image_shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--target", "own:net", "--base", "pretrained"]
    done = command("train", "--out", tmp_path / "run", *QUICK, *options)
    assert done.code == 0, done.err


def test_training_says_what_it_found(command, folder, tmp_path):
    loud = [option for option in QUICK if option != "--quiet"]
    done = command("train", "--data", folder, "--out", tmp_path / "run", *loud, "--batch-size", 8)
    assert done.code == 0, done.err
    first = done.err.splitlines()[0]
    assert first.startswith("2 tasks ('bags', 'shoes') of 2 classes; ")
    found = re.search(r"; (\d+) images to train on, (\d+) to validate, (\d+) to test; ", first)
    assert sum(map(int, found.groups())) == 40
    assert "1 × 8 × 8" in first
    assert "inputs: " not in done.err  # images have no columns


@pytest.mark.parametrize(
    ("options", "missing"),
    [((), ()), (("--conditioner", "input_encoder"), ("adapt", "export"))],
)
def test_training_ends_with_the_commands_that_can_follow(
    command, folder, tmp_path, options, missing
):
    loud, out = [option for option in QUICK if option != "--quiet"], tmp_path / "my run"
    words = ("train", "--data", folder, "--out", out, *loud, "--batch-size", 8, *options)
    last = command(*words).out.splitlines()[-1]
    assert last.startswith("next: sparsehyper evaluate ")
    following = [shlex.split(one) for one in last.removeprefix("next: ").split("; ")]
    assert all(words[2] == str(out) for words in following)
    names = [words[1] for words in following]
    assert names == [name for name in ("evaluate", "adapt", "export") if name not in missing]
    assert command(*following[0][1:]).code == 0
    if not missing:
        assert following[-1][3:5] == ["--task", "bags"]
        written = [*following[-1][1:-1], tmp_path / "FILE.pt2"]
        assert command(*written).code == 0
    for option in ("--quiet", "--json"):
        assert "next: " not in command(*words, "--resume", option).out


@pytest.mark.gpu
def test_trains_on_a_gpu_with_and_without_recorded_steps(command, tmp_path):
    accuracies = []
    for name, more in (("plain", []), ("recorded", ["--cuda-graphs"])):
        out = tmp_path / name
        options = [*QUICK, "--device", "cuda", "--augment", "crop", "--tasks-per-batch", 2, *more]
        assert command("train", "--out", out, *options).code == 0
        result = json.loads((out / "result.json").read_text())
        accuracies.append(result["test"]["accuracy"])
        assert command("evaluate", out, "--device", "cuda").code == 0
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)


def test_a_file_gives_options_and_the_command_line_wins(command, tmp_path):
    lines = ["data: digits", "steps: 20", "latent-dim: 8", "augment: flip", "target: mlp:8"]
    lines += ["eval-every: 20", "quiet: true", f"out: {tmp_path}/a"]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    done = command("train", "--config", tmp_path / "run.yaml", "--steps", 10, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["training"]["steps"] == 10
    recorded = read_experiment(tmp_path / "a")
    assert (recorded.latent_dim, list(recorded.augment)) == (8, ["flip"])
    resumed = command("train", "--config", tmp_path / "run.yaml", "--resume", "--json")
    assert json.loads(resumed.out)["training"]["steps"] == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepps: 5", "'stepps', which is no option"),
        ("steps: many", "'--steps'"),
        ("steps: {a: 1}", "it takes one value"),
        ("- steps", "must hold lines such as"),
        ("steps: [", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("target: os:getcwd", "would run code"),
        ("trust-target: true", "would run code"),
    ],
)
def test_a_file_of_options_that_is_wrong_is_refused(command, tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    refused = command("train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert refused.code == 2
    assert said in refused.err
