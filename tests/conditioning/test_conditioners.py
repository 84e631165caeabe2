"""Conditioners other than a table of tasks, and what a hypernetwork does with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehyper import (
    Dense,
    HyperNetwork,
    InputAndTask,
    InputEncoder,
    Noise,
    Sparse,
    SupportSet,
    TaskEmbedding,
    TaskFeatures,
    fit_embedding,
    unroll,
)

X, Y = torch.randn(6, 5), torch.arange(6) % 3


def hypernetwork(conditioner, target=None, **settings):
    return HyperNetwork(target or nn.Linear(5, 3), Dense(), conditioner, **settings)


def test_with_one_task_it_need_not_be_named():
    hnet = hypernetwork(TaskEmbedding(1, 8))
    assert torch.equal(hnet(X), hnet(X, task=0))
    with pytest.raises(TypeError, match="`task` is missing; the tasks are: '0', '1'"):
        hypernetwork(TaskEmbedding(2, 8))(X)


def test_every_sample_has_the_model_of_its_input():
    hnet = hypernetwork(InputEncoder(nn.Linear(5, 8), 8), nn.Sequential(nn.Linear(5, 4), nn.GELU()))
    out, z = hnet(X), hnet.embedding(None, X)
    assert z.shape == (6, 8)
    for i in range(6):
        torch.testing.assert_close(out[i], hnet(X[i : i + 1], task=z[i])[0])
    with pytest.raises(TypeError, match="computes the embedding from the target's input"):
        hnet.materialize()
    with pytest.raises(TypeError, match=r"`task` must be left out, .* got 'a'"):
        hnet(X, task="a")


def test_an_empty_batch():
    each = hypernetwork(InputEncoder(nn.Linear(5, 8), 8))
    assert each(X[:0]).shape == (0, 3)
    assert hypernetwork(Noise(8, per="sample"))(X[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="the model of a batch needs at least one sample"):
        hypernetwork(InputEncoder(nn.Linear(5, 8), 8, per="batch"))(X[:0])


def test_half_precision():
    tasks = TaskEmbedding(3, 8)
    for conditioner, task in (
        (InputEncoder(nn.Linear(5, 8), 8), None),
        (InputAndTask(InputEncoder(nn.Linear(5, 8), 8), tasks), Y),
        (SupportSet(nn.Linear(5, 7), features=7, n_classes=3, dim=8), (X, Y)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            hypernetwork(conditioner)(X, task=task).float().sum().backward()
        assert all(p.grad.isfinite().all() for p in conditioner.parameters())


def test_a_batch_has_the_model_of_its_mean_embedding():
    encoder = nn.Linear(5, 8)
    hnet = hypernetwork(InputEncoder(encoder, 8, per="batch"))
    torch.testing.assert_close(hnet(X), hnet(X, task=encoder(X).mean(0)))


def test_input_and_task_are_mixed_bilinearly():
    conditioner = InputAndTask(InputEncoder(nn.Linear(5, 8), 8), TaskEmbedding(["a", "b", "c"], 8))
    hnet = hypernetwork(conditioner)
    z = hnet.embedding(Y, X)
    each = conditioner.encoder.encoder(X), conditioner.tasks.weight[Y]
    expected = torch.einsum("bi,kij,bj->bk", each[0], conditioner.mix.weight, each[1])
    torch.testing.assert_close(z, expected + conditioner.mix.bias)
    torch.testing.assert_close(hnet(X, task="b")[4], hnet(X, task=Y)[4])  # its task is b
    assert hnet.task_names == ("a", "b", "c")
    hnet.add_task("d")
    assert hnet(X, task="d").shape == (6, 3)
    for task, error, message in (
        (torch.tensor([0, 1]), ValueError, "`task` must name 6 samples, got 2"),
        (Y + 9, IndexError, r"`task` must be in \[0, 4\), got 9"),
        ("e", KeyError, "unknown `task` 'e'"),
    ):
        with pytest.raises(error, match=message):
            hnet(X, task=task)
    by_batch = InputAndTask(InputEncoder(nn.Linear(5, 8), 8, per="batch"), TaskEmbedding(3, 8))
    assert hypernetwork(by_batch)(X, task=1).shape == (6, 3)
    with pytest.raises(ValueError, match="`task` must be one task, as the whole batch has one"):
        hypernetwork(by_batch)(X, task=Y)
    with pytest.raises(TypeError, match="`encoder` must be a InputEncoder, got Linear"):
        InputAndTask(nn.Linear(5, 8), TaskEmbedding(3, 8))
    with pytest.raises(ValueError, match="`tasks` must have `dim` 8, got 4"):
        InputAndTask(InputEncoder(nn.Linear(5, 8), 8), TaskEmbedding(2, 4))


def test_a_task_never_seen_goes_by_its_features():
    features = {"a": torch.tensor([1.0, 0.0, 2.0]), "b": torch.tensor([0.0, 1.0, 1.0])}
    conditioner = TaskFeatures(features, 8)
    hnet = hypernetwork(conditioner)
    torch.testing.assert_close(hnet(X, task=conditioner.of(features["b"])), hnet(X, task="b"))
    between = (hnet.embedding("a") + hnet.embedding("b")) / 2
    assert hnet(X, task=between).shape == (6, 3)
    mixed = hnet(X, task=torch.tensor([0, 1, 1, 0, 0, 1]))
    torch.testing.assert_close(mixed[3], hnet(X, task="a")[3])
    new = torch.tensor([1.0, 1.0, 1.0])
    before = hnet(X, task=conditioner.of(new))
    hnet.add_task("c", new)
    torch.testing.assert_close(hnet(X, task="c"), before)
    hnet.remove_task("a")
    assert hnet.task_names == ("b", "c")
    torch.testing.assert_close(hnet(X, task="c"), before)
    with pytest.raises(ValueError, match=r"`features` must have length 3, got \[2\]"):
        conditioner.of(new[:2])
    with pytest.raises(
        TypeError, match="features of 'd', got 'mean'; give its vector of 3 numbers"
    ):
        hnet.add_task("d")


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([torch.ones(3)], TypeError, "`features` must map names to vectors"),
        ({}, ValueError, "`tasks` must name at least one task"),
        ({"a": [1.0]}, TypeError, r"features of 'a' must be a floating-point vector, got \[1.0\]"),
        ({"a": torch.ones(2, 2)}, TypeError, r"got torch.float32 \[2, 2\]"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, ValueError, "'b' must have length 2, got 3"),
        ({"a": torch.tensor([torch.inf])}, ValueError, "'a' must be finite, got .inf."),
    ],
)
def test_bad_features_are_refused(features, error, message):
    with pytest.raises(error, match=message):
        TaskFeatures(features, 8)


def test_a_support_set_has_no_order_and_its_size_is_free():
    conditioner = SupportSet(nn.Linear(5, 7), features=7, n_classes=3, dim=8)
    hnet = hypernetwork(conditioner)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(hnet(X, task=(X, Y)), hnet(X, task=(X[order], Y[order])))
    twice = torch.cat([X, X]), torch.cat([Y, Y])
    torch.testing.assert_close(hnet(X, task=(X, Y)), hnet(X, task=twice))
    assert not torch.allclose(hnet(X, task=(X, Y)), hnet(X, task=(X, 2 - Y)))
    model = hnet.materialize((X, Y))
    torch.testing.assert_close(model(X), hnet(X, task=(X, Y)))


@pytest.mark.parametrize(
    ("support", "error", "message"),
    [
        ("shoes", TypeError, "`task` must be a support set, .* got str"),
        ((X, Y[:2]), ValueError, r"labels must be .* of integers \[6\], got shape \[2\]"),
        ((X, Y.float()), ValueError, "labels must be class numbers"),
        ((X[:0], Y[:0]), ValueError, "at least one example, got none"),
        ((X, Y + 1), ValueError, r"labels must be in 0..2, got 3"),
    ],
)
def test_bad_support_sets_are_refused(support, error, message):
    hnet = hypernetwork(SupportSet(nn.Linear(5, 7), features=7, n_classes=3, dim=8))
    with pytest.raises(error, match=message):
        hnet(X, task=support)


def test_few_shot_learning_without_a_gradient_step():
    """Tasks that name the classes of two clusters in either order."""
    conditioner = SupportSet(nn.Linear(2, 16), features=16, n_classes=2, dim=8)
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner)
    optimizer = torch.optim.Adam(hnet.parameters(), 1e-2)

    def task(angle, n=20):
        y = torch.arange(n) % 2
        centre = torch.stack([angle.cos(), angle.sin()])
        return (2 * y[:, None] - 1) * centre + 0.3 * torch.randn(n, 2), y

    for _ in range(300):
        angle = 6.28 * torch.rand(())
        x, y = task(angle)
        optimizer.zero_grad()
        nn.functional.cross_entropy(hnet(x, task=task(angle)), y).backward()
        optimizer.step()
    right = []
    for angle in torch.linspace(0.1, 6.2, 20):
        x, y = task(angle, 200)
        right.append(float((hnet(x, task=task(angle, 6)).argmax(1) == y).float().mean()))
    assert sum(right) / len(right) > 0.95


def test_noise_is_a_distribution_over_models():
    hnet = hypernetwork(Noise(8))
    assert not torch.equal(hnet(X), hnet(X))
    z = hnet.embedding()
    assert torch.equal(hnet(X, task=z), hnet(X, task=z))
    each = hypernetwork(Noise(8, per="sample"))
    same = each(X[:1].expand(6, -1))
    assert len(same.unique(dim=0)) == 6
    with pytest.raises(TypeError, match="`task` must be left out, or an embedding; got 'a'"):
        hnet(X, task="a")


def test_noise_and_dropout_while_training_only():
    for setting in ({"noise": 0.5}, {"dropout": 0.5}):
        hnet = hypernetwork(TaskEmbedding(2, 8), **setting)
        assert not torch.equal(hnet(X, task=0), hnet(X, task=0))
        hnet.eval()
        assert torch.equal(hnet(X, task=0), hnet(X, task=0))
        assert torch.equal(hnet(X, task=0), hypernetwork(TaskEmbedding(2, 8)).eval()(X, task=0))
        hnet.train()
        ids = torch.tensor([0, 1] * 3)
        assert not torch.equal(hnet(X, task=ids), hnet(X, task=ids))
        assert torch.equal(hnet.generate(0)["weight"], hnet.generate(0)["weight"])


def test_means_and_mixtures_of_embeddings_are_embeddings():
    hnet = hypernetwork(TaskEmbedding(["a", "b"], 8))
    mean = (hnet.embedding("a") + hnet.embedding("b")) / 2
    assert torch.equal(hnet(X, task=mean), hnet(X, task=hnet.tasks.weight.mean(0)))
    assert torch.equal(hnet.embedding("b"), hnet.tasks.weight[1])


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_weights_that_change_at_every_time_step(cell):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_input, self.of_state = nn.Linear(5, 8), nn.Linear(4, 8)

        def forward(self, x, state=None):
            h = state[0] if isinstance(state, tuple) else state
            return self.of_input(x) + (0 if h is None else self.of_state(h))

    hnet = hypernetwork(InputEncoder(Encoder(), 8), cell(5, 4))
    inputs = torch.randn(3, 2, 5)
    outputs, _ = unroll(hnet, inputs)
    assert outputs.shape == (3, 2, 4)
    state = None
    for t in range(3):
        given = (inputs[t],) if state is None else (inputs[t], state)
        z = hnet.embedding(None, *given)
        rows = []
        for i in range(2):
            part = None if state is None else pick(state, i)
            rows.append(hnet.materialize(z[i])(inputs[t, i : i + 1], part))
        state = stack(rows)
        torch.testing.assert_close(outputs[t], state[0] if cell is nn.LSTMCell else state)
    outputs.sum().backward()
    assert hnet.conditioner.encoder.of_state.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"`inputs` must be .* got \[0, 2, 5\]"):
        unroll(hnet, inputs[:0])


class Dictionary(nn.Linear):
    def forward(self, x, state=None):
        return {"h": super().forward(x)}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        *[
            (layer(5, 4), r"whose `forward` does not take \(x, state\)")
            for layer in (nn.LSTM, nn.GRU, nn.RNN, nn.Linear)
        ],
        (nn.Sequential(nn.Linear(5, 5)), "got a Sequential, whose `forward` does"),
        (Dictionary(5, 4), "got a Dictionary, which returned a dict"),
    ],
)
def test_only_a_cell_is_unrolled(module, message):
    hnet = hypernetwork(TaskEmbedding(1, 8), module)
    with pytest.raises(TypeError, match=rf"must be a cell, called as cell\(x, state\).*{message}"):
        unroll(hnet, torch.randn(3, 1, 5))


def pick(state, i):
    return tuple(s[i : i + 1] for s in state) if isinstance(state, tuple) else state[i : i + 1]


def stack(rows):
    if isinstance(rows[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return torch.cat(rows)


def test_what_makes_no_sense_is_refused_with_the_reason():
    normed = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"every sample a model of its own, .* use group or layer"):
        hypernetwork(InputEncoder(nn.Linear(5, 8), 8), normed, norm_stats="batch")
    hnet = hypernetwork(Noise(8))
    with pytest.raises(TypeError, match="knows no tasks by name; its conditioner is a Noise"):
        hnet.add_task("a")
    with pytest.raises(TypeError, match=r"`conditioner` is a TaskEmbedding, .* got a Noise"):
        fit_embedding(hnet, "a", (X, Y))
    each = hypernetwork(Noise(8, per="sample"))
    assert len(each.generate()) == 2
    with pytest.raises(ValueError, match=r"`encoder` must return \[batch, 8\], got \[6, 4\]"):
        hypernetwork(InputEncoder(nn.Linear(5, 4), 8))(X)
    for make in (InputEncoder, None):
        with pytest.raises(ValueError, match=r"`per` must be one of 'sample'.*got 'task'"):
            make(nn.Linear(5, 8), 8, per="task") if make else Noise(8, per="task")


def test_a_conditioner_with_a_network_has_to_be_given_to_load(tmp_path):
    hnet = hypernetwork(InputEncoder(nn.Linear(5, 8), 8))
    hnet.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="'input_encoder' holds a network of its own; give a"):
        HyperNetwork.load(tmp_path / "saved", nn.Linear(5, 3))
    other = InputEncoder(nn.Linear(5, 8), 8, per="batch")
    with pytest.raises(ValueError, match=r"`conditioner` does not fit: .* 'per': 'batch'"):
        HyperNetwork.load(tmp_path / "saved", nn.Linear(5, 3), other)
    again = InputEncoder(nn.Linear(5, 8), 8)
    loaded = HyperNetwork.load(tmp_path / "saved", nn.Linear(5, 3), again)
    assert torch.equal(loaded(X), hnet(X))


def test_features_of_tasks_are_loaded(tmp_path):
    hnet = hypernetwork(TaskFeatures({"a": torch.rand(3), "b": torch.rand(3)}, 8, hidden=5))
    hnet.save(tmp_path / "saved")
    loaded = HyperNetwork.load(tmp_path / "saved", nn.Linear(5, 3))
    assert torch.equal(loaded(X, task="b"), hnet(X, task="b"))


def test_a_residual_starts_near_the_targets_own_values_and_is_trained():
    target = nn.Linear(5, 3)
    hnet = hypernetwork(TaskEmbedding(2, 8), target, base="residual")
    weight = hnet.generate(0)["weight"]
    assert 0 < (weight - target.weight).std() < 0.3 * target.weight.std()
    hnet(X, task=0).sum().backward()
    assert hnet.target.base.grad.abs().sum() > 0
