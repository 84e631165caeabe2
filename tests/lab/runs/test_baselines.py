from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsehyper.lab.runs import Experts, SharedTrunk
from sparsehyper.saving import load_state, read

TASKS = ["shoes", "bags", "hats"]


def target():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


MAKERS = {
    "experts": lambda: Experts(target, TASKS),
    "shared_trunk": lambda: SharedTrunk(target(), TASKS),
}


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return MAKERS[kind]()


def test_a_mixed_batch_equals_a_loop_over_tasks(model):
    x, task = torch.randn(7, 1, 2, 3), torch.tensor([2, 0, 0, 1, 2, 0, 1])
    mixed = model(x, task=task)
    single = torch.cat([model(x[i : i + 1], task=int(t)) for i, t in enumerate(task)])
    torch.testing.assert_close(mixed, single)


def test_tasks_differ_from_the_start(model):
    x = torch.randn(4, 6)
    assert not torch.equal(model(x, task=0), model(x, task=1))


def test_a_batch_of_one(model):
    assert model(torch.randn(1, 6), task=torch.tensor([1])).shape == (1, 2)


def test_only_the_tasks_of_a_batch_learn(model):
    model(torch.randn(4, 6), task=torch.tensor([1, 1, 0, 0])).sum().backward()
    if isinstance(model, Experts):
        assert all(p.grad is None for p in model.experts[2].parameters())
        assert all(p.grad is not None for p in model.experts[1].parameters())
    else:
        assert not model.weight.grad[2].any()
        assert model.weight.grad[0].any()
        assert all(p.grad is not None for p in model.trunk.parameters())


@pytest.mark.parametrize("task", [3, -1, torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_a_task_out_of_range(model, task):
    wrong = task if isinstance(task, int) else int(task[task != 0])
    with pytest.raises(IndexError, match=rf"`task` must be in \[0, 3\), got {wrong}"):
        model(torch.randn(2, 6), task=task)


def test_a_saved_model(kind, model, tmp_path):
    model.save(tmp_path / "saved")
    config, state = read(tmp_path / "saved")
    assert (config["kind"], config["tasks"]) == (kind, TASKS)
    other = MAKERS[kind]()
    load_state(other, state, "saved")
    x = torch.randn(3, 6)
    assert torch.equal(other(x, task=2), model(x, task=2))
    with pytest.raises(FileExistsError, match="saved"):
        model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["format"] == 1


def test_an_expert_has_its_own_statistics():
    model = Experts(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), TASKS)
    before = model.experts[2][0].running_mean.clone()
    model(5 + torch.randn(8, 6), task=torch.tensor([0, 1] * 4))
    assert torch.equal(model.experts[2][0].running_mean, before)
    assert not torch.equal(model.experts[0][0].running_mean, before)


def test_a_trunk_is_shared():
    model = SharedTrunk(target(), TASKS)
    assert sum(p.numel() for p in model.parameters()) == 6 * 5 + 5 + 3 * (5 * 2 + 2)


def test_a_single_layer_leaves_no_trunk():
    model = SharedTrunk(nn.Linear(6, 2), TASKS)
    assert model(torch.randn(3, 6), task=1).shape == (3, 2)
    assert len(list(model.parameters())) == 2


def test_a_target_without_a_last_linear_layer():
    with pytest.raises(ValueError, match=r"`target` must end in an nn.Linear, got Conv2d"):
        SharedTrunk(nn.Conv2d(1, 2, 3), TASKS)
    model = SharedTrunk(nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (6, 1))), TASKS)
    with pytest.raises(ValueError, match=r"must end in an nn.Linear, which .*shape \[3, 6, 1\]"):
        model(torch.randn(3, 6), task=0)
