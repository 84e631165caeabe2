"""A new task costs one vector, and changes nothing else."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.small_tasks import layer_normed, normed, plain, samples
from sparsehyper import (
    HyperNetwork,
    Ridge,
    Sparse,
    TaskEmbedding,
    fit_embedding,
    fit_embeddings,
)
from sparsehyper.adaptation.samples import TaskSamples

MODULES = {"plain": plain, "batch norm": normed, "layer norm": layer_normed}


def state(hnet):
    return {name: value.clone() for name, value in hnet.state_dict().items()}


def accuracy(model, x, y):
    return float((model.eval()(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("norm_stats", ["per_task", "shared", "batch"])
def test_everything_else_is_the_same_to_the_bit(make, kind, norm_stats):
    hnet = make(MODULES[kind](), steps=3, norm_stats=norm_stats)
    hnet.train()
    hnet.target.module[1].eval()
    modes = [module.training for module in hnet.modules()]
    before = state(hnet)
    fit_embeddings(
        hnet, {"a": samples(7), "b": samples(8, count=20)}, steps=10, restarts=3, batch_size=16
    )
    assert [module.training for module in hnet.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in hnet.generator.parameters())
    after = hnet.state_dict()
    assert after.keys() == before.keys()
    del before["notes"]
    for name, value in before.items():
        now = after[name]
        tables = ("conditioner.weight", *(["target.module.1."] if norm_stats == "per_task" else []))
        grown = name.startswith(tables)
        assert torch.equal(now[:4] if grown else now, value), name
    assert hnet.task_names[4:] == ("a", "b")


def test_learns_a_task_that_it_was_not_trained_on(make):
    hnet = make(tasks=12, steps=300)
    x, y = samples(99, 400)
    hnet.eval()
    known = max(accuracy(hnet.materialize(name), x, y) for name in hnet.task_names)
    fit = fit_embedding(hnet, "new", (x[:200], y[:200]), steps=200)
    learned = accuracy(hnet.materialize("new"), x[200:], y[200:])
    assert learned > known + 0.1
    torch.testing.assert_close(hnet.conditioner.weight[-1], fit.embedding)
    expected = nn.functional.cross_entropy(hnet(x[:200], task="new"), y[:200])
    assert fit.loss == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("sizes", [(30, 30, 30, 30, 30), (30, 12, 50, 12, 9)])
def test_many_at_once_equal_one_at_a_time(make, kind, sizes):
    tasks = {f"new {i}": samples(50 + i, size) for i, size in enumerate(sizes)}
    together = fit_embeddings(make(MODULES[kind](), steps=20), tasks, steps=12)
    for name, one in tasks.items():
        alone = fit_embedding(make(MODULES[kind](), steps=20), name, one, steps=12)
        assert together[name].loss == pytest.approx(alone.loss, abs=2e-3)


def test_lots_equal_all_at_once(make, monkeypatch):
    tasks = {f"new {i}": samples(50 + i, 20) for i in range(5)}
    whole = fit_embeddings(make(), tasks, steps=8)
    for limit, most in (("_MOST_GENERATED", 1), ("_MOST_SAMPLES", 50)):
        with monkeypatch.context() as patch:
            patch.setattr(f"sparsehyper.adaptation.fitter.{limit}", most)
            for name, fit in fit_embeddings(make(), tasks, steps=8).items():
                assert fit.loss == pytest.approx(whole[name].loss, abs=1e-4)


def test_starts(make, monkeypatch):
    monkeypatch.setattr("sparsehyper.adaptation.fitter.minimize", lambda _, z, *__: (z, None))
    hnet = make(tasks=6, steps=200)
    x, y = samples(3)  # that of a known task

    def start(**settings):
        return fit_embedding(make_again(), "new", (x, y), **settings).embedding

    def make_again():
        again = make(tasks=6)
        again.load_state_dict(hnet.state_dict())
        return again

    known = hnet.conditioner.weight.detach()
    normalised = nn.functional.layer_norm(known, (16,))
    torch.testing.assert_close(start(), normalised[3], atol=1e-4, rtol=0)
    mean = nn.functional.layer_norm(known.mean(0), (16,))
    torch.testing.assert_close(start(init="mean"), mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(start(init=known[2]), normalised[2], atol=1e-4, rtol=0)
    losses = torch.stack([nn.functional.cross_entropy(hnet.eval()(x, task=t), y) for t in range(6)])
    mixture = nn.functional.layer_norm((-losses).softmax(0) @ known, (16,))
    torch.testing.assert_close(start(init="mixture"), mixture, atol=1e-4, rtol=0)
    assert not torch.equal(start(init="random", seed=1), start(init="random", seed=2))


def test_random_starts_are_not_the_embeddings_of_known_tasks(monkeypatch):
    """They were, where both are drawn from the default seed."""
    monkeypatch.setattr("sparsehyper.adaptation.fitter.minimize", lambda _, z, *__: (z, None))
    hnet = HyperNetwork(plain(), Sparse(), TaskEmbedding(6, dim=8))
    known = hnet.normalise(hnet.conditioner.weight.detach())
    fit = fit_embedding(hnet, "new", samples(1), init="random", restarts=4)
    assert torch.cdist(fit.embeddings, known).min() > 0.5


def test_the_nearest_known_task_is_found_by_a_part_of_the_comparisons(make, monkeypatch):
    monkeypatch.setattr("sparsehyper.adaptation.fitter.minimize", lambda _, z, *__: (z, None))
    hnet, compared = make(tasks=16, steps=300).eval(), []

    def loss(outputs, labels):
        compared.append(len(labels))
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    tasks = {f"new {number}": samples(number, 240) for number in range(8)}
    found = fit_embeddings(hnet, tasks, loss=loss)
    assert sum(compared) < 8 * (0.4 * 16 * 240 + 240)
    excess, same = [], 0
    for name, (x, y) in tasks.items():
        with torch.no_grad():
            known = [nn.functional.cross_entropy(hnet(x, task=t), y).item() for t in range(16)]
        excess.append(found[name].loss - min(known))
        same += excess[-1] < 1e-4
    assert same >= 6, excess
    assert max(excess) < 0.1, excess


def test_a_task_is_fitted_to_so_many_samples_of_each_class(make):
    x, y = samples(7, 200)
    order = y.argsort()  # sorted by class, as files are
    seen = []

    def loss(outputs, labels):
        seen.append(labels)
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    fit_embedding(
        make(), "new", (x[order], y[order]), steps=3, batch_size=30, init="mean", loss=loss
    )
    assert [len(labels) for labels in seen[:3]] == [30, 30, 30]
    fit = fit_embedding(make(), "new", (x[order], y[order]), steps=3, batch_size=30)
    again = fit_embedding(make(), "new", (x[order], y[order]), steps=3, batch_size=30)
    other = fit_embedding(make(), "new", (x[order], y[order]), steps=3, batch_size=30, seed=1)
    assert torch.equal(fit.embedding, again.embedding)
    assert not torch.equal(fit.embedding, other.embedding)
    few = TaskSamples.of("few", (x, y), x.device).y[:9]
    assert few.bincount().tolist() == [3, 3, 3]


@pytest.mark.parametrize("most", [1, 1 << 26])
def test_tasks_of_few_and_of_many_samples_equal_one_at_a_time(make, monkeypatch, most):
    monkeypatch.setattr("sparsehyper.adaptation.fitter._MOST_KEPT", most)
    tasks = {f"new {i}": samples(50 + i, size) for i, size in enumerate((200, 30, 120, 90))}
    together = fit_embeddings(make(steps=20), tasks, restarts=2)
    for name, one in tasks.items():
        alone = fit_embedding(make(steps=20), name, one, restarts=2)
        assert together[name].losses == pytest.approx(alone.losses, abs=2e-3)


class AnyLength(nn.Module):
    """Classifies the mean over the numbers of a sample, however many there are."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 3)

    def forward(self, x):
        return self.last(torch.stack([x.mean(1), x.abs().mean(1)], 1))


def test_tasks_may_have_samples_of_different_lengths():
    hnet = HyperNetwork(AnyLength(), Sparse(), TaskEmbedding(3, 8))
    tasks = {f"length {n}": (torch.randn(100, n), torch.arange(100) % 3) for n in (4, 6, 5)}
    again = copy.deepcopy(hnet)
    together = fit_embeddings(hnet, tasks)
    for name, one in tasks.items():
        alone = fit_embedding(copy.deepcopy(again), name, one)
        assert together[name].loss == pytest.approx(alone.loss, abs=2e-3)


def test_restarts_do_not_depend_on_other_tasks(make):
    tasks = {"a": samples(50, 40), "b": samples(51, 20)}
    together = fit_embeddings(make(), tasks, restarts=3, steps=2)
    alone = fit_embeddings(make(), {"a": tasks["a"]}, restarts=3, steps=2)
    assert together["a"].losses == pytest.approx(alone["a"].losses, abs=1e-5)


def test_embeddings_have_unit_second_moment(make):
    fit = fit_embedding(make(steps=50), "new", samples(9), steps=40)
    assert fit.embedding.square().mean() == pytest.approx(1, abs=1e-4)


def test_a_mixture_stays_one(make):
    hnet = make(tasks=3, steps=50)
    known = hnet.conditioner.weight.detach().clone()
    fit = fit_embedding(hnet, "new", samples(9), space="mixture", steps=30)
    weights = torch.linalg.lstsq(known.T, fit.embedding[:, None]).solution[:, 0]
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    assert weights.min() > 0
    assert weights.max() > 1 / 3 + 0.01


def test_the_best_restart_on_the_validation_samples_is_kept(make):
    hnet = make(steps=100)
    train, held = samples(20, 12), samples(20, 200)
    fit = fit_embedding(hnet, "new", train, validation=held, restarts=6, steps=40)
    assert fit.loss == min(fit.losses)
    assert len(set(fit.losses)) == 6
    torch.testing.assert_close(fit.embedding, fit.embeddings[fit.losses.index(fit.loss)])
    expected = nn.functional.cross_entropy(hnet.eval()(held[0], task="new"), held[1])
    assert fit.loss == pytest.approx(expected.item(), abs=1e-4)


def test_statistics_of_a_new_task_are_those_of_its_samples(make):
    hnet = make(normed(), steps=30)
    x, y = samples(30, 5000)  # ten pieces
    x[:, 0] += 5 * y  # classes that lie apart, one after another
    x, y = x[y.argsort()], y.sort().values
    fit_embedding(hnet, "new", (3 * x + 1, y), steps=5)
    model = hnet.materialize("new")
    inputs = model[0](3 * x + 1)
    torch.testing.assert_close(model[1].running_mean, inputs.mean(0), atol=1e-4, rtol=1e-4)
    between = (model[1].running_var - inputs.var(0)) / inputs.var(0)
    assert between.abs().max() < 0.3  # the mean of pieces' variances


def test_statistics_of_a_norm_used_twice_are_the_mean_of_both():
    class UsedTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(1), nn.Linear(1, 2)

        def forward(self, x):
            self.norm(x)
            return self.last(self.norm(x + 10))

    hnet = HyperNetwork(UsedTwice(), Sparse(), TaskEmbedding(["a", "b"], 8))
    x = torch.randn(60, 1)
    fit_embedding(hnet, "c", (x, (x[:, 0] > 0).long()), steps=2)
    mean = hnet.materialize("c").norm.running_mean
    torch.testing.assert_close(mean, x.mean(0) + 5, atol=1e-3, rtol=0)


def test_fewer_classes_than_outputs_are_masked(make):
    hnet = make(steps=50)
    fit = fit_embedding(hnet, "pair", samples(40, classes=2), steps=20)
    logits = hnet.eval()(samples(40, classes=2)[0], task="pair")[:, :2]
    expected = nn.functional.cross_entropy(logits, samples(40, classes=2)[1])
    assert fit.loss == pytest.approx(expected.item(), abs=1e-4)


def test_another_loss(make):
    hnet = make(nn.Linear(6, 1))
    x = samples(1)[0]
    y = 2 * x[:, :1] - 1
    first = fit_embedding(hnet, "one", (x, y), steps=2, loss=squared).loss
    assert fit_embedding(hnet, "two", (x, y), steps=200, loss=squared).loss < first / 2


def squared(outputs, y):
    return (outputs - y).square().mean(1)


@pytest.mark.parametrize("space", ["free", "mixture"])
def test_losses_of_another_precision(make, space):
    x, y = samples(9)
    narrow = make().bfloat16()
    fit = fit_embedding(narrow, "new", (x.bfloat16(), y), space=space, steps=5)
    assert narrow.embedding("new").dtype == torch.bfloat16
    assert fit.loss < 1.1
    of = [(x, x[:, :3].to(dtype)) for dtype in (torch.float32, torch.float64)]
    a, b = [fit_embedding(make(), "new", s, loss=squared, space=space, steps=5) for s in of]
    assert a.embedding.dtype == b.embedding.dtype == torch.float32
    torch.testing.assert_close(a.embedding, b.embedding)


@pytest.mark.parametrize("head", [None, Ridge(targets="numbers")])
def test_numbers_are_fitted_by_their_squares(make, head):
    x, _ = samples(3)
    y = x @ torch.randn(6, 3)
    a, b = [
        fit_embedding(make(head=head), "new", (x, y), steps=5, **settings)
        for settings in ({}, {"loss": nn.MSELoss()})
    ]
    assert torch.equal(a.embedding, b.embedding)
    assert a.loss == b.loss


def test_classes_and_numbers_together(make):
    x, classes = samples(3)
    tasks = {"a": (x, classes), "b": (x, x[:, :3]), "c": samples(5), "d": (x, x[:, 3:])}
    found = fit_embeddings(make(), tasks, steps=5)
    for name, own in tasks.items():
        alone = fit_embedding(make(), name, own, steps=5)
        assert found[name].loss == pytest.approx(alone.loss, abs=1e-3)


@pytest.mark.parametrize(("y", "own"), [(0, 1), (1, 0)])
def test_validation_has_labels_of_the_same_kind(make, y, own):
    x, classes = samples(3)
    labels, hnet = (classes, x[:, :3]), make()
    with pytest.raises(ValueError, match="must have labels like its samples"):
        fit_embedding(hnet, "new", (x, labels[y]), validation=(x, labels[own]), steps=2)
    assert len(hnet.task_names) == 4
    fit_embedding(hnet, "new", (x, labels[y]), validation=(x, labels[y]), steps=2)


def test_batches_are_gathered(make):
    x, y = samples(5)
    whole = fit_embedding(make(), "new", (x, y), steps=5)
    for parts in ([[x[:20], y[:20]], [x[20:], y[20:]]], DataLoader(TensorDataset(x, y), 20)):
        fit = fit_embedding(make(), "new", parts, steps=5)
        torch.testing.assert_close(fit.embedding, whole.embedding)


X, Y = samples(0)


def test_one_hot_labels_are_numbers_with_a_warning(make):
    hnet = make()
    with pytest.warns(UserWarning, match=r"labels of task 'new' are one-hot .*`argmax\(1\)`"):
        fit = fit_embedding(hnet, "new", (X, nn.functional.one_hot(Y, 3).float()), steps=2)
    assert fit.loss < 10


@pytest.mark.parametrize(
    ("name", "data", "settings", "message"),
    [
        ("known 1", (X, Y), {}, "`name` must not repeat a task, got 'known 1'"),
        ("new", (X, Y[:5]), {}, "'new' needs at least one sample.* got 60 and 5"),
        ("new", (X[:0], Y[:0]), {}, "'new' needs at least one sample.* got 0 and 0"),
        ("new", [], {}, "'new' needs at least one sample, got none"),
        ("new", [1, 2], {}, "or batches of them, got 'int'"),
        ("new", (X, Y * 0), {}, "'new' needs samples of at least 2 classes, got 0 alone"),
        ("new", (X, Y * 0 + 1), {}, "'new' needs samples of at least 2 classes, got 1 alone"),
        ("new", (X, Y - 1), {}, r"labels of task 'new' must be class numbers from 0, got -1"),
        (
            "new",
            (X, Y.float()),
            {},
            r"labels of task 'new' that are floating-point numbers must have the shape of the "
            r"outputs, got \[n\] for outputs \[n, 3\]; class numbers must be integers \[n\]",
        ),
        ("new", (X, X[:, :2]), {}, r"got \[n, 2\] for outputs \[n, 3\]; give a `loss`"),
        (
            "new",
            (X, Y.float()),
            {"n_classes": 3},
            "'new' must be class numbers, .*float32; for numbers to predict leave out `n_classes`",
        ),
        (
            "new",
            (X, Y[:, None]),
            {},
            r"must be class numbers, .* got shape \[60, 1\].*; give their only column, `\[:, 0\]`",
        ),
        ("new", (X, Y + 2), {}, "'new' has 5 classes, the target has 3 outputs; .*train --outputs"),
        ("new", (X, Y), {"n_classes": 2}, "below its 2 classes, got 2"),
        ("new", (X, Y), {"init": "median"}, "`init` must be one of 'mean'.*got 'median'"),
        ("new", (X, Y), {"init": torch.zeros(5)}, r"`init` must have shape \[16\], got \[5\]"),
        ("new", (X, Y), {"restarts": 0}, "`restarts` must be at least 1, got 0"),
        ("new", (X, Y), {"steps": 1}, "`steps` must be at least 2, got 1"),
        ("new", (X, Y), {"batch_size": 1}, "`batch_size` must be at least 2, got 1"),
        ("new", (X / 0, Y), {"steps": 2}, "loss of the new task 'new' is not finite"),
        (
            "new",
            (X, Y),
            {"loss": lambda o, y: o.mean()},
            "`loss` must return the losses .* n samples, got their mean; leave out its mean",
        ),
        ("new", TensorDataset(X, Y), {}, "got single samples; wrap a data set in a DataLoader"),
        ("new", [(X, Y), (X[0], 1)], {}, "got single samples"),
        ("new", [(X, Y), X, Y], {}, "got 'Tensor'"),
        ("new", {"x": X}, {}, "a dict with 'labels', or batches of them, got 'dict'"),
        (
            "new",
            ((X, X[:5]), Y),
            {},
            r"inputs of the samples of task 'new' must .*, got shapes \[60, 6\], \[5, 6\]",
        ),
        ("new", [(X, Y), (X[:, :5], Y)], {}, r"got \[\[6\]\] and \[\[5\]\]; pad"),
        (
            "new",
            (X, X[:, 0]),
            {"loss": lambda o, y: (o[:, :1] - y).square()},
            r"got shape \[n, n\] for labels \[n\]",
        ),
    ],
)
def test_bad_input_is_refused_and_leaves_all_as_it_was(make, name, data, settings, message):
    hnet = make()
    before, modes = state(hnet), [module.training for module in hnet.modules()]
    with pytest.raises(ValueError, match=message):
        fit_embedding(hnet, name, data, **settings)
    assert hnet.task_names == ("known 0", "known 1", "known 2", "known 3")
    torch.testing.assert_close(hnet.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in hnet.modules()] == modes
    assert all(parameter.requires_grad for parameter in hnet.parameters())


def test_restarts_of_mixtures_differ(make):
    fit = fit_embedding(make(steps=30), "new", (X, Y), space="mixture", restarts=3, steps=2)
    assert len(set(fit.losses)) == 3


def test_n_classes_must_be_of_new_tasks(make):
    with pytest.raises(ValueError, match="names 'b', which is not a new task"):
        fit_embeddings(make(), {"a": (X, Y)}, n_classes={"b": 3})
    with pytest.raises(TypeError, match=r"`n_classes` must be a number, .* got \[3\]"):
        fit_embeddings(make(), {"a": (X, Y)}, n_classes=[3])


def test_one_number_of_classes_is_that_of_all_new_tasks(make):
    tasks = {"a": samples(7, classes=2), "b": samples(8, classes=2)}
    fits = [fit_embeddings(make(), tasks, steps=3, n_classes=n) for n in (3, {"a": 3, "b": 3})]
    for name in tasks:
        assert torch.equal(fits[0][name].embedding, fits[1][name].embedding)


def test_gradients_are_taken_within_no_grad_and_refused_in_inference_mode(make):
    expected = fit_embedding(make(), "new", (X, Y), steps=3)
    with torch.no_grad():
        fit = fit_embedding(make(), "new", (X, Y), steps=3)
    assert torch.equal(fit.embedding, expected.embedding)
    hnet = make()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"`torch.inference_mode\(\)`"):
        fit_embedding(hnet, "new", (X, Y))


def test_samples_are_given_by_name(make):
    for argument in ({}, {"validation": [("new", (X, Y))]}):
        tasks = {"new": (X, Y)} if argument else [("new", (X, Y))]
        with pytest.raises(TypeError, match=r"` must map each new task's name .*, got a list$"):
            fit_embeddings(make(), tasks, **argument)


def test_one_task_takes_the_settings_of_many():
    one, many = (inspect.signature(f).parameters for f in (fit_embedding, fit_embeddings))
    settings = [
        {n: p.default for n, p in ps.items() if p.kind is p.KEYWORD_ONLY} for ps in (one, many)
    ]
    assert settings[0] == settings[1]


def test_validation_samples_must_cover_the_tasks(make):
    with pytest.raises(ValueError, match="no samples of the new task 'b'"):
        fit_embeddings(make(), {"a": (X, Y), "b": (X, Y)}, validation={"a": (X, Y)})
    with pytest.raises(ValueError, match="at least one new task"):
        fit_embeddings(make(), {})


@pytest.mark.parametrize("settings", [{}, {"space": "mixture"}])
def test_a_known_task_is_learned_anew_as_if_it_were_not_known(make, settings):
    hnet, fresh = make(normed(), steps=5), make(normed(), steps=5)
    weight, before = hnet.conditioner.weight, hnet.conditioner.weight.detach().clone()
    with torch.no_grad():
        fresh.conditioner.weight[3] = torch.nan
    fit = fit_embedding(hnet, "known 3", (X, Y), steps=5, overwrite=True, **settings)
    assert len(hnet.task_names) == 4
    assert hnet.conditioner.weight is weight
    assert torch.equal(weight[:3], before[:3])
    torch.testing.assert_close(weight[3], fit.embedding)
    again = fit_embedding(fresh, "known 3", (X, Y), steps=5, overwrite=True, **settings)
    torch.testing.assert_close(again.embedding, fit.embedding)
    found = hnet.eval()(X, task="known 3")
    torch.testing.assert_close(hnet.materialize("known 3").eval()(X), found)
    with pytest.raises(ValueError, match="'known 3'; `overwrite=True` learns it anew"):
        fit_embedding(hnet, "known 3", (X, Y))
    with pytest.raises(ValueError, match="must leave a known task to start from, got all"):
        fit_embeddings(hnet, dict.fromkeys(hnet.task_names, (X, Y)), overwrite=True)
