from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from helpers.toy import N_CLASSES, NAMES, Model, Source, same
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.training import TrainConfig, graphs, loop, train


class Replayed:
    """What a CUDA graph does, by running the work again: it reads and writes the same memory."""

    def __init__(self, work, held, parameters):
        self.work, self.held, self.parameters = work, held, parameters
        self.losses = self.gradients = None
        self.replays = 0

    def run(self):
        for parameter in self.parameters:
            parameter.grad = None
        return self.work(*self.held), [p.grad for p in self.parameters]

    def replay(self):
        self.replays += 1
        losses, gradients = self.run()
        self.losses.copy_(losses)
        for mine, new in zip(self.gradients, gradients, strict=True):
            if mine is not None:
                mine.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


class OnTheCpu(graphs.StepGraphs):
    made: list = []  # noqa: RUF012

    def __init__(self, model, parameters, here):
        self._model, self._parameters = model, parameters
        self._recorded, self._stream = {}, Stream()
        self.made.append(self)

    def _record(self, work, inputs):
        held = [tensor.clone() for tensor in inputs]
        graph = Replayed(work, held, self._parameters)
        state = copy.deepcopy(self._model.state_dict())  # recording runs nothing
        graph.losses, graph.gradients = graph.run()
        self._model.load_state_dict(state)
        return graphs._Recorded(graph, held, graph.losses, graph.gradients)


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(loop, "StepGraphs", OnTheCpu)
    monkeypatch.setattr(loop, "check_recordable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    OnTheCpu.made.clear()
    return OnTheCpu.made


def make():
    torch.manual_seed(0)
    target = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    )
    return HyperNetwork(target, Sparse(), TaskEmbedding(NAMES, dim=8))


@pytest.mark.parametrize("tasks_per_batch", [1, 3])
def test_replayed_steps_are_the_steps(on_the_cpu, tasks_per_batch):
    plain, recorded = make(), make()
    for model, cuda_graphs in ((plain, False), (recorded, True)):
        config = TrainConfig(20, lr=0.02, eval_every=10, device="cpu", cuda_graphs=cuda_graphs)
        source = Source(tasks_per_batch=tasks_per_batch)
        train(model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, quiet=True)
    (made,) = on_the_cpu
    (only,) = made._recorded.values()  # one graph, whatever the tasks
    assert only.graph.replays == 19
    for name, one in plain.state_dict().items():
        torch.testing.assert_close(recorded.state_dict()[name], one, rtol=1e-4, atol=1e-5)
    assert not same(plain, make())


def test_a_graph_serves_every_batch_with_the_same_numbers_of_samples(on_the_cpu):
    class Uneven(Source):
        def batch(self, epoch, step):
            task = torch.tensor([0] * 4 + [1 + step % 2] * 8)
            return *self.draw(task, torch.Generator().manual_seed(step)), task

    config = TrainConfig(12, device="cpu", cuda_graphs=True)
    train(make(), Uneven(), Source(), config, names=NAMES, quiet=True)
    (kind,) = on_the_cpu[0]._recorded
    assert kind[0] == (4, 8)


def test_where_they_cannot_be_used():
    config = TrainConfig(1, device="cpu", cuda_graphs=True)
    with pytest.raises(
        ValueError, match="`cuda_graphs` needs one process on a CUDA device, got 1 "
    ):
        train(make(), Source(), Source(), config, names=NAMES, quiet=True)
    for other in ({"compile": True}, {"accumulate": 2}):
        with pytest.raises(ValueError, match=f"cannot be combined with `{next(iter(other))}`"):
            TrainConfig(1, cuda_graphs=True, **other)


def test_a_model_that_is_no_hypernetwork():
    here = graphs.Processes(torch.device("cuda"))
    with pytest.raises(ValueError, match=r"`cuda_graphs` needs a `HyperNetwork`.* got a Model"):
        graphs.StepGraphs(Model(), [], here)


@pytest.mark.gpu
@pytest.mark.parametrize("tasks_per_batch", [1, 3])
def test_recorded_steps_on_a_gpu(tasks_per_batch):
    plain, recorded = make(), make()
    for model, cuda_graphs in ((plain, False), (recorded, True)):
        config = TrainConfig(20, lr=0.02, eval_every=10, device="cuda", cuda_graphs=cuda_graphs)
        source = Source(tasks_per_batch=tasks_per_batch)
        train(model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, quiet=True)
    for name, one in plain.state_dict().items():
        torch.testing.assert_close(recorded.state_dict()[name], one, rtol=1e-3, atol=1e-4)


class Waiting(nn.Linear):
    def forward(self, x):
        y = super().forward(x.flatten(1))
        return y if y.sum().item() else -y


@pytest.mark.gpu
def test_a_target_that_waits_for_the_gpu_cannot_be_recorded():
    model = HyperNetwork(Waiting(4, 3), Sparse(), TaskEmbedding(NAMES, dim=8))
    config = TrainConfig(5, device="cuda", cuda_graphs=True)
    with pytest.raises(ValueError, match="`cuda_graphs` cannot record a step of this model"):
        train(model, Source(), Source(), config, names=NAMES, n_classes=N_CLASSES, quiet=True)
