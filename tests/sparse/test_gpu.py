"""The kernels for a GPU against dense float64 references: on one, or in Triton's interpreter."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from sparsehyper._util import kernels
from sparsehyper.sparse import SparseLinear, chain, functional, gpu
from sparsehyper.sparse.functional import sparse_chain, sparse_linear
from sparsehyper.sparse.gpu import launching, products, steps
from sparsehyper.sparse.topology import circulant_sources
from sparsehyper.sparse.wirings import Circulant, Indexed

# n_in, n_out, fan_in: smallest, a copy cut short, fan-in above the inputs and more shifts than a
# launch takes, fewer outputs than inputs, several programs of a kernel.
SHAPES = [(1, 1, 1), (3, 10, 2), (7, 40, 18), (30, 7, 3), (600, 1301, 3)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A GPU, or the CPU with the kernels in Triton's interpreter and none in C."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        return "cuda"
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    _make_masks_boolean(monkeypatch, interpreter.InterpreterBuilder)
    monkeypatch.setattr(products, "DEVICE", "cpu")
    monkeypatch.setattr(kernels, "compiled", None)
    monkeypatch.setattr(kernels, "_warn", lambda: None)
    return "cpu"


def _make_masks_boolean(monkeypatch, builder):
    """Triton 3.9's interpreter spreads a comparison of two scalars as int32, which it then refuses
    as a mask."""

    def with_boolean(call, mask):
        def access(self, *args, **kwargs):
            args[mask].data = args[mask].data.astype(bool)
            return call(self, *args, **kwargs)

        return access

    for name, mask in {"create_masked_load": 1, "create_masked_store": 2}.items():
        monkeypatch.setattr(builder, name, with_boolean(getattr(builder, name), mask))


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched, in order."""
    names = []
    made = launching.Launch.__init__
    call = launching.Launch.__call__

    def init(self, name, *args, **kwargs):
        self.name = name
        made(self, name, *args, **kwargs)

    def launch(self, *args):
        names.append(self.name)
        call(self, *args)

    monkeypatch.setattr(launching.Launch, "__init__", init)
    monkeypatch.setattr(launching.Launch, "__call__", launch)
    return names


def make_wiring(kind, n_in, n_out, fan_in, device):
    generator = torch.Generator().manual_seed(n_in + n_out)
    if kind == "indexed":
        sources = torch.randint(n_in, (fan_in, n_out), generator=generator)
        return Indexed(n_in, sources.int().to(device)), sources
    shifts = torch.randint(n_in, (-(-n_out // n_in), fan_in), generator=generator)
    return Circulant(n_in, shifts.tolist()), circulant_sources(shifts, n_in, n_out).long()


def check(got, x, weights, g, sources):
    """Compare y, gx and the gradients of all weights with dense ones, to a share of their terms."""
    results = []
    for size in (torch.Tensor.double, lambda t: t.double().abs()):
        leaves = [size(t).requires_grad_() for t in (x, *weights)]
        y = leaves[0]
        for w, indices in zip(leaves[1:], sources, strict=True):
            y = (y[:, indices] * w[:, torch.arange(indices.shape[1]) % w.shape[1]]).sum(1)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, size(g))])
    for mine, value, terms in zip(got, *results, strict=True):
        assert mine.shape == value.shape
        assert mine.dtype == x.dtype
        error = (mine.cpu().double() - value).abs()
        assert (error <= TOLERANCE[x.dtype] * len(weights) * terms + 1e-30).all()


def run(x, weights, g, wirings, device, widths=None):
    """y and all gradients, on the device."""
    leaves = [t.detach().to(device).requires_grad_() for t in (x, *weights)]
    y = sparse_chain(leaves[0], leaves[1:], wirings, widths)
    return [y.detach(), *torch.autograd.grad(y, leaves, g.to(device))]


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("poison")
def test_equals_a_dense_reference(device, kind, shape):
    wiring, sources = make_wiring(kind, *shape, device)
    w = torch.randn(sources.shape)
    for rows in (0, 1, 7):
        x, g = torch.randn(rows, shape[0]), torch.randn(rows, shape[1])
        check(run(x, [w], g, [wiring], device), x, [w], g, [sources])


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("rows", [20, 65])
@pytest.mark.usefixtures("poison")
def test_equals_a_dense_reference_for_many_rows(device, kind, rows):
    wiring, sources = make_wiring(kind, 40, 101, 2, device)
    x, w, g = torch.randn(rows, 40), torch.randn(2, 101), torch.randn(rows, 101)
    check(run(x, [w], g, [wiring], device), x, [w], g, [sources])


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize(
    ("shape", "columns"), [((7, 40, 3), 39), ((60, 131, 3), 9), ((90, 61, 2), 1)]
)
@pytest.mark.usefixtures("poison")
def test_outputs_may_share_weights(device, kind, shape, columns):
    wiring, sources = make_wiring(kind, *shape, device)
    w = torch.randn(len(sources), columns)
    for rows, dtype in ((0, torch.float32), (1, torch.float32), (5, torch.bfloat16)):
        x, g = torch.randn(rows, shape[0], dtype=dtype), torch.randn(rows, shape[1], dtype=dtype)
        w = w.to(dtype)
        check(run(x, [w], g, [wiring], device, [shape[1]]), x, [w], g, [sources])


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("rows", [1, 3])
def test_sums_bfloat16_in_float32(device, kind, rows):
    wiring, sources = make_wiring(kind, 40, 101, 9, device)
    x, w, g = (torch.randn(s).bfloat16() for s in ([rows, 40], [9, 101], [rows, 101]))
    check(run(x, [w], g, [wiring], device), x, [w], g, [sources])


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_takes_tensors_of_any_strides(device, kind):
    wiring, sources = make_wiring(kind, 50, 333, 4, device)
    for x, w, g in (
        (torch.randn(50, 3).T, torch.randn(333, 4).T, torch.randn(333).expand(3, 333)),
        (torch.randn(3, 100)[:, ::2], torch.randn(8, 333)[::2], torch.randn(3, 666)[:, ::2]),
        (torch.randn(151)[1:].view(3, 50), torch.randn(4, 333), torch.randn(1000)[1:].view(3, 333)),
    ):
        leaves = [t.to(device).requires_grad_() for t in (x, w)]
        y = sparse_linear(*leaves, wiring)
        got = [y.detach(), *torch.autograd.grad(y, leaves, g.to(device))]
        check(got, x, [w], g, [sources])


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_a_gradient_alone_equals_the_one_of_both(device, kind):
    wiring, _ = make_wiring(kind, 50, 121, 3, device)
    x, w, g = (torch.randn(s, device=device) for s in ([3, 50], [3, 121], [3, 121]))
    both = [t.clone().requires_grad_() for t in (x, w)]
    expected = torch.autograd.grad(sparse_linear(*both, wiring), both, g)
    alone = x.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(sparse_linear(alone, w, wiring), alone, g)
    torch.testing.assert_close(of_x, expected[0], rtol=0, atol=0)
    alone = w.clone().requires_grad_()
    (of_w,) = torch.autograd.grad(sparse_linear(x, alone, wiring), alone, g)
    torch.testing.assert_close(of_w, expected[1], rtol=0, atol=0)


SIZES = (5, 11, 30, 70, 160, 400)


def make_chain(kinds, device):
    shapes = [
        (*pair, k) for pair, k in zip(itertools.pairwise(SIZES), (4, 3, 2, 2, 1), strict=True)
    ]
    made = [make_wiring(kind, *shape, device) for kind, shape in zip(kinds, shapes, strict=False)]
    return [wiring for wiring, _ in made], [sources for _, sources in made]


@pytest.mark.parametrize(
    ("kinds", "narrow", "forward", "backward"),
    [
        (["circulant"] * 5, 200, ["narrow", "circulant"], 3),
        (["circulant"] * 3, 200, ["narrow"], 2),
        (["circulant", "indexed", "circulant"], 200, ["circulant", "indexed", "circulant"], 3),
        (["circulant"] * 3, 0, ["circulant"] * 3, 3),
    ],
    ids=str,
)
@pytest.mark.usefixtures("poison")
def test_a_chain_is_few_launches(device, launched, monkeypatch, kinds, narrow, forward, backward):
    monkeypatch.setattr(steps, "NARROW", narrow)
    wirings, sources = make_chain(kinds, device)
    weights = [torch.randn(s.shape) for s in sources]
    for rows in (1, 3, 0):
        launched.clear()
        x, g = torch.randn(rows, 5), torch.randn(rows, SIZES[len(kinds)])
        check(run(x, weights, g, wirings, device), x, weights, g, sources)
        if rows != 1:
            continue
        names = [name for name in launched if name != "columns"]
        assert names[: len(forward)] == forward
        assert len(names) == len(forward) + backward


@pytest.mark.parametrize(
    ("narrow", "forward", "backward"),
    [
        (100, ["narrow", "circulant", "indexed"], 4),
        (0, ["circulant"] * 4 + ["indexed"], 7),
    ],
)
@pytest.mark.usefixtures("poison")
def test_a_chain_of_shared_weights_copies_nothing(
    device, launched, monkeypatch, narrow, forward, backward
):
    monkeypatch.setattr(steps, "NARROW", narrow)
    for name in ("spread", "fold"):
        monkeypatch.delattr(functional, name)
    wirings, sources = make_chain(["circulant"] * 4 + ["indexed"], device)
    widths = [s.shape[1] for s in sources]
    weights = [torch.randn(len(s), -(-s.shape[1] // 7)) for s in sources]
    weights[1] = torch.randn(sources[1].shape)  # as many weights as outputs amid others
    for rows in (1, 3):
        x, g = torch.randn(rows, 5), torch.randn(rows, SIZES[-1])
        launched.clear()
        check(run(x, weights, g, wirings, device, widths), x, weights, g, sources)
        if rows == 1:
            assert launched[: len(forward)] == forward
            assert len(launched) == len(forward) + backward


@pytest.mark.parametrize("frozen", [{0, 1, 2, 3}, {0, 4, 5}, {0, 2}, {1, 2, 3, 4, 5}], ids=str)
@pytest.mark.usefixtures("poison")
def test_what_is_frozen_gets_no_gradient(device, monkeypatch, frozen):
    monkeypatch.setattr(steps, "NARROW", 100)
    wirings, sources = make_chain(["circulant"] * 4 + ["indexed"], device)
    widths = [s.shape[1] for s in sources]
    leaves = [torch.randn(2, 5), *[torch.randn(s.shape) for s in sources]]
    leaves[4] = leaves[4][:, :50]  # shared
    g = torch.randn(2, SIZES[-1])
    expected = run(leaves[0], leaves[1:], g, wirings, device, widths)
    leaves = [t.to(device).requires_grad_(i not in frozen) for i, t in enumerate(leaves)]
    y = sparse_chain(leaves[0], leaves[1:], wirings, widths)
    y.backward(g.to(device))
    for i, (leaf, value) in enumerate(zip(leaves, expected[1:], strict=True)):
        if i in frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, value, rtol=0, atol=0)


def test_a_chain_is_one_node(device):
    wirings, sources = make_chain(["circulant"] * 3, device)
    weights = [torch.randn(s.shape, device=device, requires_grad=True) for s in sources]
    y = sparse_chain(torch.randn(1, 5, device=device), weights, wirings)
    nodes = [node for node, _ in y.grad_fn.next_functions if node]
    assert {type(node).__name__ for node in nodes} == {"AccumulateGrad"}


def test_many_numbers_of_rows_in_turn(device, monkeypatch):
    monkeypatch.setattr(products, "_MOST_PLANS", 2)
    wirings, sources = make_chain(["circulant"] * 2, device)
    weights = [torch.randn(s.shape) for s in sources]
    for rows in (1, 2, 1, 4, 3, 2):
        x = torch.randn(rows, 5)
        y = x
        for w, indices in zip(weights, sources, strict=True):
            y = (y[:, indices] * w).sum(1)
        got = sparse_chain(x.to(device), [w.to(device) for w in weights], wirings)
        torch.testing.assert_close(got.cpu(), y)


def test_a_wiring_may_be_written_to(device):
    wiring, _ = make_wiring("indexed", 7, 17, 2, device)
    x, w = torch.randn(2, 7, device=device), torch.randn(2, 17, device=device)
    sparse_chain(x, [w], [wiring])
    wiring.sources.fill_(3)
    got = run(x, [w], torch.ones(2, 17), [wiring], device)
    torch.testing.assert_close(got[0], x[:, 3:4] * w.sum(0))
    torch.testing.assert_close(got[1][:, 3], w.sum().expand(2))
    wiring.sources.fill_(7)
    with pytest.raises(ValueError, match=r"`sources` must lie in \[0, 7\), got 7 to 7"):
        sparse_chain(x, [w], [wiring])


def test_a_wiring_amid_others_may_be_written_to(device):
    wirings, sources = make_chain(["circulant", "indexed", "circulant"], device)
    x, g = torch.randn(1, 5), torch.randn(1, SIZES[3])
    weights = [torch.randn(s.shape) for s in sources]
    run(x, weights, g, wirings, device)
    sources[1] = sources[1].flip(0, 1)
    wirings[1].sources.copy_(sources[1])
    check(run(x, weights, g, wirings, device), x, weights, g, sources)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_of_a_layer_in_use(device, copied):
    layer = SparseLinear(8, 20, 2).to(device)
    x = torch.randn(1, 8, device=device)
    expected = layer(x)
    other = copied(layer)
    with torch.no_grad():
        layer.weight.zero_()
    del layer
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


def test_a_source_that_was_written_in_secret_gives_nan_and_reads_nothing(device):
    wiring, _ = make_wiring("indexed", 7, 17, 2, device)
    x, w = torch.randn(2, 7, device=device), torch.randn(2, 17, device=device)
    sparse_chain(x, [w], [wiring])
    wiring.sources.data[0, 5] = 1 << 30
    y = sparse_chain(x, [w], [wiring])
    assert y.isnan().nonzero()[:, 1].tolist() == [5, 5]


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_stays_where_it_is_connected(device, kind):
    wiring, sources = make_wiring(kind, 20, 47, 2, device)
    x, w, g = torch.randn(2, 20), torch.randn(2, 47), torch.randn(2, 47)
    g[:, [0, 46]] = torch.inf
    _, gx, gw = run(x, [w], g, [wiring], device)
    touched = torch.zeros(20, dtype=torch.bool)
    touched[sources[:, [0, 46]].flatten()] = True
    assert (gx.isfinite().cpu() == ~touched).all()
    assert (gw.isfinite().cpu().all(0) == g[0].isfinite()).all()


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_derivatives_of_any_order(device, kind):
    wiring, sources = make_wiring(kind, 9, 20, 2, device)
    made = [torch.randn(s) for s in ([2, 9], [2, 20], [2, 9])]

    def loss(x, w):
        if x.dtype is torch.float64:
            return (x[:, sources] * w).sum(1).pow(3).mean()
        return sparse_linear(x, w, wiring).pow(3).mean()

    def slopes(x, w, u):
        x, w = x.requires_grad_(), w.requires_grad_()
        gx, gw = torch.autograd.grad(loss(x, w), [x, w], create_graph=True)
        return torch.autograd.grad((gx * u).sum() + gw.pow(2).sum(), [x, w])

    def tangent(x, w, u):
        return torch.func.jvp(loss, (x, w), (u, w))

    def each(x, w, u):
        return torch.func.vmap(torch.func.grad(loss), (0, None))(torch.stack([x, u]), w)

    for order in (slopes, tangent, each):
        got = order(*[t.to(device) for t in made])
        expected = order(*[t.double() for t in made])
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4)


def test_twice_the_same_is_the_same_to_the_bit(device):
    wirings, sources = make_chain(["circulant"] * 4 + ["indexed"], device)
    weights = [torch.randn(s.shape) for s in sources]
    x, g = torch.randn(3, 5), torch.randn(3, SIZES[-1])
    one, other = (run(x, weights, g, wirings, device) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_layers_of_few_inputs_need_no_index(device, launched):
    layers = [SparseLinear(8, 20, 2).to(device), SparseLinear(20, 50, 2).to(device)]
    assert not any("_sources" in dict(layer.named_buffers()) for layer in layers)
    chain(layers, torch.randn(1, 8, device=device))
    assert launched == ["narrow"]


@pytest.mark.parametrize("topology", ["circulant", "uniform"])
@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_a_chain_is_one_operator(device, topology, share):
    layers = torch.nn.ModuleList(
        SparseLinear(a, b, 2, topology=topology, share=share, seed=a)
        for a, b in itertools.pairwise(SIZES[:4])
    ).to(device)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return chain(list(self.layers), x)

    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x, g = torch.randn(2, 5, device=device, requires_grad=True), torch.randn(2, 70, device=device)
    inputs = [x, *model.parameters()]
    expected = [model(x), *torch.autograd.grad(model(x), inputs, g)]
    got = [compiled(x), *torch.autograd.grad(compiled(x), inputs, g)]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert len(graphs) == 1
    called = [n.target for n in graphs[0].graph.nodes if "sparsehyper" in str(n.target)]
    assert called == [torch.ops.sparsehyper.gpu_chain]


@pytest.mark.parametrize("rows", [0, 2])
def test_the_operators_keep_the_rules_of_pytorch(device, rows):
    wirings, sources = make_chain(["circulant", "indexed"], device)
    made = [wiring.layer(torch.device(device)) for wiring in wirings]
    lists = [layer.by_input or (layer.sources, layer.sources) for layer in made]
    wiring = (
        [layer.sources for layer in made],
        *map(list, zip(*lists, strict=True)),
        [layer.n_in for layer in made],
        [11, 30],
        [layer.circulant for layer in made],
        [shift for layer in made for shift in layer.shifts],
    )
    x, g = torch.randn(rows, 5, device=device), torch.randn(rows, 30, device=device)
    weights = [torch.randn(len(s), 9, device=device) for s in sources]
    between = torch.randn(rows * 11, device=device)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    operators = torch.ops.sparsehyper
    opcheck(operators.gpu_chain.default, (x, weights, *wiring), test_utils=checks)
    for needs in ([True] * 3, [False, True, False]):
        arguments = (g, x, between, weights, needs, *wiring)
        opcheck(operators.gpu_chain_adjoint.default, arguments, test_utils=checks[:2])


def test_refuses_layers_that_do_not_fit(device):
    wirings, sources = make_chain(["circulant"] * 2, device)
    weights = [torch.randn(s.shape, device=device) for s in sources]
    x = torch.randn(1, 5, device=device)
    for broken, message in (
        ([weights[0][:, :-1], weights[1]], "`shifts` must have 2 rows for 5 inputs"),
        (weights[1:], r"`weight` must have shape \[4, n_out\], got \[3, 30\]"),
        ([weights[0], weights[1][:2]], r"`weight` must have shape \[3, n_out\], got \[2, 30\]"),
        ([weights[0], weights[1][:, :9]], "`shifts` must have 1 rows for 11 inputs"),
        ([weights[0], weights[1][:, :0]], "`shifts` must have 0 rows for 11 inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse_chain(x, broken, wirings[: len(broken)])
    with pytest.raises(ValueError, match=r"`x` must have shape \[batch, 5\], got \[1, 11\]"):
        sparse_chain(x, [weights[0]] * 2, [wirings[0]] * 2)
    for columns in (0, 12):
        with pytest.raises(ValueError, match=f"`weight` must have 1 to 11 columns, got {columns}"):
            sparse_chain(x, [weights[0].new_zeros(4, columns)], wirings[:1], [11])


def test_without_triton_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(products, "AVAILABLE", False)
    monkeypatch.setattr(products, "DEVICE", "cpu")
    assert not gpu.takes(torch.zeros(1))
    assert not gpu.serves(torch.device("cpu"))


def test_triton_compiles_every_kernel():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names = [line.split()[0] for line in run.stdout.splitlines()]
    circulant = ["circulant", "circulant_adjoint", "circulant_adjoint_w"]
    indexed = ["columns", "indexed", "indexed_adjoint"]
    assert names == [*circulant, *indexed, "narrow", "narrow_adjoint_x"]
