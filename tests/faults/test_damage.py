"""Checkpoints that are damaged, or of something else."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from toy import Model, same

from sparsehyper.training import CheckpointError, Run, TrainConfig
from sparsehyper.training.checkpoint import TrainingState
from sparsehyper.training.optim import build_optimizer


@pytest.fixture
def run(tmp_path):
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        model(torch.randn(3, 4), torch.tensor([0, 1, 2])).sum().backward()
        optimizer = torch.optim.Adam(model.parameters())
        optimizer.step()
        run.save(model, optimizer, TrainingState(step=3), best=True)
        yield run


def restore(run, model=None, optimizer="adam"):
    model = model or Model(9)
    config = TrainConfig(steps=9, optimizer=optimizer)
    return run.restore(model, build_optimizer(config, model.parameters()))


FILES = ["config.json", "model.safetensors", "training.json", "training.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut short", "one bit", "gone"])
def test_damage_names_the_file_and_loads_nothing(run, name, how):
    file = run.last / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.unlink()  # it is one file with that of `best`
    if how != "gone":
        file.write_bytes(content if how == "one bit" else content[: len(content) // 2])
    model = Model(9)
    what = "is missing from the checkpoint" if how == "gone" else "is damaged: it is not what"
    with pytest.raises(CheckpointError, match=re.escape(f"{file} {what}")):
        restore(run, model)
    assert same(model, Model(9))


@pytest.mark.parametrize("content", [None, "nonsense\n"])
def test_damaged_digests(run, content):
    (run.last / "SHA256SUMS").unlink()
    if content is not None:
        (run.last / "SHA256SUMS").write_text(content)
    with pytest.raises(CheckpointError, match="SHA256SUMS cannot be read"):
        restore(run)


def test_the_best_weights_damaged(run):
    file = run.best / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(file))} is damaged"):
        run.restore_best(Model())


def test_a_later_format(run):
    state = run.last / "training.json"
    sums = run.last / "SHA256SUMS"
    before = state.read_text()
    state.write_text(json.dumps(json.loads(before) | {"format": 2}))
    lines = [
        f"{hashlib.sha256(state.read_bytes()).hexdigest()}  training.json"
        if "training.json" in line
        else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match=r"has format 2, this version reads format 1"):
        restore(run)


def test_no_last_checkpoint_among_the_checkpoints(run):
    run.last.rename(run.last.with_name("kept"))
    with pytest.raises(CheckpointError, match=r"last is missing from the run"):
        restore(run)


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
    with pytest.raises(CheckpointError, match=r"is of the optimizer Adam, this run uses SGD"):
        restore(run, optimizer="sgd")


def test_a_parameter_that_was_trained_and_is_now_frozen(run):
    model = Model()
    model.shared.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(CheckpointError, match=r"this one trains no 'shared\.bias'"):
        run.restore(model, torch.optim.Adam(trainable))
