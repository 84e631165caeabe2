"""A call's tensors are its own, whoever else calls, and whenever a part is run again."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from helpers.replicas import replicas
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.adapters import lora

TASKS = 4


def make(module: nn.Module, **settings) -> HyperNetwork:
    torch.manual_seed(0)
    return HyperNetwork(module, Sparse(), TaskEmbedding(TASKS, 8), **settings)


def gradients(hnet: HyperNetwork, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    hnet.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in hnet.named_parameters() if p.grad is not None}


def test_threads_get_the_output_of_the_task_that_each_asks_for():
    hnet = make(nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Linear(256, 8))).eval()
    x = torch.randn(32, 64)
    expected = [hnet(x, task=task).detach() for task in range(TASKS)]
    ready, wrong = threading.Barrier(TASKS), []

    def serve(task: int) -> None:
        ready.wait()
        for _ in range(60):
            with torch.no_grad():
                if not torch.allclose(hnet(x, task=task), expected[task], atol=1e-5):
                    wrong.append(task)

    threads = [threading.Thread(target=serve, args=(task,)) for task in range(TASKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_hook_may_call_the_hypernetwork_again():
    hnet, x = make(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), torch.randn(3, 4)
    expected = hnet(x, task=0), hnet(x, task=1)
    seen = []

    def again(*_) -> None:
        if not seen:
            seen.append(None)
            seen.append(hnet(x, task=1))

    hnet.target.module[1].register_forward_hook(again)
    assert torch.equal(hnet(x, task=0), expected[0])
    assert torch.equal(seen[1], expected[1])


class Checkpointed(nn.Module):
    """Every kind of layer that stores its weights differently, in checkpointed parts."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(4, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.normed = weight_norm(nn.Linear(6, 6))
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.block[0].weight
        self.last = nn.Linear(6, 2)

    def part(self, function, x):
        if self.reentrant is None:
            return function(x)
        return checkpoint(function, x, use_reentrant=self.reentrant)

    def forward(self, x):
        x = self.part(self.block, self.first(x))
        x = self.part(lambda x: self.lstm(x[:, None])[0][:, 0], x)
        x = self.part(self.normed, torch.tanh(x))
        return self.last(self.part(self.tied.forward, x))


@pytest.mark.parametrize("task", [1, torch.tensor([0, 1] * 4), torch.arange(8) % TASKS])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_inside_the_target_changes_nothing(reentrant, training, task):
    plain, saving = make(Checkpointed(None)), make(Checkpointed(reentrant))
    x = torch.randn(8, 4) * 3 + 2
    for hnet in (plain, saving):
        for t in range(TASKS):
            hnet(x - 1, task=t)
        hnet.train(training)
    expected = gradients(plain, plain(x, task=task).square().sum())
    found = gradients(saving, saving(x, task=task).square().sum())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(saving.state_dict(), plain.state_dict())


def test_checkpointed_parts_of_two_calls_keep_to_their_tasks():
    plain, saving = make(Checkpointed(None)), make(Checkpointed(False))
    x = torch.randn(8, 4)

    def loss(hnet):
        return hnet(x, task=0).square().sum() - 3 * hnet(x, task=2).square().sum()

    expected, found = gradients(plain, loss(plain)), gradients(saving, loss(saving))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_replicas_of_data_parallel_give_the_original_s_output(monkeypatch):
    hnet = make(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))).eval()
    x = torch.randn(6, 4)
    for replica in replicas(hnet, monkeypatch):
        for task in (1, torch.arange(6) % TASKS):
            torch.testing.assert_close(replica(x, task=task), hnet(x, task=task))


def test_replicas_of_data_parallel_use_their_own_statistics(monkeypatch):
    # On several devices, a table of another device would be an error.
    hnet = make(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    x, before = torch.randn(2 * TASKS, 4), hnet.target.module[1].running_mean.clone()
    for replica in replicas(hnet, monkeypatch):
        replica(x, task=1)
        replica(x, task=torch.arange(2 * TASKS) % TASKS)
        assert bool((replica.target.module[1].running_mean != 0).any(1).all())
    assert torch.equal(hnet.target.module[1].running_mean, before)


def test_update_bn_renews_the_statistics_of_a_task():
    hnet = make(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))

    class OfTask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hnet = hnet

        def forward(self, x):
            return self.hnet(x, task=1)

    batches = [torch.randn(50, 3) + shift for shift in (4, 6)]
    update_bn(batches, OfTask())
    norm = hnet.materialize(1)[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    assert hnet.materialize(0)[0].running_mean.tolist() == [0, 0, 0]


class Holding(nn.Module):
    """Refers to its parts in every way other than as registered modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.in_dict = {"first": [self.first]}
        self.in_tuple = (self.second,)
        self.bound = self.step
        self.part = functools.partial(nn.Module.__call__, self.body)
        self.body.__dict__["parent"] = self

    def step(self, x):
        return self.second(x)

    def forward(self, x):
        x = self.in_tuple[0](self.in_dict["first"][0](x))
        return self.part(self.bound(x)) + self.body.parent.first(x)


def test_modules_in_containers_methods_and_partial_functions_are_the_call_s_own():
    hnet, x = make(Holding()), torch.randn(3, 4)
    for task in range(2):
        model = hnet.materialize(task)
        torch.testing.assert_close(hnet(x, task=task), model(x))
    assert not torch.allclose(hnet(x, task=0), hnet(x, task=1))


class Ring(nn.Module):
    """A part that refers to the whole."""

    def __init__(self, *, saving: bool = False) -> None:
        super().__init__()
        self.linear, self.saving = nn.Linear(4, 4), saving
        self.again = self.inner

    def inner(self, x):
        return torch.tanh(self.linear(x))

    def forward(self, x):
        if self.saving:
            return checkpoint(self.again, x, use_reentrant=False)
        return self.again(x)


@pytest.mark.parametrize("module", [nn.Linear(4, 4), Ring(), nn.LSTM(4, 4)])
def test_generated_tensors_are_freed_with_the_graph(module):
    hnet = make(module)
    gc.collect()
    gc.disable()
    try:
        tensors = hnet.target.unpack(hnet.raw_theta(hnet.embedding(0)[None])[0])
        kept = [weakref.ref(tensor) for tensor in tensors]
        hnet.target(tensors, 0, (torch.randn(3, 4),), {})
        del tensors
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_a_ring_is_checkpointed_too():
    plain, saving = make(Ring()), make(Ring(saving=True))
    x = torch.randn(3, 4)
    expected = gradients(plain, plain(x, task=1).sum())
    torch.testing.assert_close(gradients(saving, saving(x, task=1).sum()), expected)


class Noting(nn.Module):
    """Assigns to itself while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls, self.gone = nn.Linear(4, 2), 0, 1
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        out = self.linear(x)
        self.last = out.detach().mean(0)
        self.used = self.linear
        if hasattr(self, "gone"):
            del self.gone
        return out


@pytest.mark.filterwarnings("ignore:buffer 'last' of the target changes")
@pytest.mark.parametrize("task", [1, torch.arange(6) % TASKS])
def test_what_a_call_assigns_to_a_module_stays_with_the_module(task):
    hnet, x = make(Noting()), torch.randn(6, 4)
    out = hnet(x, task=task)
    module = hnet.target.module
    assert module.calls == (1 if isinstance(task, int) else TASKS)
    if isinstance(task, int):
        assert torch.equal(module.last, out.detach().mean(0))
    assert module.used is module.linear
    assert not hasattr(module, "gone")
    copy.deepcopy(hnet)


def test_the_mode_of_a_module_may_change_between_calls():
    hnet = make(nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)))
    x = torch.randn(2, 4)
    assert (hnet(x, task=0) == 0).any()
    hnet.eval()
    assert not (hnet(x, task=0) == 0).any()


def test_cached_parametrizations_are_each_call_s_own():
    adapted = nn.Sequential(lora(nn.Linear(4, 4), 2), nn.Linear(4, 2))
    hnet = make(adapted, base="pretrained", scale=5.0).eval()
    x = torch.randn(3, 4)
    expected = [hnet(x, task=task) for task in range(TASKS)]
    with parametrize.cached():
        for task in range(TASKS):
            torch.testing.assert_close(hnet(x, task=task), expected[task])


# The compiler asks generated tensors, which are not leaves, for their gradients.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_part_is_taken():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plain = make(copy.deepcopy(module))
    module.compile(backend="eager")
    in_place = make(module)
    inside = make(nn.Sequential(torch.compile(copy.deepcopy(module), backend="eager")))
    x = torch.randn(3, 4)
    for task in range(2):
        expected = plain(x, task=task)
        torch.testing.assert_close(in_place(x, task=task), expected)
        torch.testing.assert_close(inside(x, task=task), expected)


class Memoising(nn.Module):
    """Keeps its own parts, or builds new modules from them, while it runs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.part, self.how, self.kept = nn.Linear(4, 4), how, {}
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    @functools.cached_property
    def listed(self):
        return [self.part]

    def forward(self, x):
        if self.how == "dict":
            return self.kept.setdefault("part", self.part)(x)
        if self.how == "nested":
            return self.kept.setdefault("parts", [(self.part,)])[0][0](x)
        if self.how == "cached property":
            return self.listed[0](x)
        if self.how == "attribute":
            if not hasattr(self, "first"):
                self.first = [self.parts[0]]
            return self.first[0](x)
        self.decoder = self.parts[1:]
        return self.decoder[0](x)


@pytest.mark.parametrize("how", ["dict", "nested", "cached property", "attribute", "slice"])
def test_modules_that_a_target_keeps_while_it_runs_are_no_call_s_copies(how):
    hnet, x = make(Memoising(how)).eval(), torch.randn(3, 4)
    expected = [make(Memoising(how)).eval().materialize(task)(x) for task in range(TASKS)]
    for _ in range(2):
        for task in range(TASKS):
            torch.testing.assert_close(hnet(x, task=task), expected[task])
            torch.testing.assert_close(hnet.materialize(task)(x), expected[task])
    hnet(x, task=0).sum().backward()
    hnet(x, task=1).sum().backward()


def test_attributes_given_between_calls_are_the_call_s_own_too():
    hnet, x = make(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), torch.randn(3, 4)
    expected = hnet(x, task=1)
    module = hnet.target.module
    module.forward = functools.partial(lambda layer, x: torch.tanh(layer(x)), module[0])
    module.compile(backend="eager")
    for task in (0, 1):
        out = hnet(x, task=task)
    assert torch.equal(out, expected)


def test_what_a_module_assigns_to_its_parts_stays():
    class Freezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.more = nn.ModuleDict()

        def forward(self, x):
            self.norm.momentum *= 0.5
            if "extra" not in self.more:
                self.more["extra"] = nn.Identity()
            return self.norm(self.linear(x))

    hnet = make(Freezing())
    for _ in range(3):
        hnet(torch.randn(3, 4), task=0)
    assert hnet.target.module.norm.momentum == pytest.approx(0.1 / 8)
    assert list(hnet.target.module.more) == ["extra"]


def test_a_module_kept_by_a_hook_has_the_graph_of_its_call():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    hnet, x, kept = make(module), torch.randn(3, 4), []
    weight = hnet.generate(0)["0.weight"]
    expected = gradients(hnet, hnet(x, task=0).square().sum() + weight.pow(3).sum())
    hnet.target.module[0].register_forward_hook(lambda m, i, o: kept.append(m))
    out = hnet(x, task=0)
    found = gradients(hnet, out.square().sum() + kept[0].weight.pow(3).sum())
    torch.testing.assert_close(found, expected)
