from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from sparsehyper import (
    Chunked,
    Dense,
    HyperNetwork,
    InputEncoder,
    Ridge,
    Sparse,
    TaskEmbedding,
    TaskFeatures,
)

TASKS = ["shoes", "bags", "hats"]
GENERATORS = [
    Sparse(),
    Sparse(activation="prelu", topology="local", bias=True),
    Chunked(7),
    Dense(),
]


def make(
    target: nn.Module | None = None, generator=None, tasks=TASKS, dim: int = 8, **settings
) -> HyperNetwork:
    target = target or nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    return HyperNetwork(target, generator or Sparse(), TaskEmbedding(tasks, dim), **settings)


def normed_target(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 2)
    )


class Nested(nn.Module):
    """A dict with a tuple, from a positional and a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, *, pair, factor=1.0):
        h = self.linear(x) * factor
        return {"sum": h + pair["left"], "both": (h, h * pair["right"]), "nothing": None}


# --- the equation ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["zeros", "learned", "pretrained"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_the_equation(generator, base):
    target = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    hnet = make(target, generator, base=base, scale=0.5)
    x, z = torch.randn(5, 4), hnet.conditioner.weight[1]
    normalised = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()
    sizes = [24, 6, 6, 6, 12, 2]
    means, stds = hnet.target.moments.repeat_interleave(torch.tensor(sizes), 1)
    base_vector = means if hnet.target.base is None else hnet.target.base
    parts = (base_vector + stds * hnet.generator(normalised[None])[0]).split(sizes)
    h = F.layer_norm(F.linear(x, parts[0].view(6, 4), parts[1]), [6], parts[2], parts[3])
    torch.testing.assert_close(hnet(x, task="bags"), F.linear(h, parts[4].view(2, 6), parts[5]))


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_path_to_the_generator_normalises_the_embedding(generator):
    hnet = make(generator=generator)
    x, ids = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    z = torch.randn(8)

    def outputs() -> list[torch.Tensor]:
        mean = hnet.conditioner.weight.mean(0)
        return [
            hnet(x, task=1),
            hnet(x, task="hats"),
            hnet(x, task=torch.tensor(2)),
            hnet(x, task=ids),
            hnet(x, task=factor * z),
            hnet(x, task=mean),
            hnet.generate("bags")["0.weight"],
            hnet.generate(factor * z)["0.weight"],
            hnet.materialize(0)(x),
            hnet.materialize(factor * z)(x),
            hnet.materialize("new")(x),
            hnet(x, task="new"),
        ]

    factor = 1.0
    hnet.add_task("new")
    before = outputs()
    factor = 10.0
    with torch.no_grad():
        hnet.conditioner.weight.mul_(10).add_(3)
    for one, ten in zip(before, outputs(), strict=True):
        torch.testing.assert_close(ten, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("task", ["bags", torch.tensor([0, 1, 2])])
def test_every_trained_parameter_gets_a_gradient(generator, task):
    hnet = make(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), generator)
    hnet(torch.randn(3, 4), task=task).square().sum().backward()
    for name, parameter in hnet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_tasks_that_contradict_each_other():
    hnet = make(nn.Linear(4, 2), tasks=2)
    optimizer = torch.optim.Adam(hnet.parameters(), 1e-2)
    x = torch.randn(200, 4)
    task = torch.arange(200) % 2
    y = ((x[:, 0] > 0) ^ task.bool()).long()
    for _ in range(100):
        loss = F.cross_entropy(hnet(x, task=task), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (hnet(x, task=task).argmax(1) == y).float().mean() > 0.95


def test_same_seed_same_network_and_other_seed_another():
    torch.manual_seed(0)
    target = nn.Linear(4, 2)
    one, two, other = make(target, seed=3), make(target, seed=3), make(target, seed=4)
    x = torch.randn(2, 4)
    assert torch.equal(one(x, task=0), two(x, task=0))
    assert not torch.allclose(one(x, task=0), other(x, task=0))


# --- the target stays as it was -------------------------------------------------------------


def test_the_given_module_is_never_changed():
    target = normed_target().eval()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    hnet = make(target)
    assert not hnet.training  # it takes over the mode
    hnet.train()
    hnet(torch.randn(6, 4), task=0).sum().backward()
    with pytest.raises(RuntimeError):
        hnet(torch.randn(6, 5), task=0)
    with torch.no_grad():
        for parameter in hnet.parameters():
            parameter.add_(1)
    assert not target.training
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in target.parameters())


def test_after_an_exception_it_answers_as_before():
    hnet = make(normed_target().eval())
    x = torch.randn(3, 4)
    before = hnet(x, task=1)
    for task in (1, torch.tensor([0, 1, 2])):
        with pytest.raises(RuntimeError):
            hnet(torch.randn(3, 5), task=task)
    assert torch.equal(hnet(x, task=1), before)


def test_training_and_evaluation_reach_dropout_and_norms():
    hnet = make(normed_target(dropout=0.5))
    x = torch.randn(50, 4)
    assert not torch.equal(hnet.train()(x, task=0), hnet(x, task=0))
    before = copy.deepcopy(hnet.state_dict())
    hnet.eval()
    assert torch.equal(hnet(x, task=0), hnet(x, task=0))
    assert all(torch.equal(value, before[name]) for name, value in hnet.state_dict().items())


# --- which task -----------------------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_one_task_per_sample_equals_a_loop_over_the_tasks(generator, dtype):
    hnet = make(generator=generator)
    x, ids = torch.randn(9, 4), torch.tensor([2, 0, 2, 1, 0, 2, 2, 1, 0])
    together = hnet(x, task=ids.to(dtype))
    one_by_one = torch.cat([hnet(row[None], task=int(i)) for row, i in zip(x, ids, strict=True)])
    torch.testing.assert_close(together, one_by_one, rtol=1e-6, atol=1e-6)
    weights = torch.randn(9, 2)
    grads = torch.autograd.grad((together * weights).sum(), [*hnet.parameters()])
    looped = torch.autograd.grad((one_by_one * weights).sum(), [*hnet.parameters()])
    torch.testing.assert_close(grads, looped)


def test_mixed_training_batches_keep_each_task_s_own_statistics():
    torch.manual_seed(0)
    hnet, other = make(normed_target()), make(normed_target())
    other.load_state_dict(hnet.state_dict())
    x, ids = torch.randn(60, 4), torch.randint(0, 2, (60,))
    out = hnet(x, task=ids)
    for task in (0, 1):
        torch.testing.assert_close(out[ids == task], other(x[ids == task], task=task))
    torch.testing.assert_close(hnet.state_dict(), other.state_dict())
    assert hnet.state_dict()["target.module.1.num_batches_tracked"].tolist() == [1, 1, 0]


def test_parameters_are_generated_once_per_distinct_task():
    hnet = make(tasks=5)
    rows = []
    hnet.generator.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    hnet(torch.randn(8, 4), task=torch.tensor([4, 1, 4, 4, 1, 0, 1, 4]))
    hnet(torch.randn(8, 4), task=3)
    hnet(torch.randn(8, 4), task=torch.full((8,), 2))
    assert rows == [3, 1, 1]


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_of_none_or_one_keeps_its_axis(batch):
    hnet = make()
    for task in (0, torch.zeros(batch, dtype=torch.long), torch.randn(8)):
        assert hnet(torch.randn(batch, 4), task=task).shape == (batch, 2)


@pytest.mark.parametrize("task", ["bags", np.int64(1), torch.tensor(1), torch.tensor(1).byte()])
def test_a_name_a_number_and_a_tensor_of_no_dimension_are_the_same_task(task):
    hnet, x = make(), torch.randn(3, 4)
    assert torch.equal(hnet(x, task=task), hnet(x, task=1))
    assert torch.equal(hnet.generate(task)["0.bias"], hnet.generate(1)["0.bias"])


def test_an_embedding_is_a_task():
    hnet, x = make(), torch.randn(3, 4)
    torch.testing.assert_close(hnet(x, task=hnet.conditioner.weight[2]), hnet(x, task="hats"))
    z = torch.randn(8, requires_grad=True)
    hnet(x, task=z).sum().backward()
    assert z.grad.abs().sum() > 0
    hnet.double()(x.double(), task=z)


def test_arguments_and_outputs_may_be_nested():
    hnet = make(Nested())
    x, ids = torch.randn(5, 4), torch.tensor([1, 0, 1, 2, 0])
    pair = {"left": torch.randn(5, 3), "right": torch.randn(5, 1)}
    out = hnet(x, task=ids, pair=pair, factor=torch.tensor(2.0))
    assert out.keys() == {"sum", "both", "nothing"}
    assert out["nothing"] is None
    for i, task in enumerate(ids):
        row = {side: value[i : i + 1] for side, value in pair.items()}
        alone = hnet(x[i : i + 1], task=int(task), pair=row, factor=2.0)
        torch.testing.assert_close(out["sum"][i], alone["sum"][0])
        torch.testing.assert_close(out["both"][0][i], alone["both"][0][0])
        torch.testing.assert_close(out["both"][1][i], alone["both"][1][0])


@pytest.mark.parametrize(
    "target",
    [nn.LSTM(4, 3, batch_first=True), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)],
)
def test_sequence_models_can_be_targets(target):
    hnet = make(target)
    x = torch.randn(5, 6, 4)
    out = hnet(x, task="bags")
    plain = hnet.materialize("bags")
    first = out[0] if isinstance(out, tuple) else out
    expected = plain(x)[0] if isinstance(out, tuple) else plain(x)
    torch.testing.assert_close(first, expected)
    first.square().sum().backward()
    assert hnet.conditioner.weight.grad[1].abs().sum() > 0


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("coats", KeyError, "unknown `task` 'coats'; the tasks are: 'shoes', 'bags', 'hats'"),
        (-1, IndexError, r"`task` must be in \[0, 3\), got -1"),
        (3, IndexError, r"`task` must be in \[0, 3\), got 3"),
        (torch.tensor(-1), IndexError, "got -1"),
        (torch.tensor([0, 1, -2]), IndexError, r"`task` must be in \[0, 3\), got -2"),
        (torch.tensor([0, 7, 1]), IndexError, "got 7"),
        (1.0, TypeError, "`task` must be a name or an integer, got 1.0"),
        (True, TypeError, "got True"),
        ([0, [1], 2], TypeError, r"got \[1\]; for one task per sample give a list of these, or an"),
        (torch.tensor(True), ValueError, r"got a tensor of shape \[\] and dtype torch.bool"),
        (torch.tensor([True, False, True]), ValueError, "dtype torch.bool"),
        (torch.zeros(3, 1, dtype=torch.long), ValueError, r"shape \[3, 1\] and dtype torch.int64"),
        (
            torch.tensor([0.0, 1.0, 2.0]),
            ValueError,
            r"shape \[8\], got shape \[3\]; task numbers",
        ),
        (torch.tensor(1.0), ValueError, r"shape \[8\], got shape \[\]; task numbers"),
        (torch.tensor([0, 1]), ValueError, r"names 2 samples.* shape \[3, 4\]"),
        (torch.tensor([1, 1]), ValueError, r"names 2 samples.* shape \[3, 4\]"),
        (torch.tensor([], dtype=torch.long), ValueError, r"names 0 samples.* shape \[3, 4\]"),
    ],
)
def test_refuses_what_is_no_task(task, error, message):
    with pytest.raises(error, match=message):
        make()(torch.randn(3, 4), task=task)


def test_one_model_needs_one_task():
    with pytest.raises(ValueError, match=r"`task` must be one name, .* shape \[1\] and dtype"):
        make().materialize(torch.tensor([1]))


class Cached(nn.Linear):
    def forward(self, x):
        return super().forward(x), object()


class Scalar(nn.Linear):
    def forward(self, x):
        return super().forward(x).sum()


@pytest.mark.parametrize(
    ("target", "x", "message"),
    [
        (
            Scalar(4, 2),
            torch.randn(3, 4),
            r"as its first dimension, got shape \[\] for [12] samples",
        ),
        (
            nn.LSTM(4, 3, 2, batch_first=True),
            torch.randn(3, 6, 4),
            "an nn.LSTM as the target .* wrap it",
        ),
        (Cached(4, 2), torch.randn(3, 4), r"got <object .* for [12] samples; .*use_cache=False"),
    ],
)
def test_with_samples_of_several_tasks_outputs_need_the_batch_first(target, x, message):
    hnet = make(target)
    with pytest.raises(ValueError, match=message):
        hnet(x, task=torch.tensor([0, 1, 0]))
    alone, together = hnet(x, task=1), hnet(x, task=torch.tensor([1, 1, 1]))
    torch.testing.assert_close(tree_leaves(together)[0], tree_leaves(alone)[0])


# --- one task's parameters ------------------------------------------------------------------


def test_generated_tensors_have_the_target_s_names_and_are_differentiable():
    target = normed_target()
    hnet = make(target)
    tensors = hnet.generate("bags")
    assert {n: t.shape for n, t in tensors.items()} == {
        n: p.shape for n, p in target.named_parameters()
    }
    sum(t.square().sum() for t in tensors.values()).backward()
    grad = hnet.conditioner.weight.grad
    assert grad[1].abs().sum() > 0
    assert grad[[0, 2]].abs().sum() == 0
    x = torch.randn(3, 4)
    hnet.eval()
    functional = torch.func.functional_call(target.eval(), hnet.generate("bags"), x)
    torch.testing.assert_close(functional, hnet(x, task="bags"))


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_materialised_model_is_plain_and_agrees(generator):
    target = normed_target()
    hnet = make(target, generator)
    for task in (0, 1, 1):
        hnet(torch.randn(50, 4), task=task)
    hnet.eval()
    x = torch.randn(3, 4)
    for task in (0, "bags", hnet.conditioner.weight[2].detach(), torch.randn(8)):
        plain = hnet.materialize(task)
        torch.testing.assert_close(plain(x), hnet(x, task=task))
        assert type(plain) is nn.Sequential
        assert b"sparsehyper" not in pickle.dumps(plain)
        copy.deepcopy(target).load_state_dict(plain.state_dict())
    with torch.no_grad():
        before = hnet(x, task=0)
        for tensor in (*plain.parameters(), *plain.buffers()):
            tensor.add_(1)
        assert torch.equal(hnet(x, task=0), before)


# --- new tasks ------------------------------------------------------------------------------


def test_adding_a_task_leaves_everything_else_bit_identical():
    hnet = make(normed_target())
    hnet(torch.randn(20, 4), task=torch.arange(20) % 3)
    x = torch.randn(3, 4)
    hnet.eval()
    outputs = [hnet(x, task=t) for t in range(3)]
    before = {n: v.clone() for n, v in hnet.state_dict().items()}
    assert hnet.add_task("coats") == 3
    assert hnet.add_task("socks", init="bags") == 4
    assert hnet.add_task("gloves", init=torch.ones(8).cumsum(0)) == 5
    assert hnet.task_names == ("shoes", "bags", "hats", "coats", "socks", "gloves")
    del before["notes"]
    for name in before:
        value = hnet.state_dict()[name]
        grown = name == "conditioner.weight" or name.startswith("target.module.1.")
        assert torch.equal(value[:3] if grown else value, before[name]), name
    for task, out in enumerate(outputs):
        assert torch.equal(hnet(x, task=task), out)
    torch.testing.assert_close(
        hnet.generate("socks")["0.weight"], hnet.generate("bags")["0.weight"]
    )
    mean = before["conditioner.weight"].mean(0)
    torch.testing.assert_close(hnet(x, task="coats"), hnet(x, task=mean), atol=1e-5, rtol=1e-4)


def test_a_refused_task_changes_nothing():
    hnet = make(normed_target())
    with pytest.raises(ValueError, match="`name` must not repeat a task, got 'bags'"):
        hnet.add_task("bags")
    with pytest.raises(ValueError, match=r"`init` must have shape \[8\], got \[3\]"):
        hnet.add_task("coats", init=torch.zeros(3))
    assert hnet.task_names == tuple(TASKS)
    assert len(hnet.conditioner.weight) == len(hnet.target.module[1].running_mean) == 3


# --- tasks worked out beforehand ------------------------------------------------------------


def test_a_grouping_stands_for_its_tasks():
    hnet, x, ids = make(), torch.randn(6, 4), torch.tensor([2, 0, 2, 0, 0, 1])
    torch.testing.assert_close(hnet(x, task=hnet.group(ids, 6)), hnet(x, task=ids))
    for task in ("hats", 2, torch.tensor(2)):
        assert torch.equal(hnet(x, task=hnet.group(task, 6)), hnet(x, task="hats"))
    hnet(x, task=hnet.group("hats", 6)).sum().backward()
    assert hnet.conditioner.weight.grad[2].any()


def test_a_grouping_serves_other_tasks_with_as_many_samples():
    hnet, x = make(), torch.randn(6, 4)
    grouping = hnet.group(torch.tensor([0, 1, 0, 1, 0, 1]), 6)
    grouping.tasks.copy_(torch.tensor([2, 0]))
    expected = hnet(x, task=torch.tensor([2, 0, 2, 0, 2, 0]))
    torch.testing.assert_close(hnet(x, task=grouping), expected)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("socks", KeyError, "unknown `task` 'socks'; the tasks are"),
        (3, IndexError, r"`task` must be in \[0, 3\), got 3"),
        (torch.tensor([0, 0, -1]), IndexError, r"`task` must be in \[0, 3\), got -1"),
        (torch.tensor([0, 1]), ValueError, r"for each of the 3 samples, got shape \[2\]"),
        (torch.zeros(8), ValueError, "`task` must be one name, number or embedding here"),
        (None, TypeError, "`task` is missing"),
    ],
)
def test_tasks_that_cannot_be_grouped(task, error, message):
    with pytest.raises(error, match=message):
        make().group(task, 3)


def test_grouping_needs_named_tasks():
    encoder = InputEncoder(nn.Linear(4, 8), dim=8)
    hnet = HyperNetwork(nn.Linear(4, 2), Sparse(), encoder)
    with pytest.raises(TypeError, match="a conditioner with named tasks, got a InputEncoder"):
        hnet.group(0, 3)


# --- derivatives of derivatives -------------------------------------------------------------


@pytest.mark.parametrize("generator", [Sparse(), Dense()])
def test_second_derivatives_are_right_in_every_order_of_modes(generator):
    target = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    hnet = make(target, generator, dim=5).double()
    x, z = torch.randn(6, 4).double(), torch.randn(5).double()

    def loss(z):
        return hnet(x, task=z).square().mean()

    expected = jacrev(jacrev(loss))(z)
    for found in (jacfwd(jacrev(loss)), jacrev(jacfwd(loss)), jacfwd(jacfwd(loss))):
        torch.testing.assert_close(found(z), expected)
    direction = torch.randn(5).double()
    with forward_ad.dual_level():
        start = z.clone().requires_grad_()
        slope = forward_ad.unpack_dual(loss(forward_ad.make_dual(start, direction))).tangent
        torch.testing.assert_close(torch.autograd.grad(slope, start)[0], expected @ direction)
    # Where there is no forward mode, the result is bit-identical to PyTorch's own layer norm.
    assert torch.equal(hnet.normalise(z), F.layer_norm(z, z.shape))


# --- precision, copies, the compiler --------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
def test_bfloat16_autocast(generator):
    hnet = make(normed_target(), generator)
    x, task = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    exact = hnet.eval()(x, task=task)
    with torch.autocast("cpu", torch.bfloat16):
        out = hnet(x, task=task)
        loss = out.float().square().sum()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    loss.backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in hnet.parameters())


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_float64_target_makes_a_float64_hypernetwork_and_so_does_double(generator):
    target = normed_target()
    double = make(copy.deepcopy(target).double(), generator, scale=1.0)
    converted = make(target, generator, scale=1.0).double()
    x = torch.randn(3, 4, dtype=torch.double)
    for hnet in (double, converted):
        hnet.eval()
        assert hnet(x, task=0).dtype == torch.float64
        assert hnet(x, task=torch.tensor([0, 1, 0])).dtype == torch.float64
        assert all(t.dtype == torch.float64 for t in hnet.generate(0).values())
    torch.testing.assert_close(double(x, task=0), converted(x, task=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
def test_a_copy_is_equal_and_independent(copied):
    hnet = make(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    x = torch.randn(6, 4)
    hnet(x, task=0).sum().backward()
    twin = copied(hnet)
    hnet.eval(), twin.eval()
    out = hnet(x, task=0)
    assert torch.equal(twin(x, task=0), out)
    twin.train()(x, task=0).sum().backward()
    twin.add_task("coats")
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    assert torch.equal(hnet(x, task=0), out)
    assert hnet.task_names == tuple(TASKS)


# From the compiler, which makes an instance of every autograd function that it traces.
compiler_warnings = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


@compiler_warnings
@pytest.mark.parametrize("generator", GENERATORS)
def test_compiled_equals_eager_and_compiles_twice_for_all_tasks(generator):
    torch._dynamo.reset()
    hnet = make(normed_target(), generator, tasks=6)
    twin = copy.deepcopy(hnet)
    graphs = []

    def counting_backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(hnet, backend=counting_backend, fullgraph=True)
    for task in range(6):
        x = torch.randn(5, 4)
        out, expected = compiled(x, task=task), twin(x, task=task)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
    assert len(graphs) <= 2
    for (name, one), two in zip(hnet.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    torch.testing.assert_close(hnet.state_dict(), twin.state_dict())


@compiler_warnings
def test_compiled_with_a_task_per_sample_equals_eager():
    torch._dynamo.reset()
    hnet = make()
    compiled = torch.compile(hnet, backend="aot_eager")
    x, ids = torch.randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(compiled(x, task=ids), hnet(x, task=ids))


# --- what a stranger gets wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"target": "mlp"}, TypeError, "`target` must be a Module, got 'mlp'"),
        ({"target": nn.Linear}, TypeError, "`target` must be a Module, got <class .*Linear'>"),
        ({"generator": "sparse"}, TypeError, "`generator` must be a Generator, got 'sparse'"),
        ({"conditioner": 5}, TypeError, "`conditioner` must be a Conditioner, got 5"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"seed": 1.5}, TypeError, "`seed` must be an integer, got 1.5"),
        ({"scale": 0}, ValueError, "`scale` must be greater than 0, got 0"),
        ({"scale": float("nan")}, ValueError, "`scale` must be finite, got nan"),
        ({"base": "ones"}, ValueError, "`base` must be one of 'zeros', .*; got 'ones'"),
        ({"others": "lost"}, ValueError, "`others` must be one of 'shared', .*; got 'lost'"),
        ({"norm_stats": "x"}, ValueError, "`norm_stats` must be one of .*; got 'x'"),
        ({"generate": "conv*"}, ValueError, r"pattern 'conv\*' matches no .* has: weight, bias"),
        ({"target": nn.ReLU()}, ValueError, "`target` has no trainable parameter to generate"),
    ],
)
def test_refuses_settings_out_of_range(settings, error, message):
    arguments = {
        "target": nn.Linear(2, 2),
        "generator": Sparse(),
        "conditioner": TaskEmbedding(2, 8),
        **settings,
    }
    with pytest.raises(error, match=message):
        HyperNetwork(**arguments)


def test_embeddings_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"`z` must have shape \[batch, 8\], got \[8\]"):
        make().theta(torch.randn(8))


def test_a_pretrained_base_starts_near_the_given_module():
    target = nn.Linear(40, 30)
    hnet = make(target, base="pretrained")
    change = (hnet.generate(0)["weight"] - target.weight).std() / target.weight.std()
    assert change.detach() == pytest.approx(0.1, rel=0.2)


def test_a_hypernetwork_says_where_it_is_and_of_what_type():
    hnet = make(nn.Linear(4, 2).bfloat16())
    assert (hnet.device, hnet.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert hnet.conditioner.weight.dtype == torch.bfloat16
    assert hnet.double().dtype == torch.float64
    assert hnet.to("meta").device == torch.device("meta")


def test_batch_norm_of_a_bfloat16_target():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()
    hnet = HyperNetwork(net, Sparse(), TaskEmbedding(2, dim=4))
    assert hnet(torch.randn(5, 3).bfloat16(), task=1).dtype == torch.bfloat16
    norm = hnet.materialize(1)[1]
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.bfloat16
    assert norm.num_batches_tracked == 1


def test_tasks_are_removed_and_renamed_with_their_statistics():
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(["a", "b", "c"], dim=8))
    for task in range(3):
        hnet(torch.randn(10, 3) + task, task=task)
    kept = hnet.materialize("c").state_dict()
    hnet.remove_task("b")
    hnet.rename_task("c", "b")
    assert hnet.task_names == ("a", "b")
    torch.testing.assert_close(hnet.materialize("b").state_dict(), kept, rtol=0, atol=0)
    norm = hnet.target.module[1]
    assert len(norm.running_mean) == len(norm.num_batches_tracked) == 2
    with pytest.raises(KeyError, match="unknown `task` 'c'"):
        hnet.remove_task("c")


# --- several tasks at once ------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        ("hats", "shoes", "bags"),
        ["hats", 0, torch.tensor(1)],
        np.array(["hats", "shoes", "bags"]),
        np.array([2, 0, 1], dtype=np.uint8),
    ],
    ids=["names", "mixed", "array of names", "array of numbers"],
)
def test_the_task_of_each_sample_in_a_list_or_array(task):
    hnet, x = make(), torch.randn(3, 4)
    expected = hnet(x, task=torch.tensor([2, 0, 1]))
    assert torch.equal(hnet(x, task=task), expected)
    assert torch.equal(hnet(x, task=hnet.group(task, 3)), expected)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (["shoes", "coats", "bags"], KeyError, "unknown `task` 'coats'"),
        ([0, 3, 1], IndexError, r"in \[0, 3\), got 3"),
        ([0, True, 1], TypeError, "a name or an integer, got True"),
        (["shoes"], ValueError, "names 1 samples"),
    ],
)
def test_a_list_that_names_no_task_of_each_sample_is_refused(task, error, message):
    with pytest.raises(error, match=message):
        make()(torch.randn(3, 4), task=task)


def test_an_embedding_may_be_an_array():
    hnet, x = make(), torch.randn(3, 4)
    z = hnet.embedding("bags").detach()
    assert torch.equal(hnet(x, task=z.numpy()), hnet(x, task=z))


@pytest.mark.parametrize("generator", GENERATORS)
def test_many_tasks_are_generated_at_once(generator):
    hnet = make(generator=generator)
    embeddings = hnet.conditioner.weight[[2, 0]]
    for task in (["hats", 0], torch.tensor([2, 0]), embeddings):
        stacked = hnet.generate(task)
        for i, name in enumerate(["hats", "shoes"]):
            for key, tensor in hnet.generate(name).items():
                torch.testing.assert_close(stacked[key][i], tensor)
    with pytest.raises(IndexError):
        hnet.generate([3])
    with pytest.raises(ValueError, match=r"one name, number or embedding here, .*\[2\]"):
        hnet.materialize(["hats", "shoes"])


# --- state dicts ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", [None, Ridge()])
@pytest.mark.parametrize("others", [["coats"], TASKS, ["a", "b", "c", "d", "e", "f"]])
def test_a_state_dict_brings_its_tasks_along(others, head):
    hnet = make(normed_target(), head=head)
    hnet(torch.randn(6, 4), task=1)  # collects statistics
    hnet.add_task("bikes")
    state = hnet.state_dict()
    again = make(normed_target(), tasks=others, head=head)
    again.load_state_dict(state)
    assert again.task_names == (*TASKS, "bikes")
    hnet.eval(), again.eval()
    for task in again.task_names:
        assert torch.equal(again(X := torch.ones(2, 4), task=task), hnet(X, task=task))
    assert state.keys() == hnet.state_dict().keys()
    wrapper = nn.ModuleDict({"inner": make(normed_target(), tasks=others, head=head)})
    wrapper.load_state_dict({f"inner.{name}": tensor for name, tensor in state.items()})
    assert wrapper["inner"].task_names == again.task_names


def test_a_state_dict_of_described_tasks_brings_them_along():
    def described(*names):
        features = {name: torch.randn(3) for name in names}
        return HyperNetwork(nn.Linear(4, 2), Dense(), TaskFeatures(features, dim=8))

    hnet, again = described("a"), described("b")
    hnet.add_task("c", torch.randn(3))
    again.load_state_dict(hnet.state_dict())
    assert torch.equal(again.embedding("c"), hnet.embedding("c"))
    again.add_task("b", torch.randn(3))


def test_a_state_dict_without_names_keeps_those_of_the_hypernetwork():
    state = make().state_dict()
    del state["notes"]
    again = make(tasks=["a", "b", "c"])
    again.load_state_dict(state)
    assert again.task_names == ("a", "b", "c")


def test_a_state_dict_of_earlier_versions_holds_names_alone():
    state = make(tasks=["a", "b"]).state_dict()
    del state["notes"]
    state["task_names"] = torch.tensor(list(b'["a", "b"]'), dtype=torch.uint8)
    again = make()
    again.load_state_dict(state)
    assert again.task_names == ("a", "b")


class Swapped(nn.Module):
    """Two layers of one shape, declared in either order."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.mark.parametrize(
    ("target", "there", "here"),
    [
        (Swapped("b", "a"), r"'a.weight' of shape \[4, 4\]", r"'b.weight' of shape \[4, 4\]"),
        (Swapped("a", "b", "c"), r"'nothing' of shape \[\]", r"'c.weight' of shape \[4, 4\]"),
    ],
)
def test_a_state_dict_of_another_layout_is_refused(target, there, here):
    hnet, other = make(Swapped("a", "b")), make(target, tasks=["d"])
    before = copy.deepcopy(other.state_dict())
    message = f"tensor . of θ is {there} there and {here} here"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(hnet.state_dict())
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())
    with pytest.raises(ValueError, match=message):
        nn.ModuleList([other]).load_state_dict(nn.ModuleList([hnet]).state_dict())


def test_a_state_dict_of_a_wrapped_target_is_loaded():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Swapped("a", "b")

        def forward(self, x):
            return self.net(x)

    hnet, other = make(Swapped("a", "b")), make(Wrapped())
    other.load_state_dict(hnet.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(other(x, task=0), hnet(x, task=0))


def test_every_entry_of_the_state_is_found_by_its_name():
    # as torch.distributed.checkpoint looks for it
    hnet = make()
    for name in nn.ModuleDict({"hnet": hnet}).state_dict():
        part = nn.ModuleDict({"hnet": hnet})
        for step in name.split("."):
            part = getattr(part, step)
        assert isinstance(part, torch.Tensor)


# --- printing -------------------------------------------------------------------------------


def test_it_prints_the_target_as_it_is():
    target = normed_target().append(nn.Linear(2, 2, bias=False)).append(nn.LSTM(2, 2))
    lines = [line.strip() for line in str(make(target)).splitlines()]
    for line in str(target).splitlines():
        assert any(line.strip() in found for found in lines)
    assert make(target).target.printed() == str(target)
