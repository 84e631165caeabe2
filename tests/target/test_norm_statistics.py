"""Buffers that belong to a task: whatever a norm does with them, tasks stay apart."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

from helpers.ddp import collect
from helpers.pairs import in_two
from sparsehyper import (
    HyperNetwork,
    InputEncoder,
    Sparse,
    TaskEmbedding,
    adapt_task,
    fit_embedding,
)

TASKS = 6


def make(module: nn.Module, **settings) -> HyperNetwork:
    torch.manual_seed(0)
    return HyperNetwork(module, Sparse(), TaskEmbedding(TASKS, 8), **settings)


class Centre(nn.Module):
    """Replaces its running mean by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        mean = x.mean(0) if self.training else self.running_mean
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0).detach()
        return self.linear(x - mean)


@pytest.mark.parametrize("tasks", [1, TASKS])
def test_statistics_that_are_replaced_are_kept(tasks):
    module = Centre()
    alone, hnet = copy.deepcopy(module), make(module)
    for _ in range(30):
        x = torch.randn(8, 4) + 5
        alone(x)
        hnet(x.repeat(tasks, 1), task=torch.arange(tasks).repeat_interleave(8))
    for task in range(tasks):
        torch.testing.assert_close(hnet.materialize(task).running_mean, alone.running_mean)
    assert hnet.eval()(x + 3, task=0).shape == (8, 2)


@pytest.mark.parametrize("again", ["state", "reset"])
def test_early_batches_count_alike_after_a_fresh_start_too(again):
    hnet = make(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    fresh = copy.deepcopy(hnet.state_dict())
    x = torch.randn(12, 4) + 5
    for _ in range(12):
        hnet(x, task=1)
    if again == "state":
        hnet.load_state_dict(fresh)
    else:
        hnet.target.module[1].reset_running_stats()
    hnet(x, task=1)
    expected = make(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    expected.load_state_dict({**hnet.state_dict(), **stated(fresh)})
    expected(x, task=1)
    for name in ("running_mean", "running_var"):
        found, wanted = (getattr(h.target.module[1], name)[1] for h in (hnet, expected))
        torch.testing.assert_close(found, wanted)


def stated(fresh: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch-norm statistics of a state."""
    return {name: value for name, value in fresh.items() if ".running_" in name or "num_" in name}


def test_norms_that_share_their_statistics_go_on_sharing_them():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 2)
            self.b.running_mean, self.b.running_var = self.a.running_mean, self.a.running_var

        def forward(self, x):
            return self.head(self.b(self.a(x)))

    module = Model()
    alone = copy.deepcopy(module)
    hnet = make(module, generate="head.*", base="pretrained", scale=1e-9)
    x = torch.randn(12, 4) * 2 + 1
    for _ in range(3):
        alone(x), hnet(x, task=2)
    torch.testing.assert_close(hnet.eval()(x, task=2), alone.eval()(x))
    model = hnet.materialize(2)
    assert model.a.running_mean is model.b.running_mean
    assert model.a.num_batches_tracked is not model.b.num_batches_tracked


@pytest.mark.parametrize("mixed", [False, True])
def test_the_first_batches_of_a_task_count_alike_and_then_the_momentum_holds(mixed):
    hnet = make(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.25)))
    batches = torch.randn(9, 16, 4) + torch.arange(9)[:, None, None]
    mean = var = 0.0
    for count, x in enumerate(batches, 1):
        inputs = hnet.materialize(2)[0](x).detach()
        weight = max(0.25, 1 / count)
        mean, var = mean + weight * (inputs.mean(0) - mean), var + weight * (inputs.var(0) - var)
        if mixed:
            hnet(x.repeat(2, 1), task=torch.tensor([2, 4]).repeat_interleave(16))
        else:
            hnet(x, task=2)
        norm = hnet.materialize(2)[1]
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, var)
        assert norm.num_batches_tracked == count
    assert hnet.materialize(0)[1].running_var.tolist() == [1, 1, 1]
    # Another task's row takes the place of a removed one.
    hnet.remove_task(hnet.task_names[2])
    hnet(batches[0], task=2)
    inputs = hnet.materialize(2)[0](batches[0]).detach()
    torch.testing.assert_close(hnet.materialize(2)[1].running_mean, inputs.mean(0))


def test_a_norm_that_counts_many_batches_goes_on_as_it_was():
    norm = nn.BatchNorm1d(3)
    norm.num_batches_tracked += 40
    hnet = make(nn.Sequential(nn.Linear(4, 3), norm))
    x = torch.randn(16, 4)
    inputs = hnet.materialize(1)[0](x).detach()
    hnet(x, task=1)
    torch.testing.assert_close(hnet.materialize(1)[1].running_mean, 0.1 * inputs.mean(0))


def test_statistics_keep_their_type():
    norm = nn.BatchNorm1d(3)
    norm.running_mean = norm.running_mean.half()
    hnet = make(nn.Sequential(nn.Linear(3, 3), norm))
    hnet.add_task("more")
    model = hnet.materialize("more")
    assert model[1].running_mean.dtype == torch.float16
    assert model[1].running_var.dtype == torch.float32
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("normalise", [spectral_norm, hooked_spectral_norm])
def test_a_spectral_norm_is_one_in_every_task_s_model(normalise):
    hnet = make(nn.Sequential(normalise(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 2)))
    x = torch.randn(32, 12)
    optimizer = torch.optim.Adam(hnet.parameters(), 1e-3)
    for step in range(60 * TASKS):
        optimizer.zero_grad()
        hnet(x, task=step % TASKS).square().mean().backward()
        optimizer.step()
    fit_embedding(hnet, "new", (x, torch.randint(2, (32,))), steps=20)
    assert_normalised(hnet, [*range(TASKS), "new"])
    y = torch.randint(2, (32,))
    adapted = adapt_task(hnet, "newer", (x, y), method="embedding", seconds=5).model
    for layer in (m for m in adapted.modules() if getattr(m, "out_features", 0) == 12):
        layer(x)
        assert torch.linalg.matrix_norm(layer.weight, 2) < 1.15


@pytest.mark.parametrize("normalise", [spectral_norm, hooked_spectral_norm])
def test_a_spectral_norm_is_one_before_any_training_and_between_tasks(normalise):
    hnet = make(nn.Sequential(normalise(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 2)))
    hnet.add_task("new", torch.randn(8))
    assert_normalised(hnet, [*range(TASKS), "new", torch.randn(8)])


def assert_normalised(hnet: HyperNetwork, tasks) -> None:
    x = torch.randn(32, 12)
    hnet.eval()
    for task in tasks:
        model = hnet.materialize(task)
        torch.testing.assert_close(model(x), hnet(x, task=task))  # the hook waits for a call
        assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1, abs=0.05)


def test_one_model_for_each_sample_has_no_task_to_keep_buffers_for():
    module = spectral_norm(nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"buffer 'parametrizations\.weight\.0\._u'"):
        HyperNetwork(module, Sparse(), InputEncoder(nn.Linear(4, 8), dim=8))


@pytest.mark.parametrize("first", ["one task", "mixed"])
@pytest.mark.parametrize("tasks", [3, TASKS])
def test_batches_of_one_task_and_of_many_share_a_backward_pass(first, tasks):
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    hnet, apart = make(module), make(module)
    x, ids = torch.randn(12, 4), torch.arange(12) % tasks

    def calls(hnet):
        one, mixed = (lambda: hnet(x, task=0).square().sum()), (lambda: hnet(x, task=ids).sum())
        return (one, mixed) if first == "one task" else (mixed, one)

    sum(call() for call in calls(hnet)).backward()
    for call in calls(apart):
        call().backward()
    for one, other in zip(hnet.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_evaluation_between_training_steps_keeps_its_gradient():
    hnet = make(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    x = torch.randn(12, 4)
    hnet(x, task=0)
    expected = torch.autograd.grad(hnet.eval()(x, task=0).sum(), list(hnet.parameters()))
    loss = hnet(x, task=0).sum()
    hnet.train()(x + 1, task=0)
    found = torch.autograd.grad(loss, list(hnet.parameters()))
    torch.testing.assert_close(found, expected)


def test_a_strict_load_reports_keys_of_modules_around():
    outer = nn.Sequential(make(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))), nn.Linear(2, 1))
    state = dict(outer.state_dict())  # without version numbers, as in a file
    outer.load_state_dict(state)
    state["gone.num_batches_tracked"] = torch.tensor(3)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*gone\.num_batches_tracked"):
        outer.load_state_dict(state)


def test_a_buffer_that_changes_for_all_tasks_is_told_of_once():
    class Average(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.register_buffer("average", torch.zeros(4))

        def forward(self, x):
            self.average.lerp_(x.mean(0).detach(), 0.1)
            return super().forward(x)

    hnet = make(nn.Sequential(Average()))
    with pytest.warns(UserWarning, match=r"buffer '0\.average' of the target changes in training"):
        hnet(torch.randn(3, 4), task=0)
    hnet(torch.randn(3, 4), task=1)  # a second warning would be an error


def test_processes_share_what_each_has_seen_of_a_task(tmp_path):
    found = in_two(collect, tmp_path)
    assert found[0] == found[1]
    means = [sum(state["running_mean"]) / 4 for state in found[0]]
    assert means == pytest.approx([5, 6, 5.5, 0], abs=0.15)
    assert [state["num_batches_tracked"] for state in found[0]] == [11, 11, 20, 0]


class Uncounted(nn.BatchNorm1d):
    """Keeps averages by itself, and counts nothing."""

    def forward(self, x):
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), self.momentum)
        return x - self.running_mean


class Images(nn.InstanceNorm1d):
    def forward(self, x):
        return super().forward(x[:, :, None].expand(-1, -1, 2) + torch.tensor([-1.0, 1.0]))[..., 0]


def instances() -> nn.Module:
    return Images(4, track_running_stats=True, momentum=0.5)


class Waves(nn.BatchNorm1d):
    """A batch norm of complex numbers."""

    def __init__(self) -> None:
        super().__init__(4, momentum=0.5)
        self.running_mean = self.running_mean * (1 + 0j)
        self.register_buffer("average", torch.zeros(4, dtype=torch.complex64))

    def forward(self, x):
        if self.training:
            mean = torch.complex(x, 2 * x).detach().mean(0)
            self.running_mean.lerp_(mean, self.momentum)
            self.average.copy_(mean)
            self.num_batches_tracked += 1
        return x - self.running_mean.real - self.running_mean.imag


@pytest.mark.filterwarnings("ignore:buffer .* changes in training")
def test_complex_statistics(monkeypatch):
    hnets = [make(nn.Sequential(Waves(), nn.Linear(4, 2))) for _ in range(2)]
    for rank, hnet in enumerate(hnets):
        for _ in range(20):
            hnet(torch.randn(32, 4) / 10 + 5 + rank, task=2)
    mean = hnets[0].target.module[0].running_mean
    torch.testing.assert_close(mean[2], torch.full((4,), 5 + 10j), rtol=0, atol=0.1)
    new = hnets[0].materialize(torch.zeros(8))[0].running_mean
    torch.testing.assert_close(new, mean.mean(0))
    synchronise(hnets, monkeypatch)
    for hnet in hnets:
        mean = hnet.target.module[0].running_mean
        torch.testing.assert_close(mean[2], torch.full((4,), 5.5 + 11j), rtol=0, atol=0.1)


@pytest.mark.filterwarnings("ignore:buffer .* changes in training")
def test_a_complex_buffer_is_not_shared_with_the_target_that_was_given():
    module = nn.Sequential(Waves(), nn.Linear(4, 2))
    make(module, copy=False)(torch.randn(8, 4), task=1)
    assert module[0].average.abs().max() == 0


def test_a_complex_buffer_that_changes_is_told_of_too():
    hnet = make(nn.Sequential(Waves(), nn.Linear(4, 2)))
    with pytest.warns(UserWarning, match=r"buffer '0\.average' of the target changes in training"):
        hnet(torch.randn(8, 4), task=1)


NORMS = {
    "frozen, counting": lambda: [
        nn.BatchNorm1d(4, affine=False).eval(),
        nn.BatchNorm1d(4, momentum=0.5),
    ],
    "frozen, instances": lambda: [nn.BatchNorm1d(4, affine=False).eval(), instances()],
    "instances": lambda: [instances()],
    "instances, counting": lambda: [instances(), nn.BatchNorm1d(4, momentum=0.5)],
    "own": lambda: [Uncounted(4, momentum=0.5)],
    "without a buffer that counts": lambda: [Centre()],
}


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_processes_share_the_statistics_of_norms_that_count_nothing(kind, change, monkeypatch):
    norms = NORMS[kind]()
    module = nn.Sequential(*norms, nn.Linear(2 if kind.startswith("without") else 4, 2))
    hnets = [make(copy.deepcopy(module)) for _ in range(2)]
    frozen = kind.startswith("frozen")
    for rank, hnet in enumerate(hnets):
        if change:  # the counts of tasks follow
            hnet.remove_task(hnet.task_names[3])
            hnet.add_task("new")
        hnet.target.module[0].train(not frozen)
        for _ in range(60):
            for task in (rank, 2):  # one task of this process alone, and one of both
                hnet(torch.randn(32, 4) / 10 + 5 + rank, task=task)
    before = hnets[0].target.module[0].running_mean.clone()
    synchronise(hnets, monkeypatch)
    first, second = (hnet.state_dict() for hnet in hnets)
    for name in (name for name in first if "running_" in name or "num_batches" in name):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    means = hnets[1].target.module[int(frozen)].running_mean.mean(1)
    expected = torch.tensor([5.0, 6, 5.5, 0, 0, 0])
    torch.testing.assert_close(means, expected, rtol=0, atol=0.1)
    assert not frozen or torch.equal(hnets[1].target.module[0].running_mean, before)
    if kind == "instances, counting":
        assert hnets[1].target.module[1].num_batches_tracked.tolist() == [60, 60, 120, 0, 0, 0]
    synchronise(hnets, monkeypatch)  # nothing is new
    torch.testing.assert_close(hnets[0].state_dict(), first, rtol=0, atol=0)


def synchronise(hnets, monkeypatch) -> None:
    """Let hypernetworks synchronise their statistics, as if each had a process of its own."""
    here, given, all_there = threading.local(), {}, threading.Barrier(len(hnets))

    def all_reduce(tensor, **_):
        given[here.rank] = tensor.clone()
        all_there.wait(60)
        tensor.copy_(sum(given[rank] for rank in range(len(hnets))))

    def one(rank: int) -> None:
        here.rank = rank
        hnets[rank].sync_statistics()

    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: here.rank)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with ThreadPoolExecutor(len(hnets)) as pool:
        list(pool.map(one, range(len(hnets))))


def test_instance_norms_average_the_batches_of_a_new_task():
    hnet = make(nn.Sequential(instances(), nn.Linear(4, 2)))
    x = torch.randn(40, 4) + 5
    fit_embedding(hnet, "new", (x, torch.randint(2, (40,))), steps=2)
    mean = hnet.materialize("new")[0].running_mean
    torch.testing.assert_close(mean, x.mean(0), rtol=0, atol=0.2)


def test_batches_before_a_state_was_loaded_are_no_new_ones(monkeypatch):
    """As two processes that went on from one checkpoint, and then saw the same batches."""
    hnet, x = make(normed()), torch.randn(12, 4) + 5
    for _ in range(20):
        hnet(x, task=0)
    again = make(normed())
    again.load_state_dict(hnet.state_dict())
    for _ in range(5):
        again(x, task=0)
    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: 0)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, **_: tensor.mul_(2))
    mean = again.materialize(0)[0].running_mean.clone()
    again.sync_statistics()
    assert again.materialize(0)[0].num_batches_tracked == 20 + 2 * 5
    torch.testing.assert_close(again.materialize(0)[0].running_mean, mean)


@pytest.mark.parametrize("task", [0, [0, 1] * 6])
def test_training_goes_on_after_a_state_was_loaded_in_inference_mode(task):
    hnet, x = make(normed()), torch.randn(12, 4)
    with torch.inference_mode():
        hnet.load_state_dict(hnet.state_dict())
    hnet(x, task=task).sum().backward()
    assert hnet.materialize(0)[0].num_batches_tracked == 1


@pytest.mark.gpu
def test_a_replica_on_another_device_counts_its_batches_with_the_others():
    """The count stays on one device, the tasks are where the replica is."""
    hnet = make(normed()).cuda()
    counted = hnet.target.statistics
    counted.to(torch.device("cpu"))
    x, task = torch.randn(12, 4).cuda(), torch.arange(12).cuda() % 3
    hnet(x, task=task)
    assert counted._batches.tolist() == [1, 1, 1, 0, 0, 0]


def test_the_mean_of_some_tasks_knows_nothing_of_the_others():
    hnet = make(normed())
    for task in (0, 1, 2):
        for _ in range(task + 1):
            hnet(torch.randn(12, 4) + task, task=task)
    statistics, module = hnet.target.statistics, hnet.target.module
    rows = [statistics.row(module, task) for task in (0, 2)]
    for found, *both in zip(statistics.row(module, None, (0, 2)), *rows, strict=True):
        whole = not found.is_floating_point()
        expected = torch.stack(both)
        torch.testing.assert_close(found, expected.amax(0) if whole else expected.mean(0))


def normed() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
