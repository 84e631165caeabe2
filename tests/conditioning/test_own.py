"""A conditioner of one's own: what it says about itself is enough for all that handles one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsehyper import HyperNetwork, OutputRegulariser, Sparse, fit_embedding
from sparsehyper.conditioning import TaskConditioner
from sparsehyper.training import TrainConfig, train
from sparsehyper.training.parallel import shares_theta


class Coded(TaskConditioner):
    """Embeddings that a frozen network of the caller's reads from a code of each task."""

    kind = "coded"
    by_task_alone = True
    described = True
    networks = ("reader",)

    codes: Tensor
    offsets: Tensor

    def __init__(self, reader: nn.Module, tasks: list[str]) -> None:
        super().__init__(tasks, 8)
        self.reader = reader.requires_grad_(False)
        self.register_buffer("codes", torch.randn(len(tasks), 3))
        self.register_buffer("offsets", torch.zeros(len(tasks), 8))
        self.renewed = 0

    def forward(self, task: Tensor) -> Tensor:
        return self.reader(self.codes[task]) + self.offsets[task]

    def blank(self) -> Tensor:
        return torch.zeros(3)

    def renew(self) -> None:
        self.renewed += 1

    def add(self, name: str, init: Tensor) -> None:
        assert init.shape == (3,)
        self.codes = torch.cat([self.codes, init[None]])
        self.offsets = torch.cat([self.offsets, torch.zeros(1, 8)])
        self.append_name(name)

    @torch.no_grad()
    def refine(self, row: int, z: Tensor) -> None:
        self.offsets[row] += z - self(torch.tensor([row]))[0]

    def drop(self, row: int) -> None:
        raise NotImplementedError

    def to_config(self):
        return {"kind": self.kind}


def make(tasks: int = 3) -> HyperNetwork:
    torch.manual_seed(0)
    conditioner = Coded(nn.Linear(3, 8), [f"task {i}" for i in range(tasks)])
    return HyperNetwork(nn.Linear(5, 2), Sparse(), conditioner)


def test_what_depends_on_the_task_alone_can_be_held_and_shared():
    hnet = make()
    regulariser = OutputRegulariser(hnet, beta=1.0)
    regulariser.hold("task 0")
    assert regulariser() == 0
    assert shares_theta(hnet)


def test_a_described_task_is_added_by_its_description_and_refined_by_examples():
    hnet = make()
    x, y = torch.randn(20, 5), torch.arange(20) % 2
    with pytest.raises(KeyError, match="unknown"):
        fit_embedding(hnet, "unknown", (x, y), steps=2)
    hnet.add_task("new", torch.randn(3))
    fit = fit_embedding(hnet, "new", (x, y), steps=5)
    torch.testing.assert_close(hnet.embedding("new"), fit.embedding)
    assert hnet.conditioner.offsets[:3].count_nonzero() == 0


def test_a_state_with_more_tasks_is_loaded_by_blank_ones():
    hnet, other = make(3), make(5)
    hnet.load_state_dict(other.state_dict())
    assert torch.equal(hnet.conditioner.codes, other.conditioner.codes)


def test_a_file_need_not_hold_a_frozen_network_of_the_caller_s(tmp_path):
    hnet = make()
    hnet.save(tmp_path / "saved")
    assert "conditioner.codes" in (held := load_file(tmp_path / "saved" / "model.safetensors"))
    assert not any(name.startswith("conditioner.reader") for name in held)
    again = HyperNetwork.load(tmp_path / "saved", nn.Linear(5, 2), make().conditioner)
    assert torch.equal(again.theta(again.embedding(1)[None]), hnet.theta(hnet.embedding(1)[None]))


def test_a_file_of_tasks_in_another_order_is_refused(tmp_path):
    make().save(tmp_path / "saved")
    other = Coded(make().conditioner.reader, ["task 2", "task 1", "task 0"])
    with pytest.raises(ValueError, match=r"its tasks are 'task 0', .* the model's are 'task 2'"):
        HyperNetwork.load(tmp_path / "saved", nn.Linear(5, 2), other)


def test_training_renews_before_each_evaluation():
    hnet, x, y = make(), torch.randn(32, 5), torch.arange(32) % 2
    batches = [(x, y, 0), (x, y, 1), (x, y, 2)]
    train(hnet, batches, batches, TrainConfig(steps=4, eval_every=2), quiet=True)
    assert hnet.conditioner.renewed == 2
