"""Any damage to files is noticed, and training goes on from what is intact."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.faults.runs import make_runs, make_target
from helpers.toy import Model, same
from sparsehyper import HyperNetwork
from sparsehyper.lab.runs import build_target, change_tasks, load_run, read_experiment
from sparsehyper.lab.runs.loading import finished_result
from sparsehyper.lab.runs.profiles import read_profiles
from sparsehyper.training import CheckpointError, Evaluation, Run, TrainConfig
from sparsehyper.training.checkpoint import TrainingState
from sparsehyper.training.optim import build_optimizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs of `make_runs`; do not change them."""
    path = tmp_path_factory.mktemp("whole")
    make_runs(path)
    best, last = (path / "run" / "checkpoints" / name for name in ("best", "last"))
    assert (best / "training.json").read_bytes() != (last / "training.json").read_bytes()
    return path


def read_all(path):
    """Read everything in a directory, as the commands do."""
    if (path / "config.json").exists() and not (path / "checkpoints").exists():
        HyperNetwork.load(path, make_target())
        return
    read_profiles(load_run(path))
    finished_result(path, read_experiment(path))
    if not (path / "tasks.json").exists():
        Run(path).read_metrics()
        target = build_target(read_experiment(path).target, (1, 8, 8), 5)
        model = HyperNetwork.load(path / "checkpoints" / "best", target)
        training = TrainConfig(steps=1)
        with Run.open(path) as run:
            before = (path / "metrics.jsonl").read_bytes()
            trainable = [p for p in model.parameters() if p.requires_grad]
            run.restore(model, build_optimizer(training, trainable))
            (path / "metrics.jsonl").write_bytes(before)


def files_of(path):
    found = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return sorted(file.relative_to(path) for file in found)


def damaged(file, content):
    """Give a file other content, without changing files that are linked to it."""
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)


def notice(path, file):
    """Read a directory one of whose files is damaged; the error names it."""
    # A damaged checkpoint `last` is skipped with a warning.
    with pytest.raises((CheckpointError, FileNotFoundError, UserWarning)) as caught:
        read_all(path)
    assert file.name in str(caught.value)


@pytest.mark.parametrize("kind", ["run", "adapted", "model"])
def test_flipped_bits(whole, tmp_path, kind, trials, record_figures):
    rng, path = random.Random(0), tmp_path / kind
    shutil.copytree(whole / kind, path)
    read_all(path)
    files, number = files_of(path), trials(60, 2000) // 3 + 1
    slowest = 0.0
    for trial in range(number):
        file = path / files[trial % len(files)]
        content = file.read_bytes()
        changed, place = bytearray(content), rng.randrange(8 * len(content))
        changed[place // 8] ^= 1 << place % 8
        damaged(file, bytes(changed))
        started = time.monotonic()
        notice(path, file)
        slowest = max(slowest, time.monotonic() - started)
        damaged(file, content)
    read_all(path)
    record_figures(
        f"damage is noticed: flipped bits, {kind}", tried=number, wrong=0, slowest_seconds=slowest
    )


@pytest.mark.parametrize("kind", ["run", "adapted", "model"])
def test_files_cut_short_or_gone(whole, tmp_path, kind, trials, record_figures):
    path, tried = tmp_path / kind, 0
    shutil.copytree(whole / kind, path)
    for name in files_of(path):
        file, content = path / name, (path / name).read_bytes()
        ends = {0, 1, len(content) // 2, len(content) - 1}
        if content.count(b"\n") > 1:  # after a whole line
            ends |= {content.index(b"\n") + 1, content.rindex(b"\n", 0, -1) + 1}
        more = trials(0, 40)
        ends |= set(random.Random(1).sample(range(len(content)), min(more, len(content))))
        for end in (None, *sorted(ends)):
            damaged(file, None if end is None else content[:end])
            optional = ("result.json", "tasks.json", "profiles.json")
            if name.name not in optional or end is not None:
                notice(path, file)
                tried += 1
            damaged(file, content)
    read_all(path)
    record_figures(f"damage is noticed: truncation, {kind}", tried=tried, wrong=0)


def test_files_of_another_run(whole, tmp_path, record_figures):
    path, tried = tmp_path / "run", 0
    shutil.copytree(whole / "run", path)
    for name in files_of(path):
        content, other = (path / name).read_bytes(), (whole / "other" / name).read_bytes()
        if content == other:
            continue
        damaged(path / name, other)
        with pytest.raises((CheckpointError, UserWarning)):
            read_all(path)
        damaged(path / name, content)
        tried += 1
    assert tried > 8
    record_figures("damage is noticed: swapped files", tried=tried, wrong=0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_saved_model_with_a_file_of_another(whole, tmp_path, name):
    path = tmp_path / "model"
    shutil.copytree(whole / "model", path)
    shutil.copy(whole / "another" / name, path / name)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: it is not what was"):
        HyperNetwork.load(path, make_target())


@pytest.mark.parametrize("place", ["run", "adapted"])
def test_a_checkpoint_of_another_run(whole, tmp_path, place):
    path = tmp_path / place
    shutil.copytree(whole / place, path)
    best = path / "checkpoints" / "best"
    shutil.rmtree(best)
    shutil.copytree(whole / "other" / "checkpoints" / "best", best)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(best))} belongs to another run"):
        load_run(path)


def test_checkpoints_of_a_run_that_change_places(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole / "run", path)
    best, last = (path / "checkpoints" / name for name in ("best", "last"))
    shutil.rmtree(best)
    shutil.copytree(last, best)
    with pytest.raises(CheckpointError, match=r"best is not the checkpoint .* after step 12, the"):
        load_run(path)


def test_tasks_of_a_run_with_another_checkpoint(whole, tmp_path):
    """New tasks were fitted to the weights at hand, and to no others."""
    path = tmp_path / "adapted"
    shutil.copytree(whole / "adapted", path)
    change_tasks(whole / "other", tmp_path / "theirs", rename=("0-1-2-3-4", "low"))
    shutil.copy(tmp_path / "theirs" / "tasks.json", path / "tasks.json")
    with pytest.raises(CheckpointError, match=r"tasks\.json does not belong to the checkpoint"):
        load_run(path)


def test_a_result_of_another_run(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole / "run", path)
    shutil.copy(whole / "other" / "result.json", path / "result.json")
    with pytest.raises(CheckpointError, match=r"result\.json belongs to another run"):
        finished_result(path, read_experiment(path))


# ── a checkpoint, file by file ──────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path):
    """A run whose best checkpoint is older than its last."""
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        model(torch.randn(3, 4), torch.tensor([0, 1, 2])).sum().backward()
        optimizer = torch.optim.Adam(model.parameters())
        optimizer.step()
        run.write_metrics({"step": 3})
        run.save(model, optimizer, TrainingState(step=3, best_step=3), best=True)
        optimizer.step()
        run.write_metrics({"step": 5})
        run.save(model, optimizer, TrainingState(step=5, best_step=3), best=False)
        yield run


def restore(run, model=None, optimizer="adam"):
    model = model or Model(9)
    config = TrainConfig(steps=9, optimizer=optimizer)
    return run.restore(model, build_optimizer(config, model.parameters()))


FILES = ["config.json", "model.safetensors", "training.json", "training.safetensors"]


def damage(file, how):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.unlink()
    if how != "gone":
        file.write_bytes(content if how == "one bit" else content[: len(content) // 2])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut short", "one bit", "gone"])
def test_training_goes_on_from_the_best_checkpoint(run, name, how):
    file, model, best = run.last / name, Model(9), Model(8)
    run.restore_best(best)
    damage(file, how)
    what = "is missing from the checkpoint" if how == "gone" else "is damaged: it is not what"
    message = rf"{re.escape(f'{file} {what}')}.*; continuing from the best checkpoint, of step 3"
    with pytest.warns(UserWarning, match=message):
        assert restore(run, model).step == 3
    assert same(model, best)
    assert run.path.joinpath("metrics.jsonl").read_text() == '{"step": 3}\n'


def test_both_checkpoints_damaged_name_the_last_and_load_nothing(run):
    damage(run.last / "model.safetensors", "one bit")
    damage(run.best / "model.safetensors", "gone")
    model = Model(9)
    with pytest.raises(CheckpointError, match=r"last/model\.safetensors is damaged"):
        restore(run, model)
    assert same(model, Model(9))


def test_a_damaged_best_checkpoint_is_replaced_by_the_next(run):
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    best = Evaluation(("a",), (0.5,), (1.0,))
    run.save(model, optimizer, TrainingState(7, [0.5], 7, best), best=True)
    run.save(model, optimizer, TrainingState(8, [0.5, 0.4], 7, best), best=False)
    damage(run.best / "training.safetensors", "one bit")
    with pytest.warns(UserWarning, match=r"best/training\.safetensors .* next evaluation counts"):
        state = restore(run)
    assert (state.step, state.best, state.best_step) == (8, None, 0)
    with pytest.raises(CheckpointError, match=r"best/training\.safetensors is damaged"):
        run.restore_best(model)


@pytest.mark.parametrize(
    "content",
    [None, "nonsense\n", f"{'0' * 64}  model.safetensors\n", f"{'0' * 64}  /etc/passwd\n"],
)
def test_damaged_digests(run, content):
    for directory in (run.last, run.best):
        (directory / "SHA256SUMS").unlink()
        if content is not None:
            (directory / "SHA256SUMS").write_text(content)
    with pytest.raises(CheckpointError, match=r"SHA256SUMS is (damaged|missing)"):
        restore(run)


def test_a_damaged_best_is_never_replaced_by_other_weights(run):
    damage(run.best / "model.safetensors", "cut short")
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors is damaged"):
        run.restore_best(Model())


def rewrite(directory, name, content):
    """Give a file of a checkpoint other content, with the matching digest."""
    sums = directory / "SHA256SUMS"
    digest = hashlib.sha256(content).hexdigest()
    lines = [
        f"{digest}  {name}\n" if line.endswith(f"  {name}\n") else line
        for line in sums.read_text().splitlines(keepends=True)
    ]
    damaged(directory / name, content)
    damaged(sums, "".join(lines).encode())


def rewrite_state(directory, **changes):
    state = json.loads((directory / "training.json").read_text()) | changes
    rewrite(directory, "training.json", json.dumps(state).encode())


def test_a_later_format(run):
    for directory in (run.last, run.best):
        rewrite_state(directory, format=2)
    with pytest.raises(CheckpointError, match=r"has format 2, this version reads format 1"):
        restore(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "3"},
        {"step": -1},
        {"accuracies": [None]},
        {"accuracies": 3},
        {"best": []},
        {"best": {"accuracies": {}}},
        {"metrics": None},
        {"metrics": {"size": -1, "sha256": ""}},
    ],
)
def test_a_state_that_is_none(run, changes):
    for directory in (run.last, run.best):
        rewrite_state(directory, **changes)
    with pytest.raises(CheckpointError, match=r"training\.json is damaged"):
        restore(run)


def test_no_last_checkpoint_among_the_checkpoints(run):
    shutil.rmtree(run.last)
    with pytest.warns(UserWarning, match=r"checkpoints/last is missing .* best checkpoint, of st"):
        assert restore(run).step == 3


def test_another_shape(run):
    with pytest.raises(CheckpointError, match=r"'shared\.weight' has shape \[8, 4\].*\[16, 4\]"):
        restore(run, Model(width=16))


def test_a_tensor_too_many_or_too_few(run):
    smaller, larger = Model(), Model()
    del smaller.heads[2]
    larger.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'heads\.2\."):
        restore(run, smaller)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'extra\.weight'"):
        restore(run, larger)


def test_another_optimizer(run):
    with pytest.raises(CheckpointError, match=r"belongs to the optimizer Adam, this run uses SGD"):
        restore(run, optimizer="sgd")


def test_a_parameter_that_was_trained_and_is_now_frozen(run):
    model = Model()
    model.shared.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(CheckpointError, match=r"this one trains no 'shared\.bias'"):
        run.restore(model, torch.optim.Adam(trainable))


# ── the optimiser's tensors, with digests in order ──────────────────────────────────────────────


@pytest.fixture(params=["adam", "adamw", "radam", "sgd", "adafactor"])
def trained(request, tmp_path):
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        optimizer = build_optimizer(
            TrainConfig(steps=9, optimizer=request.param), model.parameters()
        )
        model(torch.randn(3, 4), torch.tensor([0, 1, 2])).sum().backward()
        optimizer.step()
        run.save(model, optimizer, TrainingState(step=1), best=False)
        yield run, request.param


def test_every_optimizer_comes_back(trained):
    run, optimizer = trained
    assert restore(run, optimizer=optimizer).step == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1].clone() if t.ndim else t, r"is torch\.float32 \[1.*, not torch\.float32"),
        (lambda t: t.expand(2, *t.shape).clone(), r"\[2.*\], not torch\.float32"),
        (lambda t: t.half(), r"is torch\.float16 .*, not torch\.float32"),
        (lambda t: t.double(), r"is torch\.float64 .*, not torch\.float32"),
        (lambda t: t.to(torch.complex64), r"is torch\.complex64 .*, not torch\.float32"),
        (lambda t: t * torch.nan, "is not finite"),
        (lambda t: t + torch.inf, "is not finite"),
    ],
)
def test_moments_that_are_not_the_optimizers(trained, tmp_path, change, message):
    run, optimizer = trained
    changed = {k: change(t) for k, t in load_file(run.last / "training.safetensors").items()}
    save_file(changed, tmp_path / "changed")
    rewrite(run.last, "training.safetensors", (tmp_path / "changed").read_bytes())
    with pytest.raises(CheckpointError, match=rf"training\.safetensors is damaged: .*{message}"):
        restore(run, optimizer=optimizer)


def test_moments_too_few_or_too_many(trained, tmp_path):
    run, optimizer = trained
    moments = load_file(run.last / "training.safetensors")
    name = next(key for key in moments if key.startswith("shared.weight/"))
    for changed in (
        {**moments, "shared.weight/max_exp_avg_sq": moments[name].clone()},
        {k: t for k, t in moments.items() if k != name} | {"shared.weight/x": moments[name]},
    ):
        save_file(changed, tmp_path / "changed")
        rewrite(run.last, "training.safetensors", (tmp_path / "changed").read_bytes())
        with pytest.raises(CheckpointError, match=r"damaged: for 'shared\.weight' it has"):
            restore(run, optimizer=optimizer)


def test_an_optimizer_that_is_none_of_ours(trained):
    run, _ = trained
    rewrite_state(run.last, optimizer="Rprop")
    model = Model()
    with pytest.raises(TypeError, match=r"`optimizer` must be Adam, .* got Rprop"):
        run.restore(model, torch.optim.Rprop(model.parameters()))


# ── the record of training ──────────────────────────────────────────────────────────────────────


def test_metrics_that_a_crash_cut_short_go_on(run):
    metrics = run.path / "metrics.jsonl"
    run.write_metrics({"step": 6})
    with metrics.open("a") as file:
        file.write('{"step": 7, "lo')
    assert [line["step"] for line in run.read_metrics()] == [3, 5, 6]
    run.close()
    with Run.open(run.path) as again:
        again.write_metrics({"step": 7})
        assert [line["step"] for line in again.read_metrics()] == [3, 5, 6, 7]
        assert restore(again).step == 5
        assert [line["step"] for line in again.read_metrics()] == [3, 5]


@pytest.mark.parametrize("content", [b'{"step": 3}\n', b'{"step": 3}\n{"step": 4}\n', b""])
def test_metrics_that_are_not_what_was_written(run, content):
    metrics = run.path / "metrics.jsonl"
    metrics.write_bytes(content)
    for read in (run.read_metrics, lambda: restore(run)):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged: .* or delete it"):
            read()
    assert metrics.read_bytes() == content


def test_metrics_that_are_gone_are_said_and_begun_anew(run):
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
        run.read_metrics()
    with pytest.warns(UserWarning, match=r"metrics\.jsonl is missing; a new record begins"):
        assert restore(run).step == 5
    run.write_metrics({"step": 6})
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    run.save(model, optimizer, TrainingState(step=6, best_step=6), best=True)
    assert run.read_metrics() == [{"step": 6}]


def test_a_line_that_is_not_an_object(tmp_path):
    with Run.create(tmp_path / "run", {}) as run:
        run.path.joinpath("metrics.jsonl").write_text("3\n")
        with pytest.raises(
            CheckpointError, match=r"metrics\.jsonl is damaged: a line is not a JSON"
        ):
            run.read_metrics()


def test_a_line_that_did_not_fit_on_the_disk_leaves_nothing(run, monkeypatch):
    opening = Path.open

    def full(path, *args, **settings):
        file = opening(path, *args, **settings)
        if path.name != "metrics.jsonl":
            return file

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def tell(self):
                return file.tell()

            def write(self, data):
                file.write(data[:4])
                raise OSError(28, "No space left on device")

        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left"):
            run.write_metrics({"step": 6})
    run.write_metrics({"step": 6})
    assert [line["step"] for line in run.read_metrics()] == [3, 5, 6]
