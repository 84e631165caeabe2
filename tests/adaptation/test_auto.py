"""The best means that the examples of a new task allow, and what is said about them."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from helpers.small_tasks import normed, plain, samples
from sparsehyper import HyperNetwork, Ridge, Sparse, TaskEmbedding, adapt_task, adapt_tasks
from sparsehyper.adaptation import METHODS, ways
from sparsehyper.adaptation.samples import TaskSamples, Unsuitable
from sparsehyper.adaptation.ways import WAYS, Start

LONG = 600.0  # seconds that suffice for every way


@pytest.fixture
def short(monkeypatch):
    """A third of the updates where a way updates a model, so that every way ends soon."""
    monkeypatch.setattr(ways, "_FEWEST_UPDATES", 50)


def accuracy(model, x, y):
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("module", [plain, normed])
def test_learns_a_task_and_says_how_well(make, module):
    hnet = make(module(), steps=30)
    before = {name: value.clone() for name, value in hnet.state_dict().items()}
    x, y = samples(99, 460)
    adapted = adapt_task(hnet, "new", (x[:60], y[:60]), seconds=LONG)
    assert hnet.task_names[4:] == ("new",)
    del before["notes"]
    for name, value in before.items():
        assert torch.equal(hnet.state_dict()[name][: len(value)], value), name
    found = accuracy(adapted.model, x[60:], y[60:])
    assert found > 0.8
    assert adapted.interval[0] <= found <= adapted.interval[1]
    assert adapted.interval[0] < adapted.accuracy < adapted.more[2] < adapted.more[4] < 1
    assert sum(way.weight for way in adapted.ways.values()) == pytest.approx(1)
    first = next(iter(adapted.ways))
    assert first in adapted.why
    assert adapted.warnings == ()


def test_the_model_is_an_ordinary_calibrated_one(make):
    x, y = samples(99, 260)
    model = adapt_task(make(), "new", (x[:60], y[:60])).model
    logits = model(x[60:])
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(200))
    assert nn.functional.cross_entropy(logits, y[60:]) < 0.7
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))
    exported = torch.export.export(model, (x[:5],)).module()
    torch.testing.assert_close(exported(x[:5]), model(x[:5]))


@pytest.mark.parametrize("method", METHODS[1:])
def test_one_way_alone(make, method):
    x, y = samples(99)
    adapted = adapt_task(make(normed()), "new", (x, y), method=method)
    assert list(adapted.ways) == [method]
    assert adapted.ways[method].weight == 1
    assert f" held out, {method.replace(', ', ' + ')} (100%) had a mean loss of " in adapted.why


@pytest.mark.usefixtures("short")
def test_one_example_a_class(make):
    x, y = samples(99, 3)
    hnet, random = make(steps=30), torch.get_rng_state()
    adapted = adapt_task(hnet, "new", (x, y), seconds=LONG)
    assert torch.equal(torch.get_rng_state(), random)
    assert adapted.warnings == ()
    assert "One example a class cannot tell" in adapted.why
    assert adapted.interval[1] - adapted.interval[0] > 0.5


def test_a_class_that_no_example_can_judge_counts_as_it_is_known(make):
    """The only example of the second class says nothing while it is held out."""
    y = torch.tensor([0, 0, 0, 0, 0, 1])
    adapted = adapt_task(
        make(steps=30), "new", (torch.zeros(6, 6), y), method="linear", seconds=LONG
    )
    assert accuracy(adapted.model, torch.zeros(6, 6), y) == pytest.approx(5 / 6)
    assert adapted.accuracy < 5 / 6
    x = 9.0 * y[:, None] + 0.1 * samples(99, 6)[0]  # no two are equal
    apart = adapt_task(make(steps=30), "new", (x, y), method="linear", seconds=LONG)
    assert accuracy(apart.model, x, y) == 1
    assert adapted.accuracy < apart.accuracy < 1


def test_known_tasks_tell_what_ways_are_worth_from_one_example_a_class(make):
    hnet = make(steps=30, head=Ridge())
    known = {f"known {i}": samples(i) for i in range(4)}
    plain = adapt_task(make(steps=30, head=Ridge()), "new", samples(99, 3))
    told = adapt_task(hnet, "new", samples(99, 3), known=known)
    assert {n: w.loss for n, w in told.ways.items()} != {n: w.loss for n, w in plain.ways.items()}


def test_samples_of_known_tasks_must_be_of_known_tasks(make):
    hnet = make()
    for given in (samples(99, 3), samples(99)):  # few of a class, and many
        with pytest.raises(KeyError, match="'unknown'"):
            adapt_task(hnet, "new", given, known={"unknown": samples(0)})
    with pytest.raises(TypeError, match="`known` must be samples of known tasks by name, got "):
        adapt_task(hnet, "new", samples(99), known=[samples(0)])
    assert len(hnet.task_names) == 4


def test_more_classes_than_the_target_has_outputs(make):
    x, y = samples(99, 100, classes=5)
    hnet = make()
    adapted = adapt_task(hnet, "new", (x, y))
    assert adapted.model(x).shape == (100, 5)
    assert accuracy(adapted.model, x, y) > 0.7
    assert any("the target has 3 outputs only" in warning for warning in adapted.warnings)
    with pytest.raises(ValueError, match="`method` 'embedding' does not apply: the target has 3"):
        adapt_task(hnet, "other", (x, y), method="embedding")
    assert hnet.task_names[4:] == ("new",)


def test_says_where_its_own_embedding_of_a_task_was_not_fitted(make):
    hnet, given = make(), samples(99, 100, classes=5)
    before = hnet.embedding("known 1").clone()
    for name, overwrite, left in (("known 1", True, "as it was"), ("new", False, "the mean of")):
        adapted = adapt_task(hnet, name, given, method="linear", overwrite=overwrite, seconds=LONG)
        (warning,) = adapted.warnings
        assert f"own embedding of the task was not fitted and is {left}" in warning
        assert warning.endswith("; use `model` instead: the target has 3 outputs only")
    assert torch.equal(hnet.embedding("known 1"), before)


@pytest.mark.usefixtures("short")
def test_normalisation_layers_are_tuned_where_there_are_some(make):
    x, y = samples(99)
    assert "norms" in adapt_task(make(normed()), "new", (x, y)).ways
    hnet = make()
    with pytest.raises(ValueError, match="'norms' does not apply: the target has no such layers"):
        adapt_task(hnet, "new", (x, y), method="norms")
    adapted = adapt_task(hnet, "new", (x, y), seconds=LONG)
    assert "norms" not in adapted.ways
    assert adapted.warnings == ()


def test_says_when_it_is_no_better_than_guessing(make):
    x, y = samples(99)
    adapted = adapt_task(make(), "new", (x, torch.randint(3, y.shape)))
    assert any("no better than guessing" in warning for warning in adapted.warnings)
    assert adapted.more == {}


def test_says_when_it_is_no_better_than_the_mean_of_numbers(make):
    x, _ = samples(99)
    warned = "is no less than the labels' variance"
    adapted = adapt_task(make(), "far", (x, 1e4 + x[:, :3]), method="all")
    assert any(warned in warning for warning in adapted.warnings)
    adapted = adapt_task(make(), "near", (x, x[:, :3]), method="linear")
    assert not any(warned in warning for warning in adapted.warnings)


def test_numbers_and_a_loss_of_ones_own(make):
    x, _ = samples(99, 200)
    y = x @ torch.randn(6, 3)

    def loss(outputs, y):
        return (outputs - y).square().mean(1)

    adapted = adapt_task(make(), "new", (x[:100], y[:100]), loss=loss)
    assert loss(adapted.model(x[100:]), y[100:]).mean() < 0.1 * y.var()
    assert adapted.accuracy is None


@pytest.mark.parametrize("method", ["linear", "embedding"])
def test_numbers_are_learned_by_their_squares(make, method):
    x, _ = samples(99)
    given = x, x[:, :3]
    a, b = [
        adapt_task(make(), "new", given, method=method, **settings)
        for settings in ({}, {"loss": nn.MSELoss()})
    ]
    assert torch.equal(a.model(x), b.model(x))
    assert (a.accuracy, a.interval, a.more) == (None, None, {})


def test_tasks_of_classes_beside_tasks_of_numbers(make):
    x, y = samples(99)
    tasks = {"classes": (x, y), "numbers": (x, x[:, :3])}
    found = adapt_tasks(make(), tasks, method="linear")
    assert accuracy(found["classes"].model, x, y) > 0.8
    assert found["classes"].accuracy is not None
    assert nn.functional.mse_loss(found["numbers"].model(x), x[:, :3]) < 0.2
    assert found["numbers"].accuracy is None


def test_numbers_of_another_shape_than_the_outputs_are_refused(make):
    x, y = samples(99)
    hnet = HyperNetwork(nn.Linear(6, 1), Sparse(), TaskEmbedding(["a", "b"], dim=8))
    message = r"labels of task 'new' that are .* got \[n\] for outputs \[n, {}"
    with pytest.raises(ValueError, match=message.format(r"1\]; give them as \[n, 1\]")):
        adapt_task(hnet, "new", (x, x[:, 0]))
    with pytest.raises(ValueError, match=message.format(r"3\]; class numbers must be integers")):
        adapt_task(make(), "new", (x, y.float()))
    with pytest.raises(ValueError, match="'known 0' must be class numbers, as those of the new"):
        adapt_task(make(), "new", (x[:9], y[:9]), known={"known 0": (x, y.float())})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "`method` must be one of 'auto', .*; got 'best'"),
        ({"seconds": 0}, "`seconds` must be greater than 0, got 0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"n_classes": 2}, "must be below its 2 classes, got 2"),
    ],
)
def test_bad_settings_are_refused(make, settings, message):
    hnet = make()
    with pytest.raises(ValueError, match=message):
        adapt_task(hnet, "new", samples(99), **settings)
    with pytest.raises(ValueError, match="'known 0'"):
        adapt_task(hnet, "known 0", samples(99))
    assert len(hnet.task_names) == 4


@pytest.mark.usefixtures("short")
def test_a_head_in_closed_form_takes_any_number_of_classes(make):
    hnet = make(head=Ridge())
    x, y = samples(99, 160, classes=5)
    adapted = adapt_task(hnet, "new", (x[:100], y[:100]), seconds=LONG)
    assert accuracy(adapted.model, x[100:], y[100:]) > 0.6
    assert adapted.warnings == ()
    assert hnet(x, task="new").shape == (160, 5)
    one = torch.stack([x[y == c][0] for c in range(5)])
    adapted = adapt_task(hnet, "from one", (one, torch.arange(5)))
    assert "One example a class cannot tell what" in adapted.why


def test_several_tasks_are_learned_each_as_if_it_were_the_only_new_one(make):
    given = {"a": samples(99, 12), "b": samples(98, 20, classes=5)}
    known = {"known 0": samples(0)}
    hnet, alone = make(steps=30, head=Ridge()), make(steps=30, head=Ridge())
    found = adapt_tasks(hnet, given, known=known, n_classes={"b": 6})
    assert hnet.task_names[4:] == tuple(found) == ("a", "b")
    assert found["b"].model(given["b"][0]).shape == (20, 6)
    adapted = adapt_task(alone, "b", given["b"], known=known, n_classes=6)
    assert adapted.ways.keys() == found["b"].ways.keys()
    for way, judged in adapted.ways.items():
        assert judged.loss == pytest.approx(found["b"].ways[way].loss)
    x = given["b"][0]
    torch.testing.assert_close(adapted.model(x), found["b"].model(x))
    torch.testing.assert_close(alone.embedding("b"), hnet.embedding("b"))


def test_an_error_in_one_task_leaves_all_unadded(make):
    hnet = make()
    with pytest.raises(ValueError, match="`method` 'embedding' does not apply: the target has 3"):
        adapt_tasks(
            hnet,
            {"a": samples(99), "b": samples(98, 100, classes=5)},
            method="embedding",
        )
    assert len(hnet.task_names) == 4


def test_a_known_task_is_learned_anew(make):
    hnet = make(head=Ridge())
    before = hnet.conditioner.weight.detach().clone()
    x, y = samples(99, 100, classes=5)
    known = {f"known {i}": samples(i) for i in range(4)}
    adapted = adapt_task(hnet, "known 1", (x, y), known=known, method="embedding", overwrite=True)
    assert accuracy(adapted.model, x, y) > 0.6
    assert len(hnet.task_names) == 4
    assert torch.equal(hnet.conditioner.weight[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(hnet.conditioner.weight[1], before[1])
    assert accuracy(lambda x: hnet.eval()(x, task="known 1"), x, y) > 0.6


@pytest.mark.parametrize("method", ["norms", "all", "scratch", "head"])
def test_a_task_learned_anew_leaves_nothing_of_its_batch_norms(make, method):
    hnet, (x, y) = make(normed(), head=Ridge() if method == "head" else None), samples(99, 20)
    found = []
    for value in (0.0, 100.0):
        anew = copy.deepcopy(hnet)
        anew.target.module[1].running_mean[1] = value
        found.append(adapt_task(anew, "known 1", (x, y), method=method, overwrite=True).model(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("method", ["auto", "norms", "all", "scratch"])
@pytest.mark.parametrize("running", [True, False])
def test_one_example_of_two_classes_and_a_batch_norm(method, running):
    """A way that would fit to one sample, or judge by one, is left out."""
    norm = nn.BatchNorm1d(12, track_running_stats=running)
    target = nn.Sequential(nn.Linear(6, 12), norm, nn.ReLU(), nn.Linear(12, 3))
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(["a", "b"], dim=16)).eval()
    x, y = samples(99, 2, classes=2)
    if method != "auto" and not running:
        with pytest.raises(ValueError, match=f"'{method}' does not apply: a batch norm cannot use"):
            adapt_task(hnet, "new", (x, y), method=method)
        return
    adapted = adapt_task(hnet, "new", (x, y), method=method)
    assert adapted.model(x).shape == (2, 2)
    assert hnet(x, task="new").isfinite().all()
    if method == "auto":
        assert not {"embedding", "embedding, all"} & {*adapted.ways}
        assert any(w.startswith("embedding does not apply: a batch") for w in adapted.warnings)


@pytest.mark.parametrize("method", ["linear", "scratch"])
def test_examples_given_several_times_tell_no_more_than_once(make, method):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 6, generator=rng), torch.arange(20) % 2
    once = adapt_task(make(), "new", (x, y), method=method)
    several = adapt_task(make(), "new", (x.repeat(10, 1), y.repeat(10)), method=method)
    assert several.interval[0] < 0.5
    assert several.accuracy < 0.75
    width, expected = (a.interval[1] - a.interval[0] for a in (several, once))
    assert width == pytest.approx(expected, rel=0.25)
    (warning,) = (
        w for w in several.warnings if w.startswith("180 of 200 examples have the inputs")
    )
    assert warning not in once.warnings


def test_one_sample_and_inputs_that_are_one_number(make):
    hnet = make(steps=5)
    x, _ = samples(9)
    with pytest.raises(ValueError, match="task 'one' needs at least 2 samples, of which some are"):
        adapt_task(hnet, "one", (x[:1], torch.zeros(1, 3)), loss=nn.MSELoss(reduction="none"))
    scalars = make(Scalars())
    adapted = adapt_task(scalars, "new", (torch.linspace(-1, 1, 40), torch.arange(40) // 20))
    assert "linear" not in adapted.ways
    with pytest.raises(ValueError, match=r"'linear' does not apply: its inputs are not one tensor"):
        adapt_task(
            scalars, "other", (torch.linspace(-1, 1, 40), torch.arange(40) // 20), method="linear"
        )


@pytest.mark.parametrize("method", ["linear", "head"])
def test_labels_of_another_precision_are_as_good(make, method):
    x, _ = samples(99)
    y = x[:, :3] - 1
    loss = lambda out, y: (out - y).square()  # noqa: E731 - MSELoss cannot do it in PyTorch 2.10
    for given in (y, y.double()):
        adapted = adapt_task(make(), "new", (x, given), method=method, loss=loss)
        assert adapted.model(x).dtype == torch.float32
        assert adapted.ways[method].loss < 2


@pytest.mark.parametrize(("method", "head"), [("linear", Ridge()), ("head", None)])
def test_a_hypernetwork_in_bfloat16(make, head, method):
    hnet = make(head=head).bfloat16()
    x, y = samples(99)
    x = x.bfloat16()
    adapted = adapt_task(hnet, "new", (x, y), method=method)
    assert {p.dtype for p in adapted.model.parameters()} == {torch.bfloat16}
    if method == "linear":
        assert accuracy(adapted.model, x, y) > 0.8
    assert hnet.embedding("new").dtype == torch.bfloat16


class Frozen(nn.Module):
    """A frozen first layer, a batch norm and a last layer whose bias alone is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.last = nn.Linear(12, 3)
        nn.init.constant_(self.attention.out_proj.bias, 3.0)
        nn.init.constant_(self.last.bias, 2.0)
        with torch.no_grad():
            self.norm.running_mean.fill_(5.0)

    def forward(self, x):
        x = self.norm(self.first(x))[:, None]
        return self.last(x[:, 0] + self.attention(x, x, x, need_weights=False)[0][:, 0])


def test_from_scratch_what_is_frozen_stays_as_it_is(make, monkeypatch):
    monkeypatch.setattr("sparsehyper.adaptation.ways._tuned", lambda _, model, *__: model)
    torch.manual_seed(1)
    module = Frozen()
    generate = ["last.weight", "attention.in_proj_weight"]
    hnet = make(copy.deepcopy(module), generate=generate, others="frozen", norm_stats="shared")
    task = TaskSamples.of("new", samples(99, 20), torch.device("cpu"), n_classes=3)
    start, rows = Start(hnet, (0, 1, 2, 3), task), torch.arange(20)
    before, found = start.average_model(rows), WAYS["scratch"](start, rows, 0, 0.0)
    assert {n for n, p in found.named_parameters() if p.requires_grad} == set(generate)
    after = found.state_dict()
    changed = {n for n, v in before.state_dict().items() if not torch.equal(after[n], v)}
    assert changed == set(generate)


class NanToZero(nn.Sequential):
    def __init__(self):
        super().__init__(*plain())

    def forward(self, x):
        return super().forward(x.nan_to_num(0))


def with_one(tensor, value):
    changed = tensor.clone()
    changed[7, 1] = value
    return changed


@pytest.mark.parametrize("head", [None, Ridge()])
def test_an_input_that_is_not_finite_is_an_error(make, head):
    x, y = samples(99, 1200)
    hnet = make(normed(), head=head)
    message = "inputs of task 'new' must be finite, got NaN or infinity in 1 of 1200 samples"
    with pytest.raises(ValueError, match=message):
        adapt_task(hnet, "new", (with_one(x, torch.nan), y))
    assert len(hnet.task_names) == 4


class Masked(nn.Sequential):
    """Classes that a mask of -inf does not allow."""

    def __init__(self):
        super().__init__(*plain())

    def forward(self, x, mask):
        return super().forward(x) + mask


def test_inputs_may_be_infinite_where_outputs_are_numbers(make):
    (x, y), mask = samples(99, classes=2), torch.zeros(60, 3)
    mask[:, 2] = -torch.inf
    adapted = adapt_task(make(Masked()), "new", ((x, mask), y), n_classes=3)
    assert float((adapted.model(x, mask).argmax(1) == y).float().mean()) > 0.6


def test_ways_that_no_time_was_left_for_are_told_together(make):
    adapted = adapt_task(make(), "new", samples(99), seconds=1e-9)
    told = [warning for warning in adapted.warnings if "to try" in warning]
    assert len(told) == 1
    assert re.match("`seconds` did not suffice to try 'head', .*'scratch'; give more$", told[0])
    assert list(adapted.ways) == ["linear"]


def test_a_target_may_take_inputs_that_are_not_finite(make):
    x, y = samples(99)
    missing = with_one(x, torch.nan)
    adapted = adapt_task(make(NanToZero()), "new", (missing, y))
    assert accuracy(adapted.model, missing, y) > 0.6
    assert any("linear does not apply: the loss" in warning for warning in adapted.warnings)


@pytest.mark.parametrize("method", METHODS)
def test_a_label_that_is_not_finite_is_an_error(make, method):
    x, _ = samples(99)
    y = with_one(x[:, :3], torch.inf)
    hnet = make(normed())
    with pytest.raises(ValueError, match=r"labels of task 'new' must be finite, got .* 1 of 60"):
        adapt_task(hnet, "new", (x, y), method=method)
    message = "(no way to learn 'new' applies, as|`method`) .*: the loss of task 'new' is .*; look"
    with pytest.raises(ValueError, match=message):
        adapt_task(hnet, "new", (x, y), method=method, loss=nn.MSELoss(), seconds=0.1)
    assert len(hnet.task_names) == 4


def test_a_loss_may_leave_out_labels_that_are_not_numbers(make):
    x, _ = samples(99)

    def loss(outputs, y):
        return torch.where(y.isnan(), 0, (outputs - y.nan_to_num()).square())

    y = with_one(x[:, :3], torch.nan)
    adapted = adapt_task(make(), "new", (x, y), loss=loss)
    assert adapted.model(x).isfinite().all()
    assert loss(adapted.model(x), y).mean() < 0.5


def test_a_way_whose_outputs_a_loss_is_not_defined_for_is_left_out(make):
    x, _ = samples(99)
    y = x[:, :3].abs()

    def loss(outputs, y):  # of outputs above -1 alone
        return (outputs.log1p() - y.log1p()).square()

    adapted = adapt_task(make(), "new", (10 * x, y), loss=loss)
    assert any("is nan" in warning for warning in adapted.warnings)
    assert 0 < len(adapted.ways) < 6
    assert loss(adapted.model(10 * x), y).mean().isfinite()


def test_what_cannot_be_fitted_to_all_examples_has_the_model_of_a_part(make, monkeypatch):
    linear = WAYS["linear"]

    def way(start, rows, seed, deadline):
        if len(rows) in (30, 60):  # halves, of which the rate of learning is told, and all
            raise Unsuitable("the loss is nan")
        return linear(start, rows, seed, deadline)

    monkeypatch.setitem(WAYS, "norms", way)
    adapted = adapt_task(make(normed()), "new", samples(99), method="norms")
    assert adapted.model(samples(99)[0]).shape == (60, 3)
    assert any("norms could not be fitted to all examples" in w for w in adapted.warnings)
    assert 1 - (1 - adapted.accuracy) * 2**-0.25 > adapted.more[2] > adapted.accuracy


class Scalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.layers(x.reshape(len(x), -1)[:, :1])
