"""Runs whose models depend on examples, on the input, or on input and task."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from helpers.command_line import QUICK
from helpers.pictures import write_task
from sparsehyper import InputAndTask, InputEncoder, SupportSet, TaskExamples
from sparsehyper.lab.cli.app import run
from sparsehyper.lab.runs import load_run, read_experiment

BY_EXAMPLES = ("support_set", "support_set:pool=examples")
BY_INPUT = ("input_encoder", "input_and_task")
SMALL = [*QUICK, "--latent-dim", "16", "--tasks-per-batch", "2"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Images of known tasks and a new one, and a run of each conditioner."""
    root = tmp_path_factory.mktemp("conditioners")
    for name, shades in {"shoes": (60, 190), "bags": (190, 60), "caps": (80, 210)}.items():
        write_task(root / "data" / name, {"new": shades[0], "worn": shades[1]}, count=10)
    write_task(root / "hats", {"new": 170, "old": 80}, count=10, seed=2)
    for kind in (*BY_EXAMPLES, *BY_INPUT):
        options = [*SMALL, "--conditioner", kind, "--steps", "100", "--batch-size", "12"]
        data = ["--data", str(root / "data"), "--out", str(root / slug(kind))]
        assert run(["train", *data, *options]) == 0
    return root


def slug(kind: str) -> str:
    return kind.replace(":", "-")


@pytest.mark.parametrize("kind", [*BY_EXAMPLES, *BY_INPUT])
def test_digits_are_learned_and_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    command, tmp_path, kind
):
    common = [*SMALL, "--conditioner", kind, "--schedule", "constant", "--lr", "0.01"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = command("train", "--out", whole, *common, "--steps", 60, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["experiment"]["conditioner"] == kind
    assert result["test"]["accuracy"] > 0.8  # of two classes
    assert command("train", "--out", halves, *common, "--steps", 30).code == 0
    resumed = command("train", "--out", halves, "--resume", "--steps", 60, "--quiet", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["test"] == result["test"]
    other = command("train", "--out", halves, "--resume", "--conditioner", "task_embedding")
    assert other.code == 2
    assert "`--conditioner`" in other.err


@pytest.mark.parametrize("kind", [*BY_EXAMPLES, *BY_INPUT])
def test_every_command_reads_such_a_run(command, shop, tmp_path, kind):
    path = shop / slug(kind)
    test = json.loads((path / "result.json").read_text())["test"]
    shown = command("evaluate", path, "--json")
    assert json.loads(shown.out)["accuracies"] == test["accuracies"]
    added = command("evaluate", path, "--added", shop / "data", "--json")
    assert list(json.loads(added.out)["accuracies"]) == ["bags", "caps", "shoes"]
    predicted = command("predict", path, shop / "data" / "bags", "--task", "bags")
    assert predicted.code == 0, predicted.err
    assert "are in the folder of their class" in predicted.err
    listed = command("tasks", path, "--json")
    assert [row["task"] for row in json.loads(listed.out)["tasks"]] == ["bags", "caps", "shoes"]
    renamed = tmp_path / "renamed"
    assert command("tasks", path, "--rename", "bags", "sacks", "--out", renamed).code == 0
    again = json.loads(command("evaluate", renamed, "--json").out)["accuracies"]
    assert again == {"sacks": test["accuracies"]["bags"], **without(test["accuracies"], "bags")}
    fewer = tmp_path / "fewer"
    assert command("tasks", renamed, "--remove", "caps", "--out", fewer).code == 0
    again = json.loads(command("evaluate", fewer, "--json").out)["accuracies"]
    assert list(again) == ["sacks", "shoes"]
    assert again["shoes"] == test["accuracies"]["shoes"]
    for words in (["inspect", path], ["report", path, fewer, "--out", tmp_path / "page.html"]):
        done = command(*words)
        assert done.code == 0, done.err


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize("kind", BY_EXAMPLES)
def test_a_new_task_follows_from_its_examples_without_training(command, shop, tmp_path, kind):
    path, out = shop / slug(kind), tmp_path / "new"
    before = contents(path)
    hats = ("--data", shop / "hats", "--task", "hats")
    done = command("adapt", path, *hats, "--out", out, "--seconds", 5, "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["tasks"]
    assert (row["method"], row["images"]) == ("examples", 20)
    assert row["accuracy"] > 0.9
    assert contents(path) == before
    weights = "checkpoints/best/model.safetensors"
    assert os.path.samefile(out / weights, path / weights)

    old, new = load_run(path).hypernetwork(), load_run(out)
    assert isinstance(old.conditioner, TaskExamples)
    (task,) = new.task_list.entries[3:]
    assert (task.name, task.origin) == ("hats", "examples")
    kept = new.task_list.tensors["0/embedding"]
    assert not torch.equal(kept, old.conditioner.embeddings.mean(0))
    model, same = new.materialize("hats"), old.materialize(kept).eval()
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(model(x), same(x))

    evaluated = command("evaluate", out, "--added", root_of(shop, tmp_path), "--json")
    assert json.loads(evaluated.out)["accuracies"]["hats"] == row["accuracy"]
    told = command("predict", out, shop / "hats")
    assert told.code == 0, told.err
    exported = command("export", out, "--task", "hats", "--out", tmp_path / "hats.safetensors")
    assert exported.code == 0, exported.err
    again = command("adapt", out, *hats[:3], "caps 2", "--out", tmp_path / "again")
    assert again.code == 0, again.err


def root_of(shop, tmp_path):
    """A folder whose one task is the new one."""
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "hats").symlink_to(shop / "hats")
    return tmp_path / "all"


def test_a_run_of_support_sets_can_learn_in_other_ways_too(command, shop, tmp_path):
    words = ["adapt", shop / "support_set", "--data", shop / "hats", "--task", "hats"]
    done = command(*words, "--method", "embedding", "--out", tmp_path / "new", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["tasks"]
    assert (row["method"], row["accuracy"] > 0.9) == ("embedding", True)


def test_more_classes_than_examples_may_have_are_refused_before_any_work(command, shop, tmp_path):
    write_task(tmp_path / "more", {"a": 30, "b": 120, "c": 210}, count=5)
    words = ["adapt", shop / "support_set", "--data", tmp_path / "more", "--task", "more"]
    refused = command(*words, "--out", tmp_path / "new")
    assert refused.code == 2
    assert "task 'more' has 3 classes, and the run takes examples of at most 2" in refused.err
    assert "`--method`, such as 'all'" in refused.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", BY_INPUT)
def test_what_needs_one_model_a_task_is_refused_where_models_follow_from_the_input(
    command, shop, tmp_path, kind
):
    path, out = shop / slug(kind), tmp_path / "out"
    for words, why in (
        (["export", path, "--task", "bags"], "there is no single model of 'bags' to export"),
        (["adapt", path, "--data", shop / "hats", "--task", "hats"], "no embedding of a new task"),
    ):
        refused = command(*words, "--out", out.with_suffix(".safetensors"))
        assert refused.code == 2
        assert f"a run with `conditioner` '{kind}', by which every input has" in refused.err
        assert why in refused.err
        assert "such as 'task_embedding' or 'support_set'" in refused.err
        assert not out.with_suffix(".safetensors").exists()
    untold = command("predict", path, shop / "data" / "bags")
    assert untold.code == 2
    assert "`--task` must be given" in untold.err


def test_models_depend_on_what_the_conditioner_says(shop):
    x = torch.randn(6, 1, 8, 8)
    alone = load_run(shop / "input_encoder").hypernetwork()
    assert isinstance(alone.conditioner, InputEncoder)
    assert not torch.equal(alone.embedding(None, x)[0], alone.embedding(None, x)[1])
    both = load_run(shop / "input_and_task").hypernetwork()
    assert isinstance(both.conditioner, InputAndTask)
    assert not torch.equal(both(x, task="bags"), both(x, task="shoes"))
    pools = [load_run(shop / slug(kind)).hypernetwork().conditioner.support for kind in BY_EXAMPLES]
    assert all(isinstance(support, SupportSet) for support in pools)
    assert [support.pool for support in pools] == ["classes", "examples"]
    again = load_run(shop / "support_set").hypernetwork()
    (hats, y), (shuffled, z) = ((torch.cat([x, -x]), torch.arange(12) // 6 * s) for s in (1, 0))
    assert not torch.equal(again.embedding((hats, y)), again.embedding((shuffled, z)))


def test_a_file_of_options_and_the_usual_lengths_of_embeddings(command, tmp_path):
    for kind, dim in (("input_and_task", 64), ("support_set", 256), ("task_embedding", 256)):
        file, out = tmp_path / "run.yaml", tmp_path / kind
        file.write_text(f"conditioner: {kind}\nsteps: 2\nquiet: true\ntarget: mlp:8\nout: {out}\n")
        done = command("train", "--config", file)
        assert done.code == 0, done.err
        experiment = read_experiment(out)
        assert (experiment.conditioner, experiment.latent_dim) == (kind, dim)
        recorded = json.loads((out / "config.json").read_text())["config"]
        assert ("conditioner" in recorded) == (kind != "task_embedding")  # as in older runs


def test_compare_gives_it_to_generators_alone(command, tmp_path):
    words = ["compare", "--out", tmp_path / "c", "--conditioner", "support_set", "--seeds", 1]
    words += ["--method", "sparse", "--method", "shared_trunk", *SMALL, "--steps", 10, "--json"]
    done = command(*words)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert results["config"]["conditioner"] == "support_set"
    assert [row["method"] for row in results["rows"]] == ["sparse", "shared_trunk"]
    kinds = [read_experiment(path).conditioner for path in sorted((tmp_path / "c/runs").iterdir())]
    assert kinds == ["task_embedding", "support_set"]  # of the trunk, and of the generator


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--conditioner", "task"], ["'task'", "'task_embedding'", "'support_set:pool=examples'"]),
        (["--conditioner", "support_set", "--method", "experts"], ["for generators", "'experts'"]),
        (["--conditioner", "input_encoder", "--head", "ridge"], ["'generated'", "knows no tasks"]),
        (["--conditioner", "input_encoder", "--target", "cnn:4"], ["batch norms", "or none"]),
        (["--conditioner", "support_set", "--latent-dim", "1"], ["`--latent-dim`", "got 1"]),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(command, tmp_path, options, words):
    refused = command("train", "--out", tmp_path / "run", *QUICK, *options)
    assert refused.code == 2
    assert all(word in refused.err for word in words), refused.err
    assert not (tmp_path / "run").exists()


def test_a_table_by_input_and_no_support_sets_of_numbers(command, tmp_path):
    lines = ["site,a,b,price"]
    lines += [f"{'xy'[i % 2]},{i % 7},{i % 5},{i % 7 + (i % 2) * (i % 5)}" for i in range(120)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = ["--data", tmp_path / "table.csv", "--task-column", "site", "--target-column", "price"]
    refused = command(
        "train", *data, "--out", tmp_path / "r", *QUICK, "--conditioner", BY_EXAMPLES[0]
    )
    assert refused.code == 2
    assert "numbers are predicted here" in refused.err
    for kind in BY_INPUT:
        out = tmp_path / kind
        done = command(
            "train", *data, "--out", out, *QUICK, "--conditioner", kind, "--latent-dim", 8
        )
        assert done.code == 0, done.err
        found = command("predict", out, tmp_path / "table.csv", "--format", "csv")
        assert found.code == 0, found.err
        assert found.out.count("\n") == 121


def test_only_a_run_of_support_sets_learns_from_examples_alone(command, shop, tmp_path):
    plain = tmp_path / "plain"
    assert command("train", "--data", shop / "data", "--out", plain, *SMALL).code == 0
    words = ["adapt", plain, "--data", shop / "hats", "--task", "hats", "--out", tmp_path / "new"]
    refused = command(*words, "--method", "examples")
    assert refused.code == 2
    assert "`--method` 'examples' is for a run with `conditioner` 'support_set'" in refused.err
