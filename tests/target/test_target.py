from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from helpers.small_targets import Attention, Gain, Tied
from sparsehyper.layout import plan_layout
from sparsehyper.target.target import Target

TARGETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (5, 4)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 1, 2)
        ),
        (5, 2, 6, 6),
    ),
    "lstm": (lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), (5, 6, 4)),
    "gru": (lambda: nn.GRU(4, 3), (5, 6, 4)),
    "rnn": (lambda: nn.RNN(4, 3), (5, 6, 4)),
    "cell": (lambda: nn.LSTMCell(4, 3), (5, 4)),
    "attention": (lambda: Attention(4, 2), (5, 6, 4)),
    "attention, biases of key and value": (
        lambda: Attention(4, 2, add_bias_kv=True, batch_first=True),
        (5, 6, 4),
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0, batch_first=True),
        (5, 6, 4),
    ),
    "own parameter": (lambda: nn.Sequential(Gain(4), nn.PReLU()), (5, 4)),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3), "weight"),
        (5, 4),
    ),
    "parameter list": (lambda: nn.ParameterList([torch.randn(4)]), None),
}


def snapshot(module: nn.Module):
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "ids": [id(t) for t in (*module.parameters(), *module.buffers())],
        "flags": [p.requires_grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in module.modules()
        ],
        "types": [type(m) for m in module.modules()],
    }


def assert_same(one, two):
    states = one.pop("state"), two.pop("state")
    assert one == two
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def flat(out) -> torch.Tensor:
    """All tensors of a module's output as one vector."""
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(out)])


def unflatten(target: Target, theta: torch.Tensor) -> dict[str, torch.Tensor]:
    """Named views of θ."""
    pieces = theta.split([spec.numel for spec in target.layout])
    return {s.name: p.view(s.shape) for s, p in zip(target.layout, pieces, strict=True)}


def tensors(target: Target, theta: torch.Tensor):
    return unflatten(target, theta).values()


def rows(target: Target, task: int) -> list[torch.Tensor]:
    return target.statistics.row(target.module, task)


def statistics(target: Target, task: int) -> dict[str, torch.Tensor]:
    rows = target.statistics.row(target.module, task)
    return dict(zip(target.statistics.names, rows, strict=True))


def theta_at(target: Target, raw: torch.Tensor) -> torch.Tensor:
    return nn.utils.parameters_to_vector(target.unpack(raw))


def theta_of(target: Target) -> torch.Tensor:
    return theta_at(target, torch.randn(target.numel)).detach().requires_grad_()


@pytest.mark.parametrize("kind", [k for k, (_, shape) in TARGETS.items() if shape])
@pytest.mark.parametrize("training", [True, False])
def test_runs_any_module_at_any_parameters_and_leaves_it_as_it_was(kind, training):
    make, shape = TARGETS[kind]
    module = make().train(training)
    before = snapshot(module)
    target = Target(module).train(training)
    theta = theta_of(target)
    x = torch.randn(shape)

    copied = copy.deepcopy(module)
    with torch.no_grad():
        for name, value in unflatten(target, theta).items():
            copied.get_parameter(name).copy_(value)
    expected, out = copied(x), target(tensors(target, theta), 0, (x,), {})
    torch.testing.assert_close(flat(out), flat(expected))
    flat(expected).square().sum().backward()
    (grad,) = torch.autograd.grad(flat(out).square().sum(), theta)
    for name, value in unflatten(target, grad).items():
        torch.testing.assert_close(value, copied.get_parameter(name).grad, msg=name)
    assert_same(before, snapshot(module))


@pytest.mark.parametrize("kind", TARGETS)
def test_flatten_then_unflatten_is_the_identity(kind):
    module = TARGETS[kind][0]()
    target = Target(module, base="pretrained")
    tensors = unflatten(target, theta_at(target, torch.zeros(target.numel)))
    assert list(tensors) == [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        assert torch.equal(tensors[name], parameter), name


@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=6))
def test_a_layout_covers_theta_without_gap_or_overlap(shapes):
    layout = plan_layout(nn.ParameterList([torch.zeros(shape) for shape in shapes]))
    end = 0
    for spec, shape in zip(layout, shapes, strict=True):
        assert spec.offset == end
        assert spec.shape == tuple(shape)
        end += spec.numel
    assert end == sum(torch.zeros(shape).numel() for shape in shapes)


def test_a_tied_parameter_stands_once_and_stays_tied():
    module = Tied()
    target = Target(module)
    assert [(s.name, s.aliases) for s in target.layout] == [
        ("embedding.weight", ("output.weight",)),
        ("block.weight", ()),
        ("block.bias", ()),
    ]
    assert target.numel == 7 * 4 + 4 * 4 + 4
    theta, x = theta_of(target), torch.tensor([[1, 2]])
    named = unflatten(target, theta)
    hidden = named["embedding.weight"][x]
    for _ in range(2):
        hidden = hidden @ named["block.weight"].T + named["block.bias"]
    torch.testing.assert_close(
        target(tensors(target, theta), 0, (x,), {}), hidden @ named["embedding.weight"].T
    )
    plain = target.materialize(list(unflatten(target, theta).values()), rows(target, 0))
    assert plain.output.weight is plain.embedding.weight
    assert plain.again is plain.block


def test_frozen_parameters_are_left_as_they_are():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    target = Target(module, base="zeros")
    assert [s.name for s in target.layout] == ["1.weight", "1.bias"]
    x = torch.eye(3)
    theta = torch.cat([torch.eye(3).flatten(), torch.zeros(3)])
    assert torch.equal(target(tensors(target, theta), 0, (x,), {}), module[0](x))
    assert not any(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize(
    ("generate", "names"),
    [
        ("*", ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]),
        ("*.weight", ["0.weight", "1.weight", "2.weight"]),
        (["0.*", "2.bias"], ["0.weight", "0.bias", "2.bias"]),
        (["0.*", "*.bias"], ["0.weight", "0.bias", "1.bias", "2.bias"]),
        (lambda name, p: p.ndim == 2 and name > "1", ["1.weight", "2.weight"]),
    ],
)
def test_a_glob_several_globs_or_a_predicate_choose_what_is_generated(generate, names):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert [spec.name for spec in plan_layout(module, generate)] == names


@pytest.mark.parametrize(
    ("generate", "names"),
    [
        ("output.*", ["embedding.weight"]),
        ("embed*", ["embedding.weight"]),
        ("again.bias", ["block.bias"]),
        (["block.w*", "output.weight"], ["embedding.weight", "block.weight"]),
        (lambda name, _: name.startswith(("embed", "block.w")), ["embedding.weight", "block.w"]),
        (lambda name, _: not name.startswith("embed"), ["block."]),
        (lambda name, _: not name.startswith("output"), ["embedding.weight", "block."]),
    ],
)
def test_a_tied_parameter_is_chosen_by_a_glob_on_any_name_a_predicate_gets_the_first(
    generate, names
):
    found = [spec.name for spec in plan_layout(Tied(), generate)]
    assert all(any(name.startswith(each) for each in names) for name in found)
    assert all(any(name.startswith(each) for name in found) for each in names)


def test_an_unknown_pattern_is_told_every_name_of_a_tied_parameter():
    known = (
        r"embedding\.weight = output\.weight, block\.weight = again\.weight, block\.bias = again"
    )
    with pytest.raises(ValueError, match=known):
        plan_layout(Tied(), "head.*")
    with pytest.raises(ValueError, match=known):
        plan_layout(Tied(), lambda *_: False)


@pytest.mark.parametrize(("others", "trained"), [("shared", True), ("frozen", False)])
def test_the_others_are_shared_and_trained_or_frozen(others, trained):
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    target = Target(module, generate="1.*", others=others, base="zeros")
    assert {n: p.requires_grad for n, p in target.named_parameters()} == {
        "module.0.weight": trained,
        "module.0.bias": trained,
    }
    assert torch.equal(target.module[0].weight, module[0].weight)
    assert target.module[0].weight is not module[0].weight
    target(tensors(target, theta_of(target)), 0, (torch.randn(5, 3),), {}).sum().backward()
    assert (target.module[0].weight.grad is not None) is trained
    assert all(p.requires_grad for p in module.parameters())


def test_bases():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    zeros, learned, pretrained = (
        Target(module, base=b) for b in ("zeros", "learned", "pretrained")
    )
    start = torch.cat([torch.zeros(16), torch.ones(4), torch.zeros(4)])
    given = nn.utils.parameters_to_vector(module.parameters())
    for target, expected in ((zeros, start), (learned, start), (pretrained, given)):
        assert torch.equal(theta_at(target, torch.zeros(24)), expected)
    assert [n for n, _ in learned.named_parameters()] == ["base"]
    assert not [*zeros.parameters(), *pretrained.parameters()]


def test_only_what_cannot_be_derived_is_stored():
    module = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    size = {
        base: sum(v.numel() for v in Target(module, base=base).state_dict().values())
        for base in ("zeros", "learned", "pretrained")
    }
    assert size["zeros"] < 20
    assert size["learned"] == size["pretrained"] == size["zeros"] + 2 * 930


@pytest.mark.parametrize("base", ["zeros", "learned", "pretrained"])
def test_a_state_dict_restores_base_and_scale(base):
    def make(value: float) -> Target:
        return Target(nn.Sequential(Gain(3), nn.Linear(3, 3)), base=base, scale=value)

    one, two = make(0.7), make(1.0)
    one.moments[:, 0] = torch.tensor([5.0, 0.3])
    one.load_state_dict(one.state_dict())
    two.load_state_dict(one.state_dict())
    zero, unit = torch.zeros(15), torch.ones(15)
    scale = theta_at(two, unit) - theta_at(two, zero)
    assert scale[0].detach() == pytest.approx(0.3)
    for generated in (zero, unit):
        assert torch.equal(theta_at(one, generated), theta_at(two, generated))
    assert base != "zeros" or theta_at(two, zero)[0] == 5


def norms(tasks: int = 3, norm_stats: str = "per_task") -> tuple[nn.Module, Target]:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return module, Target(module, norm_stats=norm_stats, tasks=tasks)


def hidden(target: Target, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    named = unflatten(target, theta.detach())
    return nn.functional.linear(x, named["0.weight"], named["0.bias"])


def test_statistics_are_each_task_s_own():
    _, target = norms()
    theta, x = theta_of(target), torch.randn(50, 4)
    target(tensors(target, theta), 1, (x,), {})
    target(tensors(target, theta), 1, (x,), {})
    assert target.module[1].num_batches_tracked.tolist() == [0, 2, 0]
    untouched, seen = statistics(target, 0), statistics(target, 1)
    assert untouched["1.running_mean"].tolist() == [0, 0, 0]
    assert untouched["1.running_var"].tolist() == [1, 1, 1]
    h = hidden(target, theta, x)
    torch.testing.assert_close(seen["1.running_mean"], h.mean(0))
    torch.testing.assert_close(seen["1.running_var"], h.var(0))


def test_evaluation_normalises_by_the_task_s_statistics_and_keeps_them():
    _, target = norms()
    theta, x = theta_of(target), torch.randn(50, 4)
    for _ in range(200):
        target(tensors(target, theta), 1, (x,), {})
    trained = target(tensors(target, theta), 1, (x,), {})
    target.eval()
    before = {n: v.clone() for n, v in target.state_dict().items()}
    torch.testing.assert_close(
        target(tensors(target, theta), 1, (x,), {}), trained, atol=0.05, rtol=0.05
    )
    assert not torch.allclose(
        target(tensors(target, theta), 0, (x,), {}), trained, atol=0.05, rtol=0.05
    )
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_a_task_the_mean_statistics_are_used_and_kept():
    _, target = norms(tasks=2)
    theta, x = theta_of(target), torch.randn(50, 4)
    norm = target.module[1]
    norm.running_mean.copy_(torch.tensor([[1.0], [3.0]]))
    norm.running_var.copy_(torch.tensor([[4.0], [6.0]]))
    before = copy.deepcopy(target.state_dict())
    target(tensors(target, theta), None, (x,), {})
    out = target.eval()(tensors(target, theta), None, (x,), {})
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    named = unflatten(target, theta)
    expected = (hidden(target, theta, x) - 2) / (5 + 1e-5) ** 0.5
    torch.testing.assert_close(out, expected * named["1.weight"] + named["1.bias"])


def test_shared_statistics_are_those_of_all_batches():
    _, target = norms(norm_stats="shared")
    theta, x = theta_of(target), torch.randn(50, 4)
    for task in (0, 1):
        target(tensors(target, theta), task, (x,), {})
    norm = target.module[1]
    assert norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.running_mean, 0.19 * hidden(target, theta, x).mean(0))


def test_batch_statistics_are_used_in_evaluation_too():
    _, target = norms(norm_stats="batch")
    theta, x = theta_of(target), torch.randn(50, 4)
    assert not [n for n in target.state_dict() if "running" in n]
    trained = target(tensors(target, theta), 0, (x,), {})
    torch.testing.assert_close(target.eval()(tensors(target, theta), 0, (x,), {}), trained)
    plain = target.materialize(list(unflatten(target, theta).values()), rows(target, 0)).eval()
    torch.testing.assert_close(plain(x), trained)


def test_batch_statistics_of_an_instance_norm_are_those_of_each_sample():
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    target = Target(nn.Sequential(norm), norm_stats="batch").eval()
    theta, x = theta_of(target), torch.randn(5, 3, 7)
    expected = nn.functional.instance_norm(x, weight=theta[:3], bias=theta[3:])
    torch.testing.assert_close(target(tensors(target, theta), 0, (x,), {}), expected)


def test_batch_statistics_of_a_norm_that_is_not_pytorch_s_are_refused():
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("running_mean", torch.zeros(3))

    with pytest.raises(ValueError, match=r"'0.running_mean' belongs to a Norm"):
        Target(nn.Sequential(Norm()), norm_stats="batch")
    assert Target(nn.Sequential(Norm()), tasks=2).module[0].running_mean.shape == (2, 3)


def test_statistics_of_norms_without_them_and_other_buffers_are_left_alone():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    module.register_buffer("constant", torch.ones(2))
    target = Target(module, tasks=2)
    assert target.statistics.names == ()
    assert torch.equal(target.module.constant, module.constant)
    target.eval()(tensors(target, theta_of(target)), 0, (torch.randn(5, 4),), {})


def test_a_new_task_starts_from_the_mean_statistics():
    _, target = norms(tasks=2)
    norm = target.module[1]
    norm.running_mean.copy_(torch.arange(6.0).view(2, 3))
    norm.num_batches_tracked.copy_(torch.tensor([3, 5]))
    target.statistics.add_row(target.module)
    assert norm.running_mean[2].tolist() == [1.5, 2.5, 3.5]
    assert norm.num_batches_tracked.tolist() == [3, 5, 5]


def test_training_and_evaluation_reach_dropout():
    target = Target(nn.Sequential(nn.Linear(4, 500), nn.Dropout(0.5)))
    theta, x = theta_of(target), torch.randn(1, 4)
    dropped = (target.train()(tensors(target, theta), 0, (x,), {}) == 0).float().mean()
    assert dropped == pytest.approx(0.5, abs=0.1)
    assert not (target.eval()(tensors(target, theta), 0, (x,), {}) == 0).any()


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, fail=False):
        out = self.norm(self.lstm(x)[0][:, -1])
        if fail:
            raise RuntimeError("stop")
        return out


def test_an_exception_in_forward_leaves_nothing_behind():
    module = Failing()
    outside = snapshot(module)
    target = Target(module).eval()
    theta, x = theta_of(target), torch.randn(6, 5, 4)
    inside, out = snapshot(target), target(tensors(target, theta), 0, (x,), {})
    with pytest.raises(RuntimeError, match="stop"):
        target(tensors(target, theta), 0, (x,), {"fail": True})
    assert_same(inside, snapshot(target))
    assert_same(outside, snapshot(module))
    assert torch.equal(target(tensors(target, theta), 0, (x,), {}), out)
    copy.deepcopy(target)  # θ, whose autograd history cannot be copied, is not held


def test_hooks_of_the_module_are_called():
    seen = []
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda m, args, out: seen.append(out.shape))
    target = Target(module)
    target(tensors(target, theta_of(target)), 0, (torch.randn(2, 4),), {})
    assert seen == [(2, 3)]


@pytest.mark.parametrize("kind", [k for k, (_, shape) in TARGETS.items() if shape])
def test_a_materialised_module_is_an_ordinary_one(kind):
    make, shape = TARGETS[kind]
    module = make()
    target = Target(module)
    theta, x = theta_of(target), torch.randn(shape)
    target(tensors(target, theta), 0, (x,), {})
    target.eval()
    plain = target.materialize(list(unflatten(target, theta).values()), rows(target, 0))
    assert not plain.training
    assert [(n, type(m)) for n, m in plain.named_modules()] == [
        (n, type(m)) for n, m in module.named_modules()
    ]
    assert list(plain.state_dict()) == list(module.state_dict())
    assert all(p.requires_grad and p.is_leaf for p in plain.parameters())
    if kind != "weight norm":  # PyTorch refuses to pickle a parametrised module
        assert b"sparsehyper" not in pickle.dumps(plain)
    storages = {t.untyped_storage().data_ptr() for t in (theta, *target.state_dict().values())}
    for tensor in plain.state_dict().values():
        assert tensor.untyped_storage().data_ptr() not in storages

    fresh = make().eval()
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(flat(plain(x)), flat(fresh(x)))
    torch.testing.assert_close(flat(plain(x)), flat(target(tensors(target, theta), 0, (x,), {})))
    halves = {name: p.detach() / 2 for name, p in plain.named_parameters()}
    expected = functional_call(fresh, halves, (x,))
    assert torch.equal(flat(functional_call(plain, halves, (x,))), flat(expected))


def test_a_materialised_module_takes_the_task_s_statistics():
    _, target = norms()
    theta, x = theta_of(target), torch.randn(50, 4)
    target(tensors(target, theta), 2, (x,), {})
    plain = target.materialize(list(unflatten(target, theta).values()), rows(target, 2))
    assert torch.equal(plain[1].running_mean, statistics(target, 2)["1.running_mean"])
    assert plain[1].num_batches_tracked == 1
    plain(x)
    assert target.module[1].num_batches_tracked.tolist() == [0, 0, 1]


def test_dtypes_of_what_is_not_generated_are_kept():
    module = nn.Sequential(nn.Linear(3, 3).double(), nn.Linear(3, 3))
    module.register_buffer("table", torch.ones(2, dtype=torch.float16))
    target = Target(module, generate="0.*")
    assert target.dtype == torch.float64
    assert target.module[1].weight.dtype == torch.float32
    assert target.module.table.dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (nn.ReLU, {}, ValueError, "`target` has no trainable parameter"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), {}, ValueError, "`target` has no train"),
        (lambda: nn.Linear(2, 2), {"generate": "w"}, ValueError, "pattern 'w' matches .* weight"),
        (lambda: nn.Linear(2, 2), {"generate": ["*", "c*"]}, ValueError, "pattern 'c\\*' match"),
        (lambda: nn.Linear(2, 2), {"generate": []}, ValueError, "no parameter .*: weight, bias"),
        (lambda: nn.Linear(2, 2), {"generate": lambda n, p: False}, ValueError, "selects no"),
        (lambda: nn.Linear(2, 2), {"generate": 3}, TypeError, "a predicate, got 3"),
        (lambda: nn.LazyLinear(2), {}, ValueError, "'weight' of `target` has no shape yet; run"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            {},
            ValueError,
            r"one real dtype, got torch.float32 \('0.bias'\), torch.float64 \('1.bias'\)",
        ),
        (lambda: Gain(2).to(torch.complex64), {}, ValueError, "real dtype, got torch.complex64"),
        (lambda: nn.Linear(2, 2), {"others": "lost"}, ValueError, "`others` must .*; got 'lost'"),
        (lambda: nn.Linear(2, 2), {"base": "ones"}, ValueError, "`base` must be .*; got 'ones'"),
        (
            lambda: nn.Linear(2, 2),
            {"norm_stats": "none"},
            ValueError,
            "`norm_stats` must be one of 'per_task', 'shared', 'batch'; got 'none'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_refuses_what_it_cannot_generate(make, settings, error, message):
    with pytest.raises(error, match=message):
        Target(make(), **settings)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale * self.phase


def test_complex_parameters_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"complex64 \('phase'\).*view_as_complex"):
        Target(Complex())
    assert Target(Complex(), generate="scale").numel == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_modules_are_refused_with_what_to_do():
    scripted = torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3))
    for module in (scripted, nn.Sequential(nn.Linear(3, 3), scripted)):
        with pytest.raises(TypeError, match=r"'(1\.)?weight' .* ScriptModule's.*`generate`"):
            Target(module)
    assert Target(nn.Sequential(nn.Linear(3, 3), scripted), generate="0.*").numel == 12


class TiedByHand(nn.Module):
    """Embeddings that are the weights of the outputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 4, padding_idx=0)

    def forward(self, x):
        return F.linear(self.words(x).mean(1), self.words.weight)


@pytest.mark.parametrize("base", ["zeros", "learned", "residual"])
def test_nothing_depends_on_what_is_generated_for_padding(base):
    target = Target(TiedByHand().double(), base=base)
    raw = torch.randn(target.numel, dtype=torch.double, requires_grad=True)
    x = torch.tensor([[1, 2, 0], [3, 4, 5]])

    def out(raw):
        return target(target.unpack(raw), None, (x,), {}).tanh()

    assert (out(raw)[:, 0] == 0).all()
    assert torch.autograd.gradcheck(out, raw, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(out, raw)
    out(raw).sum().backward()
    assert (raw.grad[:4] == 0).all()
    if target.base is not None:
        assert (target.base.grad[:4] == 0).all()
