from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from sparsehyper import HyperNetwork, Ridge, Sparse, TaskEmbedding, fit_embedding
from sparsehyper._util.objectives import sample_losses
from sparsehyper.training import NonFiniteError, TrainConfig, evaluate, train
from sparsehyper.training.sources import ByTask, Passes, Tasks

NAMES = ["up", "down"]
X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
TASK = torch.arange(64) % 2
Y = X.sum(1) * torch.where(TASK == 0, 1.0, -1.0)
CONFIG = TrainConfig(steps=100, lr=0.1, eval_every=50, log_every=25, device="cpu")


def make(outputs: int = 1) -> HyperNetwork:
    return HyperNetwork(nn.Linear(3, outputs), Sparse(), TaskEmbedding(NAMES, dim=8))


def named(y=Y):
    """A DataLoader of samples that call their task by name."""
    samples = [(x, label, NAMES[task]) for x, label, task in zip(X, y, TASK, strict=True)]
    order = torch.Generator().manual_seed(0)
    return DataLoader(samples, batch_size=16, shuffle=True, generator=order)


def test_a_data_loader_of_samples_with_names_trains_a_classifier():
    hnet, loader = make(2), named((Y > 0).long())
    result = train(hnet, loader, loader, CONFIG, quiet=True)
    assert result.best.tasks == ("up", "down")
    assert result.best.accuracy > 0.9
    again = evaluate(hnet, ByTask(loader, NAMES), names=NAMES)
    assert again.accuracies == result.best.accuracies


def test_a_data_loader_of_a_stream_has_no_length():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(X, (Y > 0).long(), TASK, strict=True)

    result = train(make(2), DataLoader(Stream(), 16), named((Y > 0).long()), CONFIG, quiet=True)
    assert result.best.accuracy > 0.9


def test_modules_whose_state_has_a_version_are_trained():
    target = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 2))
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(NAMES, dim=8))
    loader = named((Y > 0).long())
    result = train(hnet, loader, loader, CONFIG, quiet=True)
    again = evaluate(hnet, ByTask(loader, NAMES), names=NAMES)
    assert again.accuracies == result.best.accuracies


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: nn.functional.mse_loss(out[:, 0], y),
        lambda out, y: nn.functional.mse_loss(out, y[:, None], reduction="none"),
    ],
    ids=["mean", "each"],
)
def test_any_loss_decides_what_is_best(loss):
    hnet, seen = make(), []
    result = train(
        hnet,
        named(),
        named(),
        CONFIG,
        loss=loss,
        callback=lambda kind, step, values: seen.append((kind, step, values["loss"])),
        quiet=True,
    )
    assert result.best.loss < 0.01
    assert result.best.accuracy == pytest.approx(-result.best.loss)
    assert [(kind, step) for kind, step, _ in seen] == [
        *[("train", 25), ("train", 50), ("validation", 50)],
        *[("train", 75), ("train", 100), ("validation", 100)],
    ]
    assert seen[-1][2] == result.best.loss


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([10.0, 1.0])),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(),
    ],
    ids=["weights", "ignored", "plain"],
)
def test_a_loss_keeps_its_own_reduction(loss):
    hnet, y = make(2), (Y > 0).long()
    twin = make(2)
    twin.load_state_dict(hnet.state_dict())
    batch = [(X, y, TASK)]
    config = TrainConfig(steps=3, lr=0.1, warmup=0, clip=None, eval_every=3, device="cpu")
    result = train(hnet, batch, batch, config, loss=loss, quiet=True)
    optimizer = torch.optim.Adam(twin.parameters(), 0.1)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 3)) / 2
        optimizer.zero_grad()
        loss(twin(X, task=TASK), y).backward()
        optimizer.step()
    out = twin.eval()(X, task=TASK)
    torch.testing.assert_close(hnet.eval()(X, task=TASK), out, rtol=1e-3, atol=1e-4)
    expected = [float(loss(out[i == TASK], y[i == TASK]).detach()) for i in range(2)]
    assert result.best.losses == pytest.approx(expected, rel=1e-3)


def test_a_sum_is_no_loss_of_batches():
    with pytest.raises(ValueError, match="`loss` has the reduction 'sum', which depends on the"):
        train(make(), named(), named(), CONFIG, loss=nn.MSELoss(reduction="sum"), quiet=True)


def test_class_numbers_are_one_for_each_sample_and_of_any_integer_type():
    y = (Y > 0).to(torch.int32)
    assert train(make(2), named(y), named(y), CONFIG, quiet=True).best.accuracy > 0.9
    pixels = [(X, y[:, None], TASK)]
    with pytest.raises(ValueError, match=r"class numbers must have shape \[n\], got labels \[64"):
        train(make(2), pixels, pixels, CONFIG, quiet=True)


def test_a_metric_of_one_s_own_decides_instead():
    near = lambda out, y: ((out[:, 0] - y).abs() < 0.5).float()  # noqa: E731
    loss = lambda out, y: (out[:, 0] - y).square().mean()  # noqa: E731
    hnet = make()
    result = train(hnet, named(), named(), CONFIG, loss=loss, metric=near, quiet=True)
    shares = [near(hnet(X[t == TASK], task=t), Y[t == TASK]).mean().item() for t in (0, 1)]
    assert result.best.accuracies == pytest.approx(shares)
    assert result.best.accuracy > 0.9


class Two(nn.Module):
    """A module of two arguments, that answers as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, first, rest):
        return {"logits": self.linear(torch.cat([first, rest], 1)), "hidden": first}


FORMS = {
    "dict": lambda x, y: ({"first": x[:, :1], "rest": x[:, 1:]}, y),
    "tuple": lambda x, y: ((x[:, :1], x[:, 1:]), y),
    "arrays": lambda x, y: ([x[:, :1].numpy(), x[:, 1:].numpy()], y.numpy()),
    "labels": lambda x, y: {"first": x[:, :1], "rest": x[:, 1:], "labels": y},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_training_and_adaptation_take_the_same_inputs(form):
    hnet = HyperNetwork(Two(), Sparse(), TaskEmbedding(NAMES, dim=8))
    classes, up = (Y > 0).long(), TASK == 0
    samples = form(X, classes)
    batch = {**samples, "task": TASK} if isinstance(samples, dict) else (*samples, TASK)
    result = train(hnet, [batch], [batch], CONFIG, quiet=True)
    assert result.best.accuracy > 0.9
    assert evaluate(hnet, [batch]).accuracies == result.best.accuracies
    fit_embedding(hnet, "new", form(X[up], classes[up]), steps=3)
    out = hnet(X[up, :1], X[up, 1:], task="new")["logits"]
    assert (out.argmax(1) == classes[up]).float().mean() > 0.9


def four_tasks() -> HyperNetwork:
    """A hypernetwork of four tasks, of which the third and the fourth are `NAMES`."""
    return HyperNetwork(nn.Linear(3, 2), Sparse(), TaskEmbedding(["a", "b", *NAMES], dim=8))


class Numbered:
    """The samples of `NAMES` as a stream and as evaluation data, by position in given names."""

    steps_per_epoch = 1

    def __init__(self, names):
        self.names = names
        self.counts = [32] * len(names)

    def of(self, name):
        rows = NAMES.index(name) == TASK
        position = torch.full((32,), self.names.index(name))
        return X[rows], (Y[rows] > 0).long(), position

    def batch(self, epoch, step):
        return tuple(map(torch.cat, zip(*map(self.of, self.names), strict=True)))

    def batches(self, task, batch_size):
        yield self.of(self.names[task])


@pytest.mark.parametrize("names", [["up", "down"], ["down", "up"], ["down"]])
@pytest.mark.parametrize("form", ["names", "numbers", "source"])
def test_a_hypernetwork_is_asked_for_a_task_by_its_name(names, form):
    hnet, source = four_tasks(), Numbered(names)
    frozen = hnet.embedding("a").clone(), hnet.embedding("b").clone()
    batches = [source.of(name) for name in names]
    if form == "names":
        batches = [(x, y, name) for (x, y, _), name in zip(batches, names, strict=True)]
    data = source if form == "source" else batches
    result = train(hnet, data, data, CONFIG, names=names, n_classes=[2] * len(names), quiet=True)
    assert result.best.tasks == tuple(names)
    assert result.best.accuracy > 0.9
    assert evaluate(hnet, data, names=names).accuracies == result.best.accuracies
    hnet.eval()
    for name, share in zip(names, result.best.accuracies, strict=True):
        x, y, _ = source.of(name)
        assert (hnet(x, task=name).argmax(1) == y).float().mean().item() == pytest.approx(share)
    assert torch.equal(hnet.embedding("a"), frozen[0])
    assert torch.equal(hnet.embedding("b"), frozen[1])


def test_more_tasks_may_be_trained_than_validated():
    hnet, y = four_tasks(), (Y > 0).long()
    batches = [(X, y, [NAMES[t] for t in TASK])]
    validation = [(X[TASK == 1], y[TASK == 1], "down")]
    result = train(hnet, batches, validation, CONFIG, names=["down"], n_classes=[2], quiet=True)
    assert result.best.tasks == ("down",)
    assert evaluate(hnet, batches, names=NAMES).worst_accuracy > 0.9
    with pytest.raises(KeyError, match="unknown `task` 'up'; the tasks are: 'down'"):
        train(hnet, batches, batches, CONFIG, names=["down"], quiet=True)
    with pytest.raises(IndexError, match=r"`task` must be in \[0, 1\), got 1"):
        train(hnet, [(X, y, TASK)], validation, CONFIG, names=["down"], quiet=True)


def test_a_loss_that_is_not_finite_names_the_task_of_the_hypernetwork():
    x = X.clone()
    x[TASK == 0] = torch.inf
    good = [(X, (Y > 0).long(), TASK)]
    bad = [(x, (Y > 0).long(), TASK)]
    with pytest.raises(NonFiniteError) as caught:
        train(four_tasks(), bad, good, CONFIG, names=NAMES, quiet=True)
    assert caught.value.tasks == ("up",)


def test_names_that_the_hypernetwork_does_not_know_or_that_are_missing():
    source = Numbered(NAMES)
    with pytest.raises(KeyError, match="unknown `task` 'left'; the tasks are: 'a', 'b', 'up'"):
        evaluate(four_tasks(), source, names=["up", "left"])
    with pytest.raises(ValueError, match=r"`names` must name the 2 tasks of the data, .* 4: 'a'"):
        evaluate(four_tasks(), source)
    assert evaluate(make(2), source).tasks == ("up", "down")
    one = [(X, (Y > 0).long(), "up")]
    with pytest.raises(IndexError, match=r"\[0, 1\), a position in `names`, got \[0, 1\]"):
        train(four_tasks(), source, one, CONFIG, names=["up"], quiet=True)


def test_heads_are_solved_for_the_tasks_that_are_named():
    target = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    embeddings = TaskEmbedding(["a", *NAMES], dim=8)
    hnet = HyperNetwork(target, Sparse(), embeddings, head=Ridge())
    loader = named((Y > 0).long())
    settings = {"names": NAMES[::-1], "quiet": True}
    result = train(hnet, loader, loader, CONFIG, examples=loader, **settings)
    assert result.best.accuracy > 0.9
    assert evaluate(hnet, loader, names=NAMES).accuracies == result.best.accuracies[::-1]
    one = [(X[TASK == 0], (Y[TASK == 0] > 0).long(), "up")]
    with pytest.raises(ValueError, match=r"`examples` must be of the 1 tasks 'up', got .* 2 tasks"):
        train(hnet, one, one, CONFIG, names=["up"], examples=Numbered(NAMES), quiet=True)


@pytest.mark.parametrize("task", ["down", 1, np.int64(1), ["down"] * 4, np.ones(4, int)])
def test_a_batch_names_its_task_in_any_way(task):
    stream = Passes([(torch.ones(4, 1), torch.ones(4), task)], Tasks.of(NAMES, nn.Linear(1, 1)))
    for epoch in range(2):
        assert stream.batch(epoch, 0)[2].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "gave no batch"),
        (iter([(X, Y, TASK)]), ValueError, "must be iterable over again"),
        ([(X, Y)], TypeError, r"must be \(x, y, task\)"),
        ([{"x": X, "labels": Y}], TypeError, "got a dict of 'x', 'labels'"),
        ([(X, Y[:3], 0)], TypeError, r"its 64 samples .* got \[3\]"),
        ([(X, "up", 0)], TypeError, "got a str"),
        ([("x", Y, 0)], TypeError, "inputs of a batch must be a tensor or an array"),
        ([(X, Y, "sideways")], KeyError, "unknown `task` 'sideways'"),
        ([(X, Y, 1.7)], TypeError, "must be a name or an integer, got 1.7"),
        ([(X, Y, True)], TypeError, "must be a name or an integer, got True"),
        ([(X, Y, 2)], IndexError, r"\[0, 2\), got 2"),
        ([(X, Y, [0, 1])], ValueError, r"must name its 64 samples, \[64\], got shape \[2\]"),
        ([(X, Y, TASK[:, None])], ValueError, r"\[64\], got shape \[64, 1\]"),
    ],
)
def test_what_does_not_fit_is_named(batches, error, message):
    loss = lambda out, y: (out[:, 0] - y).square().mean()  # noqa: E731
    with pytest.raises(error, match=message):
        train(make(), batches, [(X, Y, TASK)], CONFIG, loss=loss, quiet=True)


def test_tasks_without_names_or_data_are_refused():
    with pytest.raises(ValueError, match="`names` must name the tasks"):
        train(nn.Linear(3, 1), [(X, Y, 0)], [(X, Y, 0)], CONFIG, quiet=True)
    with pytest.raises(ValueError, match="task 'down' has no samples to evaluate on"):
        train(make(), [(X, Y, 0)], [(X, Y, 0)], CONFIG, quiet=True)
    with pytest.raises(ValueError, match=r"`loss` must return .* got shape \[2\] for labels \[n\]"):
        train(make(), [(X, Y, 0)], [(X, Y, TASK)], CONFIG, loss=lambda *_: X[:2, 0], quiet=True)


@pytest.mark.parametrize("loss", [None, nn.L1Loss()])
@pytest.mark.filterwarnings("ignore:Using a target size")  # PyTorch's, before the error
def test_labels_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match="shape"):
        train(make(), named(), named(), CONFIG, loss=loss, quiet=True)


@pytest.mark.parametrize(
    ("y", "loss"),
    [(Y.abs().round().long(), nn.PoissonNLLLoss()), (Y[:, None], nn.L1Loss())],
    ids=["counts", "columns"],
)
@pytest.mark.filterwarnings("ignore:Using a target size")  # PyTorch's, before the error
def test_labels_that_a_mean_of_one_s_own_would_broadcast_are_refused(y, loss):
    flat = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)) if y.ndim == 2 else nn.Linear(3, 1)
    hnet = HyperNetwork(flat, Sparse(), TaskEmbedding(NAMES, dim=8))
    with pytest.raises(ValueError, match=r"`loss` must return .* got shape \[n, n\] for labels"):
        train(hnet, [(X, y, 0)], [(X, y, TASK)], CONFIG, loss=loss, quiet=True)


def test_a_metric_gives_a_number_or_one_for_each_sample():
    hnet, y = make(2), (Y > 0).long()
    batch = [(X, y, TASK)]
    right = lambda out, y: out.argmax(1) == y  # noqa: E731
    share = lambda out, y: float(right(out, y).float().mean())  # noqa: E731
    expected = evaluate(hnet, batch).accuracies
    for metric in (right, share):
        assert evaluate(hnet, batch, metric=metric).accuracies == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"`metric` must return the values .* shape \[n, n\]"):
        evaluate(make(), [(X, Y, TASK)], metric=lambda o, y: -(o - y).abs(), loss=lambda o, _: o)


@pytest.mark.parametrize("missing", [-100, -1])
def test_negative_class_numbers_need_a_loss_of_one_s_own(missing):
    y = (Y > 0).long()
    whole = [(X, y, TASK)]
    y = y.clone()
    y[:10] = missing
    some, advice = [(X, y, TASK)], f"must be from 0, got {missing}; .* nn.CrossEntropyLoss"
    with pytest.raises(ValueError, match=advice):
        train(make(2), some, whole, CONFIG, quiet=True)
    with pytest.raises(ValueError, match=advice):
        evaluate(make(2), some)
    own = nn.CrossEntropyLoss(ignore_index=missing)
    assert train(make(2), some, whole, CONFIG, loss=own, quiet=True).best.loss < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "below the 2 outputs of the model, got 2"), ({"n_classes": [2, 1]}, "below the 1 cl")],
)
def test_class_numbers_beyond_those_of_the_task_are_refused(settings, message):
    y = (Y > 0).long()
    y[TASK == 1] = torch.where(y[TASK == 1] == 1, 2 if not settings else 1, 0)
    batch, whole = [(X, y, TASK)], [(X, (Y > 9).long(), TASK)]
    with pytest.raises(ValueError, match=message):
        evaluate(make(2), batch, **settings)
    with pytest.raises(ValueError, match=message):
        train(make(2), batch, whole, CONFIG, quiet=True, **settings)


def test_tasks_of_classes_and_of_numbers_need_a_metric():
    y = (Y > 0).long()
    up, down = TASK == 0, TASK == 1
    batches = [(X[up], torch.zeros_like(y[up]), "up"), (X[down], Y[down, None], "down")]
    message = "labels of task 'up' are class numbers, those of 'down' floating-point numbers"
    with pytest.raises(ValueError, match=message):
        evaluate(make(1), batches)
    metric = lambda out, _: out[:, 0]  # noqa: E731
    assert len(evaluate(make(1), batches, metric=metric).accuracies) == 2


@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_every_submodule_is_in_its_own_mode_after_training(ends):
    target = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(NAMES, dim=8))
    hnet.target.module[0].train()
    before = {name: module.training for name, module in hnet.named_modules()}
    batch = [(X, (Y > 0).long(), TASK)]
    if ends == "well":
        train(hnet, batch, batch, CONFIG, quiet=True)
    else:
        with pytest.raises(NonFiniteError):
            train(hnet, [(X * math.nan, *batch[0][1:])], batch, CONFIG, quiet=True)
    assert {name: module.training for name, module in hnet.named_modules()} == before


def test_negative_class_numbers_on_a_device_have_no_loss():
    # Labels on a device cannot be looked at without waiting for it.
    found = sample_losses(torch.zeros(2, 2), torch.tensor([-100, 0]), None)
    assert found.isnan().tolist() == [True, False]


def test_numbers_have_the_shape_of_the_outputs():
    assert sample_losses(torch.zeros(2), torch.tensor([1.0, 2.0]), None).tolist() == [1, 4]
    for outputs, message in ((3, r"integers \[n\]"), (1, r"give them as \[n, 1\]")):
        with pytest.raises(
            ValueError, match=rf"got \[n\] for outputs \[n, {outputs}\]; .*{message}"
        ):
            sample_losses(torch.zeros(2, outputs), torch.zeros(2), None)
    with pytest.raises(ValueError, match=r"got \[n\] for outputs of type 'tuple'; give a `loss`"):
        sample_losses((torch.zeros(2),), torch.zeros(2), None)


def test_parameters_of_a_loss_are_not_trained_silently():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, out, y):
            return (self.scale * out[:, 0] - y).square()

    loss, batch = Learned(), [(X, Y, TASK)]
    with pytest.raises(ValueError, match="`loss` has the parameter 'scale', which `train` would"):
        train(make(), batch, batch, CONFIG, loss=loss, quiet=True)
    loss.requires_grad_(False)
    assert train(make(), batch, batch, CONFIG, loss=loss, quiet=True).best.loss < 0.1
    hnet = make()
    hnet.target.module.scale = loss.scale.requires_grad_()  # trained with the model
    assert train(hnet, batch, batch, CONFIG, loss=loss, quiet=True).best.loss < 0.1
    assert loss.scale != 1


def f1(out, y):
    found, true = out.argmax(1) == 1, y == 1
    return 2 * (found & true).sum() / (found.sum() + true.sum())


@pytest.mark.parametrize("size", [3, 7, 64])
def test_an_evaluation_does_not_depend_on_the_batches_of_a_loader(size):
    hnet, y = make(2).eval(), (Y > 0).long()
    loader = DataLoader([*zip(X, y, TASK, strict=True)], batch_size=size)
    found = evaluate(hnet, loader, metric=f1).accuracies
    whole = [(hnet(X[t == TASK], task=t), y[t == TASK]) for t in range(2)]
    assert found == pytest.approx([f1(*one).item() for one in whole])
    parts = [torch.stack([f1(o[:16], t[:16]), f1(o[16:], t[16:])]).mean() for o, t in whole]
    halves = evaluate(hnet, loader, metric=f1, batch_size=16).accuracies
    assert halves == pytest.approx([part.item() for part in parts])
    seen = []
    config = TrainConfig(steps=1, eval_batch_size=20, device="cpu")
    count = lambda out, _: seen.append(len(out)) or 0.0  # noqa: E731
    train(hnet, loader, loader, config, metric=count, quiet=True)
    assert seen == [20, 12] * 2


def test_samples_of_several_shapes_are_in_batches_of_their_own():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x, scale=1.0):
            return self.linear(x).mean(1) * scale

    hnet = HyperNetwork(Mean(), Sparse(), TaskEmbedding(["a"], dim=8))
    kinds = [(4, 1.0), (6, 1.0), (4, 1.0), (4, -1.0), (6, 1.0)]
    x = [torch.randn(5, length, 3) for length, _ in kinds]
    y = [(part[:, 0, 0] > 0).long() for part in x]
    batches = [
        {"x": part, "scale": scale, "labels": labels, "task": "a"}
        for part, labels, (_, scale) in zip(x, y, kinds, strict=True)
    ]
    sizes = [len(labels) for _, labels, _ in ByTask(batches, ["a"]).batches(0, 7)]
    assert sizes == [7, 3, 7, 3, 5]
    hnet.eval()
    pairs = zip(x, y, kinds, strict=True)
    right = [hnet(a, s, task=0).argmax(1) == b for a, b, (_, s) in pairs]
    assert evaluate(hnet, batches).accuracy == pytest.approx(torch.cat(right).float().mean().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.tensor([10.0, 1.0, 3.0])])
def test_the_mean_of_a_weighted_loss_does_not_depend_on_the_batch_size(weight, smoothing):
    loss = nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=smoothing)
    hnet, y = make(3).eval(), (Y > 0).long()
    y[:20] = 2  # many batches are of these alone
    found = evaluate(hnet, [(X, y, TASK)], loss=loss, batch_size=5)
    expected = [loss(hnet(X[t == TASK], task=t), y[t == TASK]).item() for t in range(2)]
    assert found.losses == pytest.approx(expected)
    assert found.accuracies == pytest.approx([-one for one in expected])


def test_outputs_beyond_the_classes_do_not_count_for_a_loss_or_metric_of_one_s_own():
    hnet = make(3)
    with torch.no_grad():
        hnet.target.base[-1] += 100  # the bias of the third class
    y, right = (Y > 0).long(), lambda out, y: out.argmax(1) == y
    batch, own = [(X, y, TASK)], {"loss": nn.CrossEntropyLoss(), "metric": right}
    plain = evaluate(hnet, batch, n_classes=[2, 2])
    found = evaluate(hnet, batch, n_classes=[2, 2], **own)
    assert found.losses == pytest.approx(plain.losses)
    assert found.accuracies == plain.accuracies
    assert evaluate(hnet, batch, n_classes=[2, 3], **own).accuracies[1] == 0
    twin = make(3)
    twin.load_state_dict(hnet.state_dict())
    settings = {"n_classes": [2, 2], "quiet": True}
    losses = train(hnet, batch, batch, CONFIG, **settings, **own).best.losses
    assert losses == pytest.approx(train(twin, batch, batch, CONFIG, **settings).best.losses)


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        (Y[:, None], nn.L1Loss(), r"`n_classes` is for class numbers and logits .*float32 \[64, 1"),
        ((Y > 0).long(), lambda out, _: out[..., 0], r"logits .* and outputs \[64, 1, 2\]"),
        ((Y > 0).long(), nn.CrossEntropyLoss(label_smoothing=0.1), "`label_smoothing` over all"),
    ],
    ids=["numbers", "shape", "smoothing"],
)
def test_n_classes_where_outputs_cannot_be_left_out(y, loss, message):
    shape = nn.Unflatten(1, (1, 2)) if "outputs" in message else nn.Identity()
    target = nn.Sequential(nn.Linear(3, 2), shape)
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(NAMES, dim=8))
    with pytest.raises(ValueError, match=message):
        train(hnet, [(X, y, 0)], [(X, y, TASK)], CONFIG, loss=loss, n_classes=[2, 1], quiet=True)


def test_examples_of_a_head_and_evaluations_take_a_data_loader():
    target = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(NAMES, dim=8), head=Ridge())
    loader = named((Y > 0).long())
    result = train(hnet, loader, loader, CONFIG, examples=loader, quiet=True)
    assert result.best.accuracy > 0.9
    assert evaluate(hnet, loader).accuracies == result.best.accuracies


def test_training_that_diverges_with_a_head_in_closed_form_says_so():
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(NAMES, dim=8), head=Ridge())
    batch = [(X, (Y > 0).long(), TASK)]
    config = TrainConfig(steps=1, lr=1e30, optimizer="sgd", schedule="constant", device="cpu")
    with pytest.raises(NonFiniteError, match=r"after step 1 the features .* task 'up'") as caught:
        train(hnet, batch, batch, config, examples=batch, quiet=True)
    assert (caught.value.step, caught.value.tasks) == (1, ("up",))


@pytest.mark.parametrize(
    "y", [(Y > 0).long(), nn.functional.one_hot((Y > 0).long()).float()], ids=["smoothed", "soft"]
)
def test_n_classes_that_restrict_nothing_change_nothing(y):
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    hnet = make(2)
    found = [evaluate(hnet, [(X, y, TASK)], loss=loss, n_classes=n) for n in (None, [2, 2])]
    assert found[0] == found[1]


def test_outputs_without_a_dimension_for_classes():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            return self.layer(x)[:, 0]

    hnet = HyperNetwork(Flat(), Sparse(), TaskEmbedding(NAMES, dim=8))
    result = train(hnet, [(X, Y, TASK)], [(X, Y, TASK)], CONFIG, quiet=True)
    assert result.best.score == "R²"
    with pytest.raises(ValueError, match=r"class numbers need logits \[n, classes\], got .* \[n\]"):
        evaluate(hnet, [(X, (Y > 0).long(), TASK)])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint8, torch.int16])
def test_class_numbers_may_be_of_any_integer_type(dtype):
    hnet, y = make(2), (Y > 0).long()
    found = [evaluate(hnet, [(X, labels, TASK)]) for labels in (y, y.to(dtype))]
    assert found[0] == found[1]
