"""Heads in closed form: what they predict, how they train, and how they are kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.small_tasks import samples
from sparsehyper import (
    HyperNetwork,
    Prototypes,
    Ridge,
    Sparse,
    TaskEmbedding,
    average_predictions,
    fit_embedding,
)
from sparsehyper.heads import Head, SolvedHead, ends_in_linear, head_from_config

NAMES = ["a", "b", "c"]
KINDS = [Ridge(), Prototypes()]


def target(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, outputs))


def made(head: Head, outputs: int = 3) -> HyperNetwork:
    return HyperNetwork(
        target(outputs), Sparse(), TaskEmbedding(NAMES, dim=8), base="residual", head=head
    )


def solved(head: Head) -> HyperNetwork:
    hnet = made(head)
    for i, name in enumerate(NAMES):
        hnet.solve_head(name, samples(i))
    return hnet.eval()


@pytest.mark.parametrize("head", KINDS)
def test_nothing_of_the_last_layer_is_generated(head: Head) -> None:
    hnet = made(head)
    assert {spec.name.split(".")[0] for spec in hnet.target.layout} == {"0", "1"}
    assert "3.weight" not in hnet.generate("a")


def test_ridge_minimises_squares_of_features_and_one_hot_classes() -> None:
    hnet = solved(Ridge()).double()
    x, y = samples(1)
    hnet.solve_head("b", (x.double(), y))
    assert hnet.head is not None
    scale, penalty = hnet.head.log_scale.exp(), hnet.head.log_penalty.exp()
    phi = hnet.features(x.double(), task="b").detach() / 12**0.5
    weight = (hnet.head.weight[1] / scale * 12**0.5).detach().requires_grad_()
    bias = (hnet.head.bias[1] / scale).detach().requires_grad_()
    fitted = phi @ weight.T + bias
    loss = (fitted - F.one_hot(y, 3)).square().sum() + penalty * weight.square().sum()
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert gradient.abs().max() < 1e-8
    torch.testing.assert_close(hnet(x.double(), task="b"), scale * fitted)


def test_prototypes_choose_the_class_of_the_nearest_mean() -> None:
    hnet = solved(Prototypes())
    x, y = samples(1)
    phi = hnet.features(x, task="b")
    means = torch.stack([phi[y == c].mean(0) for c in range(3)])
    distances = torch.cdist(phi, means).square() / 12**0.5
    expected = (-distances).log_softmax(1)
    torch.testing.assert_close(hnet(x, task="b").log_softmax(1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", KINDS)
def test_a_sample_is_predicted_by_the_head_of_the_others_of_its_task(head: Head) -> None:
    hnet = solved(head)
    parts = [samples(i, 40) for i in (0, 2)]
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    task = torch.tensor([0, 2]).repeat_interleave(40)
    mixed = torch.randperm(80)
    found = hnet(x[mixed], task=task[mixed], solve_for=y[mixed])[mixed.argsort()]
    for start, name in ((0, "a"), (40, "c")):
        own = slice(start, start + 40)
        one = hnet(x[own], task=name, solve_for=y[own])
        torch.testing.assert_close(found[own], one)
        for i in (0, 7):
            others = torch.arange(40) != i
            hnet.solve_head(name, (x[own][others], y[own][others]))
            expected = hnet(x[own][i : i + 1], task=name)[0]
            torch.testing.assert_close(one[i].softmax(0), expected.softmax(0))


@pytest.mark.parametrize("head", KINDS)
def test_a_sample_without_another_of_its_class_has_zeros_and_no_gradient(head: Head) -> None:
    hnet = made(head).eval()
    x, y = samples(0, 12)
    y = torch.tensor([2] + [0, 1] * 5 + [0])
    out = hnet(x, task="a", solve_for=y)
    assert (out[0] == 0).all()
    assert (out[1:].isfinite()).all()
    (gradient,) = torch.autograd.grad(out[0].sum(), hnet.task_embedding.weight)
    assert not gradient.any()


@pytest.mark.parametrize("head", KINDS)
def test_training_by_left_out_samples_learns_features_for_new_tasks(head: Head) -> None:
    torch.manual_seed(0)
    hnet = made(head, outputs=2)
    direction = torch.randn(6)

    def task_of(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Near a plane or not, which is not linear; the order of the classes changes."""
        x = torch.randn(80, 6, generator=torch.Generator().manual_seed(seed))
        return x, ((x @ direction).abs() > 1.5).long() ^ (seed % 2)

    def accuracy_on_a_new_task() -> float:
        x, y = task_of(1001)
        hnet.solve_head("c", (x[:40], y[:40]))
        with torch.no_grad():
            return (hnet.eval()(x[40:], task="c").argmax(1) == y[40:]).float().mean().item()

    before = accuracy_on_a_new_task()
    optimizer = torch.optim.Adam(hnet.train().parameters(), 1e-2)
    for step in range(200):
        x, y = task_of(step)
        loss = F.cross_entropy(hnet(x, task=step % 3, solve_for=y), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy_on_a_new_task() > max(before + 0.1, 0.7)


@pytest.mark.parametrize("head", KINDS)
def test_an_ordinary_model_has_the_head(head: Head) -> None:
    hnet = solved(head)
    x, _ = samples(5)
    model = hnet.materialize("c")
    assert isinstance(model[3], nn.Linear)
    torch.testing.assert_close(model(x), hnet(x, task="c"))
    assert not [key for key in model.state_dict() if "head" in key]


def test_an_embedding_gives_features() -> None:
    hnet = solved(Ridge())
    x, _ = samples(0)
    z = hnet.embedding("b")
    torch.testing.assert_close(hnet(x, task=z), hnet.features(x, task=z))
    torch.testing.assert_close(hnet.materialize(z)(x), hnet.features(x, task=z))
    torch.testing.assert_close(hnet.materialize(z, head="b")(x), hnet(x, task="b"))
    with pytest.raises(KeyError, match="unknown `task` 'd'; the tasks are: 'a', 'b', 'c'"):
        hnet.materialize(z, head="d")


def test_prototypes_far_from_zero_keep_their_logits_in_bfloat16() -> None:
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(5, 128, generator=rng)
    y = torch.arange(200) % 5
    features = 10 + means[y] + 0.5 * torch.randn(200, 128, generator=rng)
    head = SolvedHead(Prototypes(), nn.Linear(128, 5), 1)
    weight, bias = (part.bfloat16() for part in head.solve(features, y))
    found = F.linear(features.bfloat16(), weight, bias).float()
    exact = F.linear(features, *head.solve(features, y))
    errors = (found - found.mean(1, keepdim=True)) - (exact - exact.mean(1, keepdim=True))
    assert errors.abs().max() < 0.1 * exact.std()
    assert head.leave_one_out(features, y).abs().max() < 10 * exact.std()


def test_prototypes_of_large_features_in_float16() -> None:
    """Their sums and squares are beyond what it can hold."""
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    x, y = 30 * torch.randn(6000, 8), torch.arange(6000) % 3
    x[:, 0] += 100 * y
    shares = []
    for dtype in (torch.float32, torch.float16):
        hnet = HyperNetwork(
            net, Sparse(), TaskEmbedding(2, 8), base="pretrained", head=Prototypes()
        )
        hnet = hnet.to(dtype).eval()
        hnet.solve_head(0, (x.to(dtype), y))
        with torch.no_grad():
            shares.append(float((hnet(x.to(dtype), task=0).argmax(1) == y).float().mean()))
    assert shares[0] > 0.8
    assert shares[1] == pytest.approx(shares[0], abs=0.01)


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("scale", [1, 100])
def test_the_logit_of_a_class_without_an_example_is_constant(head: Head, scale: float) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    hnet = HyperNetwork(net, Sparse(), TaskEmbedding(2, 8), base="pretrained", head=head).eval()
    hnet.solve_head(0, (scale * torch.randn(6, 64), torch.arange(6) % 3))
    assert (hnet(scale * torch.randn(200, 64), task=0)[:, 3:] == -1e4).all()


@pytest.mark.parametrize("head", KINDS)
def test_a_mixed_batch_of_more_classes_than_outputs(head: Head) -> None:
    hnet = made(head, outputs=2)
    (x, y), (x3, y3) = samples(0, classes=2), samples(1, classes=3)
    ids = torch.arange(2).repeat_interleave(60)
    out = hnet(torch.cat([x, x3]), task=ids, solve_for=torch.cat([y, y3]))
    assert out.shape == (120, 3)
    assert (out[60:].argmax(1) == y3).float().mean() > 0.5


def test_classes_without_an_example_keep_their_outputs() -> None:
    hnet = solved(Ridge())
    x, y = samples(3)
    fit_embedding(hnet, "d", (x, y), n_classes=6, steps=2)
    assert hnet(x, task="d").shape == (60, 6)
    hnet.solve_head("d", (x, y), n_classes=8)
    assert hnet(x, task="d").shape == (60, 8)


def test_the_best_restart_is_judged_by_the_head_of_the_task_s_own_samples() -> None:
    hnet = solved(Ridge())
    (x, y), (held_x, held_y) = samples(3), samples(3, count=9)
    one = torch.tensor([int((held_y == c).nonzero()[0]) for c in range(3)])
    validation = (held_x[one], held_y[one])  # one of each class, which no other can predict
    fit = fit_embedding(hnet, "d", (x, y), validation=validation, restarts=3, steps=5)
    assert len(set(fit.losses)) == 3
    expected = F.cross_entropy(hnet(validation[0], task="d"), validation[1])
    torch.testing.assert_close(torch.tensor(fit.loss), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="`hnet` has a `head` in closed form, which is solved for"):
        average_predictions(hnet, fit, x)


def test_a_new_task_may_have_more_classes_than_the_target_has_outputs(tmp_path) -> None:
    hnet = solved(Ridge())
    x, _ = samples(0)
    before = hnet(x, task="a")
    hnet.add_task("many")
    hnet.solve_head("many", samples(4, classes=5))
    x5, y5 = samples(4, classes=5)
    assert (hnet(x5, task="many").argmax(1) == y5).float().mean() > 0.6
    torch.testing.assert_close(hnet(x, task="a")[:, :3], before)
    assert (hnet(x, task="a").argmax(1) < 3).all()
    hnet.save(tmp_path / "saved")
    loaded = HyperNetwork.load(tmp_path / "saved", target()).eval()
    torch.testing.assert_close(loaded(x5, task="many"), hnet(x5, task="many"))
    fresh = made(Ridge()).eval()
    three = copy.deepcopy(fresh.state_dict())
    fresh.load_state_dict(hnet.state_dict())
    torch.testing.assert_close(fresh(x5, task="many"), hnet(x5, task="many"))
    fresh.load_state_dict(three)
    assert fresh(x, task="a").shape[1] == 3


def test_heads_follow_their_tasks() -> None:
    hnet = solved(Ridge())
    x, _ = samples(0)
    expected = hnet(x, task="c")
    hnet.remove_task("b")
    torch.testing.assert_close(hnet(x, task="c"), expected)
    hnet.rename_task("c", "d")
    ids = torch.tensor([1, 0]).repeat(30)
    torch.testing.assert_close(hnet(x, task=ids)[::2], expected[::2])


def test_numbers_are_predicted_by_ridge() -> None:
    hnet = made(Ridge(targets="numbers"), outputs=2).eval()
    x, _ = samples(0, 200)
    y = torch.stack([x[:, 0], x[:, 1] - x[:, 2]], 1)
    hnet.solve_head("a", (x[:100], y[:100]))
    error = (hnet(x[100:], task="a") - y[100:]).square().mean()
    assert error < 0.5 * y[100:].var()
    left_out = hnet(x[:100], task="a", solve_for=y[:100])
    assert left_out.shape == (100, 2)
    with pytest.raises(ValueError, match=r"shape \[n, 2\], .* got \[100\]"):
        hnet(x[:100], task="a", solve_for=y[:100, 0])


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("count", [3, 60])  # as many samples as outputs, and more
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.bool])
def test_class_numbers_of_any_integer_type(head: Head, count: int, dtype: torch.dtype) -> None:
    hnet = made(head).eval()
    x, y = samples(0)
    x, y = x[:count], (y[:count] > 0).long()
    hnet.solve_head("a", (x, y))
    assert hnet.head is not None
    weight = hnet.head.weight[0].clone()
    hnet.solve_head("a", (x, y.to(dtype)))
    torch.testing.assert_close(hnet.head.weight[0], weight)
    each = torch.arange(count) % 3
    for task in ("a", each):
        expected = hnet(x, task=task, solve_for=y)
        torch.testing.assert_close(hnet(x, task=task, solve_for=y.to(dtype)), expected)


@pytest.mark.parametrize("head", KINDS)
def test_labels_that_are_no_class_numbers_are_refused(head: Head) -> None:
    hnet = made(head).eval()
    x, y = samples(0)
    message = "^labels of a head of classes must be class numbers"
    for wrong, found in (
        (y + 0.9, r", a tensor of integers \[60\], .*float32; for numbers use `Ridge\(targets='n"),
        (y[:, None], r", .*, got shape \[60, 1\]"),
        (y - 1, " from 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message + found):
            hnet.solve_head("a", (x, wrong))
        for task in ("a", torch.arange(60) % 3):
            with pytest.raises(ValueError, match=message + found):
                hnet(x, task=task, solve_for=wrong)
    assert hnet.head is not None
    assert not hnet.head.weight.any()


def test_a_head_of_what_is_not_finite_is_not_kept() -> None:
    hnet = made(Ridge(targets="numbers")).eval()
    x, _ = samples(0)
    bad_x, bad_y = x.clone(), x[:, :3].clone()
    bad_x[4, 1], bad_y[7, 2] = torch.nan, torch.inf
    for examples, what in (((bad_x, x[:, :3]), "features"), ((x, bad_y), "labels")):
        message = f"{what} of the `examples` of task 'a' must be finite, .* for 1 of 60"
        with pytest.raises(ValueError, match=message):
            hnet.solve_head("a", examples)
        with pytest.raises(ValueError, match=message):
            hnet.fit_head_prior({"b": (x, x[:, :3]), "a": examples})
    assert hnet.head is not None
    assert not hnet.head.weight.any()
    assert not hnet.head.prior_noise.any()


def test_a_prior_of_heads_helps_a_new_task_with_few_rows(tmp_path) -> None:
    torch.manual_seed(0)
    names = [f"site{i}" for i in range(12)]
    head = Ridge(targets="numbers")
    hnet = HyperNetwork(target(1), Sparse(), TaskEmbedding(names, 8), base="residual", head=head)
    hnet.eval()
    common = torch.randn(6)

    def site(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(rows, 6)
        own = common + 0.2 * torch.randn(6)
        return x, torch.sin(x @ own)[:, None] + 3

    hnet.add_task("new")
    x, y = site(204)

    def error() -> float:
        hnet.solve_head("new", (x[:4], y[:4]))
        with torch.no_grad():
            return float((hnet(x[4:], task="new") - y[4:]).square().mean())

    before = error()
    hnet.fit_head_prior({name: site(60) for name in names})
    assert error() < 0.8 * before
    hnet.save(tmp_path / "saved")
    loaded = HyperNetwork.load(tmp_path / "saved", target(1)).eval()
    loaded.solve_head("new", (x[:4], y[:4]))
    torch.testing.assert_close(loaded(x, task="new"), hnet(x, task="new"))


def test_a_prior_is_of_numbers_and_of_several_tasks() -> None:
    with pytest.raises(ValueError, match="needs `Ridge"):
        made(Ridge()).fit_head_prior({"a": samples(0), "b": samples(1)})
    one = made(Ridge(targets="numbers"))
    with pytest.raises(ValueError, match=r"at least 2 tasks, got .* and 1"):
        one.fit_head_prior({"a": (samples(0)[0], torch.randn(60, 3))})


@pytest.mark.parametrize("head", [Ridge(), Ridge("fc", "numbers"), Prototypes("fc")])
def test_a_head_is_described_by_its_configuration(head: Head) -> None:
    assert head_from_config(head.to_config()) == head


class LastDeclaredFirst(nn.Module):
    """The last layer is declared first, and the output is not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.body = nn.Linear(5, 3), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).relu())


def test_the_layer_can_be_named() -> None:
    hnet = HyperNetwork(LastDeclaredFirst(), Sparse(), TaskEmbedding(NAMES, 8), head=Ridge("fc"))
    assert hnet.features(torch.randn(4, 6), task=0).shape == (4, 5)


def test_what_cannot_have_a_head_is_an_error() -> None:
    cut = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.AvgPool1d(2))
    hnet = HyperNetwork(cut, Sparse(), TaskEmbedding(NAMES, 8), head=Ridge())
    with pytest.raises(ValueError, match=r"5 features, \[n, 5\], got \[4, 2\]"):
        hnet(torch.randn(4, 6), task=0)
    with pytest.raises(ValueError, match=r"'nothing'.*'fc', 'body'"):
        HyperNetwork(LastDeclaredFirst(), Sparse(), TaskEmbedding(NAMES, 8), head=Ridge("nothing"))
    with pytest.raises(ValueError, match="inside the target, to replace it; it has none"):
        HyperNetwork(nn.Linear(3, 2), Sparse(), TaskEmbedding(NAMES, 8), head=Ridge())
    with pytest.raises(TypeError, match="`head` must be a head such as Ridge"):
        HyperNetwork(target(), Sparse(), TaskEmbedding(NAMES, 8), head="ridge")  # type: ignore[arg-type]
    plain = HyperNetwork(target(), Sparse(), TaskEmbedding(NAMES, 8))
    x, y = samples(0)
    with pytest.raises(ValueError, match="`solve_for` is for a hypernetwork with a `head`"):
        plain(x, task=0, solve_for=y)
    with pytest.raises(ValueError, match="needs a hypernetwork with a `head`"):
        plain.solve_head("a", (x, y))
    with pytest.raises(ValueError, match=r"`targets` must be one of .*; got 'words'"):
        Ridge(targets="words")
    headed = made(Ridge())
    with pytest.raises(ValueError, match="must hold at least one"):
        headed.solve_head("a", (x[:0], y[:0]))
    with pytest.raises(KeyError, match=r"unknown `task` .*z"):
        headed.solve_head("z", (x, y))


def test_heads_that_are_not_solved_yet_guess() -> None:
    head = SolvedHead(Ridge(), nn.Linear(4, 3), 2)
    assert not head(torch.randn(5, 4), 1).any()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), True),
        (LastDeclaredFirst(), False),
        (nn.Linear(6, 3), False),
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), False),
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3), nn.Softmax(1)), False),
        (nn.Sequential(nn.Conv1d(1, 3, 6), nn.Flatten()), False),
    ],
)
def test_a_target_ends_in_a_linear_layer_or_not(module: nn.Module, expected: bool) -> None:
    x = torch.randn(4, 1, 6) if "Conv1d" in repr(module) else torch.randn(4, 6)
    assert ends_in_linear(module, x) is expected
