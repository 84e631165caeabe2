from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper._util.files import read_sealed, sealed
from sparsehyper.adaptation.mixture import Mixture
from sparsehyper.lab.runs import (
    METHODS,
    adapt_run,
    change_tasks,
    describe_run,
    describe_tasks,
    evaluate_run,
    export_run,
    load_run,
    predict_run,
    read_experiment,
    run_experiment,
    shares_weights,
)
from sparsehyper.lab.runs.adapted import sharing_weights
from sparsehyper.lab.runs.loading import check_run, finished_result
from sparsehyper.lab.runs.ordinary import form_of, tensors_of
from sparsehyper.lab.runs.targets import UntrustedTargetError, build_target
from sparsehyper.lab.runs.task_list import TaskEntry, TaskList, write_tasks
from sparsehyper.training import CheckpointError, NonFiniteError, Run, TrainConfig, loop, train


def with_steps(experiment, steps):
    return replace(experiment, training=replace(experiment.training, steps=steps))


@pytest.fixture(scope="module")
def finished(experiment, tasks, tmp_path_factory):
    """Directory and result of a finished run; do not change them."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, run_experiment(experiment, path, tasks=tasks, quiet=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_evaluated_alike(with_method, tasks, tmp_path, method):
    experiment = with_method(method)
    result = run_experiment(experiment, tmp_path / "run", tasks=tasks, quiet=True)
    assert result["training"]["steps"] == 4
    assert result["test"]["accuracies"].keys() == set(tasks.names)
    assert evaluate_run(tmp_path / "run", device="cpu").to_dict() == result["test"]


def test_what_the_run_records(experiment, finished, tasks):
    path, result = finished
    recorded = json.loads((path / "config.json").read_text())
    assert recorded["config"].items() >= json.loads(json.dumps(experiment.to_dict())).items()
    assert recorded["config"]["resolved"]["tasks"]["fingerprint"] == tasks.fingerprint
    assert recorded["config"]["resolved"]["numel"] == 1074
    assert "torch" in recorded["versions"]
    assert json.loads((path / "result.json").read_text()).items() >= result.items()
    assert read_experiment(path) == experiment


def test_a_loaded_model_is_the_best_one(finished):
    path, result = finished
    loaded = load_run(path)
    assert not loaded.model.training
    assert loaded.tasks.names == tuple(result["test"]["accuracies"])
    assert evaluate_run(path, split="val", device="cpu").to_dict() == result["training"]["best"]
    values = result["test"]["accuracies"].values()
    mean, worst = loaded.figures().items()
    assert mean == (
        f"test accuracy, mean of {len(values)} tasks",
        f"{sum(values) / len(values):.1%}",
    )
    assert worst == ("test accuracy, worst of them", f"{min(values):.1%}")


def test_nothing_is_written_over(experiment, finished, tasks):
    with pytest.raises(FileExistsError, match="already holds a run"):
        run_experiment(experiment, finished[0], tasks=tasks, quiet=True)


def test_a_finished_run_is_left_alone(experiment, finished, tasks):
    path, result = finished
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert run_experiment(experiment, path, tasks=tasks, resume=True, quiet=True) == result
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_going_on_for_more_steps_equals_going_through(experiment, tasks, tmp_path):
    constant = replace(experiment, training=replace(experiment.training, schedule="constant"))
    longer = with_steps(constant, 8)
    run_experiment(constant, tmp_path / "a", tasks=tasks, quiet=True)
    assert finished_result(tmp_path / "a", longer) is None
    resumed = run_experiment(longer, tmp_path / "a", tasks=tasks, resume=True, quiet=True)
    through = run_experiment(longer, tmp_path / "b", tasks=tasks, quiet=True)
    assert resumed["test"] == through["test"]
    states = [load_run(tmp_path / name).model.state_dict() for name in "ab"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_old_result_is_not_that_of_a_run_that_went_on(experiment, tasks, tmp_path, monkeypatch):
    constant = replace(experiment, training=replace(experiment.training, schedule="constant"))
    run_experiment(constant, tmp_path / "run", tasks=tasks, quiet=True)
    real, calls = loop.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(
            with_steps(constant, 8), tmp_path / "run", tasks=tasks, resume=True, quiet=True
        )
    with pytest.raises(ValueError, match="`steps` is 4; the run has already made 6"):
        run_experiment(constant, tmp_path / "run", tasks=tasks, resume=True, quiet=True)


def test_what_a_source_does_to_its_images_counts_as_altering(finished):
    loaded = load_run(finished[0])
    name = loaded.tasks.names[0]

    def altered(source: str, made: str | None) -> str | None:
        data = replace(loaded.experiment.data, source=source, tasks=made)
        return loaded._replace(experiment=replace(loaded.experiment, data=data)).altered_by(name)

    assert altered("digits", "split:2") is None
    assert altered("omniglot_small1", "alphabets:5") == (
        "shrinking to 28 × 28 and inverting, so that ink is white"
    )
    assert "centring on black" in altered("digits+mnist", None)
    assert altered("digits", "permuted:3") == "permuted:3"


def test_a_run_of_another_experiment(with_method, finished, tasks):
    config = {**with_method("sparse", batch_size=10).to_dict(), "resolved": None}
    recorded = json.loads((finished[0] / "config.json").read_text())["config"]
    config["resolved"] = recorded["resolved"]
    with pytest.raises(ValueError, match="other settings: its `batch_size` is 20, got 10"):
        check_run(finished[0], config)
    with pytest.raises(ValueError, match=r"its `method\.kind` is 'sparse', got 'dense'"):
        run_experiment(with_method("dense"), finished[0], tasks=tasks, resume=True, quiet=True)


def test_data_that_have_changed(experiment, finished, tasks, tmp_path, monkeypatch):
    changed = replace(tasks, fingerprint="0123456789abcdef")
    message = rf"the data have changed .*was '{tasks.fingerprint}' and is '0123456789abcdef'"
    with pytest.raises(ValueError, match=message):
        run_experiment(experiment, finished[0], tasks=changed, resume=True, quiet=True)
    monkeypatch.setattr("sparsehyper.lab.runs.run.load_tasks", lambda *_, **__: changed)
    with pytest.raises(ValueError, match=message):
        evaluate_run(finished[0])


def test_no_run(experiment, tasks, tmp_path):
    for call in (
        lambda: run_experiment(experiment, tmp_path, tasks=tasks, resume=True, quiet=True),
        lambda: evaluate_run(tmp_path),
        lambda: read_experiment(tmp_path),
    ):
        with pytest.raises(FileNotFoundError, match=r"holds no run: it has no config\.json"):
            call()


def test_a_run_without_a_checkpoint(experiment, tasks, tmp_path):
    wild = replace(experiment, training=replace(experiment.training, lr=1e38, clip=None))
    with pytest.raises(NonFiniteError):
        run_experiment(wild, tmp_path / "run", tasks=tasks, quiet=True)
    assert finished_result(tmp_path / "run", wild) is None
    with pytest.raises(FileNotFoundError, match="has no evaluated checkpoint yet; resume"):
        load_run(tmp_path / "run")


def test_a_run_made_in_python_is_not_damaged(tmp_path):
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), TaskEmbedding(["a"], dim=8))
    x = torch.randn(8, 2)
    batch, config = (x, (x[:, 0] > 0).long(), "a"), TrainConfig(steps=2, device="cpu")
    with Run.create(tmp_path / "run", {"about": "mine"}) as run:
        train(hnet, [batch], [batch], config, run=run, quiet=True)
    best = tmp_path / "run" / "checkpoints" / "best"
    message = f"was made in Python, .* by HyperNetwork.load\\({str(best)!r}, module\\)"
    with pytest.raises(ValueError, match=message) as caught:
        load_run(tmp_path / "run")
    assert not isinstance(caught.value, CheckpointError)
    again = HyperNetwork.load(best, nn.Linear(2, 2))
    assert torch.equal(again(x, task="a"), hnet(x, task="a"))


def test_damaged_files(experiment, tasks, tmp_path):
    path = tmp_path / "run"
    run_experiment(experiment, path, tasks=tasks, quiet=True)
    weights = path / "checkpoints" / "best" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors is damaged"):
        load_run(path)
    (path / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"result\.json is damaged or was edited"):
        finished_result(path, experiment)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"mlp:16"', '"mlp:17"'))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged or was edited"):
        read_experiment(path)


def rewritten(finished, tmp_path, change):
    """A copy of a run with another configuration and the matching digest."""
    path = tmp_path / "stranger"
    shutil.copytree(finished[0], path)
    about = read_sealed(path / "config.json")
    change(about["config"])
    (path / "config.json").write_text(sealed(about))
    return path


def test_a_run_that_left_settings_of_its_target_out_keeps_its_network(with_method, tasks, tmp_path):
    own, path = with_method("sparse", target="cnn:4,norm=none,pool=stride"), tmp_path / "run"
    run_experiment(own, path, tasks=tasks, quiet=True)
    weights = load_run(path).materialize("0-1").state_dict()
    about = read_sealed(path / "config.json")
    about["config"]["target"] = "cnn:4"  # as it was written once
    (path / "config.json").write_text(sealed(about))
    loaded = load_run(path)
    assert loaded.experiment.target == own.target
    for name, tensor in loaded.materialize("0-1").state_dict().items():
        assert torch.equal(tensor, weights[name])
    longer = with_steps(loaded.experiment, 6)
    assert run_experiment(longer, path, tasks=tasks, resume=True, quiet=True)["training"]["steps"]
    assert read_sealed(path / "config.json")["config"]["target"] == own.target
    other = replace(longer, target="cnn:4")
    with pytest.raises(ValueError, match="its `target` is 'cnn:4,norm=none,pool=stride', got"):
        run_experiment(other, path, tasks=tasks, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_shape", ["sh", "-c", "true"], "`image_shape` must be an integer, got 'sh'"),
        ("image_shape", [1, 8], "`image_shape` 3 numbers"),
        ("image_shape", [3, 8, 8], "`mean` must have 3 numbers"),
        ("image_shape", [1, 8, 10**30], "`image_shape` must be at most 8192"),
        ("mean", ["0"], "`mean` must be a number"),
        ("names", [1, 2, 3, 4, 5], "must be strings"),
        ("names", [], "`classes` must have one entry, .* got 5 for 0 and"),
        ("classes", [[]] * 5, "`classes` must have one entry, not empty"),
        ("fingerprint", None, "must be strings"),
    ],
)
def test_tasks_that_are_none(finished, tmp_path, key, value, message):
    path = rewritten(finished, tmp_path, lambda c: c["resolved"]["tasks"].update({key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json .*{message}"):
        load_run(path)


@pytest.mark.parametrize(
    "change",
    [
        {"target": ["mlp"]},
        {"optimizer": "adam"},
        {"method": {"kind": "os.system"}},
        {"data": {"source": 3}},
        {"data": None},
        {"training": {"steps": 1, "optimizer": "LBFGS"}},
    ],
)
def test_settings_that_are_none(finished, tmp_path, change):
    path = rewritten(finished, tmp_path, lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: "):
        read_experiment(path)


@pytest.mark.parametrize("mask", ["", "/masked:0.5"])
def test_a_stranger_s_function_is_neither_imported_nor_called(
    finished, tmp_path, monkeypatch, mask
):
    (tmp_path / "strangers.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    path = rewritten(finished, tmp_path, lambda c: c.update(target=f"strangers:net{mask}"))
    out = tmp_path / "out"
    for call in (
        lambda **trust: load_run(path, **trust),
        lambda **trust: read_experiment(path, **trust),
        lambda **trust: evaluate_run(path, **trust),
        lambda **trust: predict_run(path, [path], **trust),
        lambda **trust: adapt_run(path, out, path, **trust),
        lambda **trust: change_tasks(path, out, remove=["0-1"], **trust),
        lambda **trust: describe_tasks(path, **trust),
        lambda **trust: describe_run(path, **trust),
        lambda **trust: export_run(path, "0-1", tmp_path / "a.pt2", **trust),
    ):
        for trust in ({}, {"trust": ["strangers:other"]}):
            with pytest.raises(UntrustedTargetError, match=r"--trust-target strangers:net .*Py"):
                call(**trust)
    assert "strangers" not in sys.modules


def test_a_function_of_one_s_own_is_trusted_each_time(experiment, tasks, tmp_path, monkeypatch):
    (tmp_path / "own_target.py").write_text(
        "from torch import nn\n"
        "def net(image_shape, n_classes):\n"
        "    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).requires_grad_(False)\n"
        "    return nn.Sequential(trunk, nn.Linear(8, n_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own, path = replace(experiment, target="own_target:net"), tmp_path / "run"
    result = run_experiment(own, path, tasks=tasks, quiet=True)
    with pytest.raises(UntrustedTargetError, match=r"trust=\['own_target:net'\]"):
        load_run(path)
    loaded = load_run(path, trust=["own_target:net"])
    assert not loaded.model.target.module[0][1].weight.requires_grad
    change_tasks(path, tmp_path / "less", remove=["0-1"], trust=["own_target:net"])
    assert len(describe_tasks(tmp_path / "less", trust=["own_target:net"])) == 4
    assert evaluate_run(path, device="cpu", trust=["own_target:net"]).to_dict() == result["test"]
    # Whoever gives the experiment has named the function.
    longer = with_steps(own, 6)
    again = run_experiment(longer, path, tasks=tasks, resume=True, quiet=True)
    assert again["training"]["steps"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0/embedding"), "lacks the tensor '0/embedding'"),
        (lambda t: t.update({"0/embedding": torch.zeros(3)}), r"shape \[3\], the model's is \[8\]"),
        (lambda t: t.update({"0/embedding": t["0/embedding"].half()}), r"dtype torch\.float16"),
        (lambda t: t.update({"0/embedding": torch.full((8,), torch.nan)}), "holds NaN or infinity"),
        (lambda t: t.update({"0/tuned/x": torch.zeros(3)}), "unexpected tensor '0/tuned/x'"),
        (
            lambda t: t.update({"0/tuned/1.weight": torch.zeros(3)}),
            r"tensor '0/tuned/1\.weight' has",
        ),
    ],
)
def test_tensors_of_an_adapted_run_that_do_not_fit(finished, tmp_path, change, message):
    loaded, out = load_run(finished[0]), tmp_path / "adapted"
    tensors = {"embedding": loaded.model.task_embedding.weight[0].detach()}
    tasks = loaded.task_list.add(TaskEntry("new", ("a", "b")), tensors)
    change(tasks.tensors)
    with sharing_weights(finished[0], out, loaded.checkpoint) as partial:
        write_tasks(partial, tasks, loaded.checkpoint)
    with pytest.raises(CheckpointError, match=rf"tasks\.safetensors .*{message}"):
        load_run(out)


LEAF = {"kind": "target", "outputs": 2}


def mixture(members, **changes):
    """The form of a mixture of equal weights, as a file has it."""
    count = len(members)
    weights, temperatures = [1 / max(count, 1)] * count, [1.0] * count
    form = {"members": members, "weights": weights, "temperatures": temperatures, "n_classes": None}
    return {**form, **changes}


def nested(depth):
    """The form of mixtures of one member within one another."""
    return mixture([nested(depth - 1)]) if depth else LEAF


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": 3}, "must be strings"),
        ({"classes": []}, "must have classes"),
        ({"row": None}, "a row or a key"),
        ({"row": -1}, "`row` must be at least 0"),
        ({"row": 5}, "`row` must be below 5, got 5"),
        ({"row": 1}, "none twice"),
        ({"row": None, "key": "../x"}, r"`key` must be a number in a string, got '\.\./x'"),
        ({"extra": 1}, "unexpected keyword"),
        ({"method": 3}, "`method` must be a string, got 3"),
        ({"measured": {"images": 3, "accuracy": 7}}, "`accuracy` must be at most 1, got 7"),
        ({"measured": {"images": 3, "accuracy": 1, "interval": [0]}}, "must be two numbers"),
        ({"measured": {"images": 3, "accuracy": 1, "warnings": [3]}}, "`warnings` must be a str"),
        ({"model": {"kind": "python", "outputs": 2}}, "`kind` must be one of"),
        ({"model": {"kind": "target", "outputs": 2**40}}, "`outputs` must be at most"),
        ({"model": {"kind": "target", "outputs": 1}}, "`outputs` must be at least 2, got 1"),
        ({"model": mixture([])}, "one entry for each"),
        ({"model": mixture([LEAF], weights=[0.5])}, "must sum to 1"),
        ({"model": mixture([LEAF], temperatures=[0])}, "`temperatures` must be greater than 0"),
        ({"model": mixture([LEAF], n_classes=3)}, "`n_classes` must be at most 2"),
        ({"model": mixture([LEAF, {**LEAF, "outputs": 3}])}, r"as many outputs, got \[2, 3\]"),
        ({"model": nested(5)}, "at most 4 mixtures deep"),
        ({"model": mixture([LEAF] * 1001)}, "at most 1000 models"),
    ],
)
def test_entries_of_an_adapted_run_that_are_none(finished, tmp_path, entry, message):
    change_tasks(finished[0], tmp_path / "out", rename=("0-1", "low"))
    path = tmp_path / "out" / "tasks.json"
    record = read_sealed(path)
    record["tasks"][0].update(entry)
    path.write_text(sealed(record))
    with pytest.raises(CheckpointError, match=rf"tasks\.json is damaged: .*{message}"):
        load_run(tmp_path / "out")
    path.write_text(sealed({**record, "format": 2}))
    with pytest.raises(CheckpointError, match=r"tasks\.json has format 2"):
        load_run(tmp_path / "out")


def test_a_task_may_have_an_average_of_ordinary_models(finished, tmp_path):
    loaded, out, x = load_run(finished[0]), tmp_path / "adapted", torch.randn(4, 1, 8, 8)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    members = [loaded.materialize("0-1"), build_target("mlp:16", (1, 8, 8), 3)]
    inner = Mixture([members[0], linear])
    model = Mixture([inner, members[1]], [0.25, 0.75], [2.0, 0.5], n_classes=2)
    form, leaves = form_of(model, (1, 8, 8))
    entry = TaskEntry("new", ("a", "b"), method="average", model=form)
    tasks = loaded.task_list.add(entry, tensors_of(leaves))
    with sharing_weights(finished[0], out, loaded.checkpoint) as partial:
        write_tasks(partial, tasks, loaded.checkpoint)
    again = load_run(out)
    assert again.model.task_names == loaded.model.task_names
    parts = [
        ((members[0](x) + linear(x)) / 2 / 2.0).softmax(1),
        (members[1](x)[:, :2] / 0.5).softmax(1),
    ]
    expected = 0.25 * parts[0] + 0.75 * parts[1]
    torch.testing.assert_close(again.materialize("new")(x).softmax(1), expected)
    about = export_run(out, "new", tmp_path / "new.pt2")
    assert (about["outputs"], about["origin"]) == (2, "average")
    program = torch.export.load(tmp_path / "new.pt2").module()
    torch.testing.assert_close(program(x).softmax(1), expected)
    described = {task["name"]: task for task in describe_run(out)["tasks"]}
    assert (described["new"]["origin"], described["new"]["nearest"]) == ("average", None)
    assert [row["nearest"] for row in describe_tasks(out)].count(None) == 1
    for change, message in (
        (lambda t: t.pop("0/model/1/1.weight"), "lacks the tensor '0/model/1/1.weight'"),
        (lambda t: t.update({"0/x": torch.zeros(8)}), "unexpected tensor '0/x'"),
        (lambda t: t.update({"0/model/3/x": torch.zeros(8)}), "unexpected tensor '0/model/3/x'"),
    ):
        damaged = TaskList(tasks.entries, dict(tasks.tensors))
        change(damaged.tensors)
        write_tasks(out, damaged, loaded.checkpoint)
        with pytest.raises(CheckpointError, match=message):
            load_run(out)


def test_tasks_of_a_run_without_a_hypernetwork(with_method, tasks, finished, tmp_path):
    run_experiment(with_method("experts"), tmp_path / "run", tasks=tasks, quiet=True)
    loaded = load_run(tmp_path / "run")
    tasks = loaded.task_list.add(TaskEntry("new", ("a", "b")), {})
    write_tasks(tmp_path / "run", tasks, loaded.checkpoint)
    with pytest.raises(CheckpointError, match=r"model is not a hypernetwork"):
        load_run(tmp_path / "run")


def test_an_entry_planted_in_a_checkpoint_is_not_shared(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    private = tmp_path / "private"
    private.touch()
    private.chmod(0o600)
    best = tmp_path / "run" / "checkpoints" / "best"
    names = set(os.listdir(best))
    (best / "x").symlink_to(private)
    os.mkfifo(best / "pipe")
    name = load_run(tmp_path / "run").tasks.names[0]
    change_tasks(tmp_path / "run", tmp_path / "out", rename=(name, "b"))
    assert private.stat().st_mode & 0o777 == 0o600
    assert set(os.listdir(tmp_path / "out" / "checkpoints" / "best")) == names


def test_added_tasks_belong_to_the_checkpoint_with_these_digests(finished, tmp_path):
    change_tasks(finished[0], tmp_path / "out", rename=("0-1", "low"))
    digests = (finished[0] / "checkpoints" / "best" / "SHA256SUMS").read_bytes()
    record = read_sealed(tmp_path / "out" / "tasks.json")
    assert record["checkpoint"] == hashlib.sha256(digests).hexdigest()


def test_a_run_that_gets_a_better_checkpoint_while_it_is_adapted(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    with (
        pytest.raises(CheckpointError, match="has just got a better checkpoint"),
        sharing_weights(tmp_path / "run", tmp_path / "out", "another checkpoint"),
    ):
        pass
    assert not (tmp_path / "out").exists()
    # Once the weights are shared, training may go on.
    loaded = load_run(tmp_path / "run")
    with sharing_weights(tmp_path / "run", tmp_path / "out", loaded.checkpoint) as partial:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        write_tasks(partial, loaded.task_list, loaded.checkpoint)
    assert load_run(tmp_path / "out").tasks.names == loaded.tasks.names
    assert not shares_weights(tmp_path / "run", tmp_path / "out")


def test_a_run_killed_between_two_renames_is_read(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    (path / "checkpoints").rename(path / "checkpoints.old")
    assert evaluate_run(path, device="cpu").to_dict() == finished[1]["test"]
    change_tasks(path, tmp_path / "out", remove=["0-1"])
    assert len(load_run(tmp_path / "out").tasks.names) == 4


def test_an_unknown_split(finished):
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'val', 'test'; got 'te"):
        evaluate_run(finished[0], split="testing")


def test_the_same_seed_gives_the_same_result(experiment, finished, tasks, tmp_path):
    again = run_experiment(experiment, tmp_path / "run", tasks=tasks, quiet=True)
    assert again["test"] == finished[1]["test"]
    other = run_experiment(experiment.with_seed(1), tmp_path / "other", tasks=tasks, quiet=True)
    assert other["test"] != again["test"]
