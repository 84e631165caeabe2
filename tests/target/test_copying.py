from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsehyper import Dense, HyperNetwork, Ridge, TaskEmbedding
from sparsehyper.adapters import lora


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def make(target: nn.Module, **settings) -> HyperNetwork:
    return HyperNetwork(target, Dense(), TaskEmbedding(2, 4), **settings)


def memory(module: nn.Module) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in module.named_parameters()}


def frozen_names(hnet: HyperNetwork) -> set[str]:
    return {name for name, p in hnet.target.module.named_parameters() if not p.requires_grad}


CASES = {
    "adapters": (lambda: lora(base(), 2), {}, 4 + 2),
    "others frozen": (base, {"generate": "3.*", "others": "frozen"}, 4),
    "a head": (lambda: lora(base(), 2, "0"), {"head": Ridge()}, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_without_a_copy_what_is_frozen_shares_its_memory_and_is_never_changed(case):
    build, settings, count = CASES[case]
    target = build()
    before, flags = copy.deepcopy(target), [p.requires_grad for p in target.parameters()]
    hnet, copied = make(target, copy=False, **settings), make(target, **settings)
    theirs = memory(target)
    found = memory(hnet.target.module)
    assert len(frozen_names(hnet)) == count
    assert all((found[n] == theirs[n]) == (n in frozen_names(hnet)) for n in found)
    assert not set(memory(copied.target.module).values()) & set(theirs.values())
    x = torch.randn(8, 6)
    assert torch.equal(hnet(x, task=1), copied(x, task=1))
    optimizer = torch.optim.SGD([p for p in hnet.parameters() if p.requires_grad], 0.1)
    hnet(x, task=1).square().sum().backward()
    optimizer.step()
    hnet.double()
    assert [p.requires_grad for p in target.parameters()] == flags
    assert all(map(torch.equal, target.state_dict().values(), before.state_dict().values()))


def test_what_is_frozen_costs_no_gradient_and_no_optimiser_state():
    hnet = make(lora(base(), 2), copy=False)
    optimizer = torch.optim.Adam(hnet.parameters())
    hnet(torch.randn(8, 6), task=torch.arange(8) % 2).square().sum().backward()
    optimizer.step()
    trained = {p for p in hnet.parameters() if p.requires_grad}
    assert {p for p in hnet.parameters() if p.grad is not None} == trained
    assert optimizer.state.keys() == trained
    assert sum(p.numel() for p in trained) == 40 * 4 + 2 * 4 + 40  # generator, embeddings, base


def test_values_of_a_file_do_not_reach_the_module_that_is_not_copied(tmp_path):
    target, other = lora(base(), 2), lora(base(), 2)
    with torch.no_grad():
        other[3].bias += 1
    hnet = make(target)
    hnet.save(tmp_path / "model", frozen="store")
    again = HyperNetwork.load(tmp_path / "model", other, copy=False)
    x = torch.randn(3, 6)
    assert torch.equal(again.eval()(x, task=0), hnet.eval()(x, task=0))
    assert torch.equal(other[3].bias, target[3].bias + 1)
