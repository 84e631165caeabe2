"""Both ways to compute a product, native and portable, against dense float64 references."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from sparsehyper._util import kernels
from sparsehyper.sparse import SparseLinear
from sparsehyper.sparse.functional import sparse_chain, sparse_linear
from sparsehyper.sparse.topology import circulant_sources
from sparsehyper.sparse.wirings import Circulant, Indexed

# n_in, n_out, fan_in: odd, cut short, one copy, many copies, several blocks of the kernels, wide
# fan-in, fewer outputs than inputs.
SHAPES = [
    (1, 1, 1),
    (3, 10, 2),
    (7, 30, 7),
    (30, 7, 9),
    (5, 4999, 3),
    (257, 1001, 17),
    (4097, 9001, 4),
    (9001, 4097, 1),
    (12345, 24690, 3),
]
BATCHES = [0, 1, 2, 3, 4, 5, 8, 16, 17, 33]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float64: 1e-14}


def make_wiring(kind, n_in, n_out, fan_in):
    generator = torch.Generator().manual_seed(n_in + n_out)
    if kind == "indexed":
        sources = torch.randint(n_in, (fan_in, n_out), generator=generator)
        return Indexed(n_in, sources.int()), sources
    copies = -(-n_out // n_in)
    shifts = torch.randint(n_in, (copies, fan_in), generator=generator)
    return Circulant(n_in, shifts.tolist()), circulant_sources(shifts, n_in, n_out).long()


def reference(x, w, g, sources):
    """y, gx, gw and the sums of the magnitudes of their terms, in float64."""
    results = []
    for size in (torch.Tensor.double, lambda t: t.double().abs()):
        inputs, weights, cotangent = size(x), size(w), size(g)
        taken = inputs[:, sources]
        gx = torch.zeros_like(inputs)
        gx.index_add_(1, sources.flatten(), (cotangent[:, None] * weights).flatten(1))
        results += [(taken * weights).sum(1), gx, (taken * cotangent[:, None]).sum(0)]
    return results


def check(y, gx, gw, x, w, g, sources):
    *expected, of_y, of_gx, of_gw = reference(x, w, g, sources)
    for got, value, size in zip((y, gx, gw), expected, (of_y, of_gx, of_gw), strict=True):
        assert got.shape == value.shape
        # Each of up to a few thousand terms is rounded once or twice.
        assert ((got.double() - value).abs() <= TOLERANCE[w.dtype] * size + 1e-30).all()


def gradients(x, w, g, wiring):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = sparse_linear(x, w, wiring)
    return y.detach(), *torch.autograd.grad(y, [x, w], g)


@pytest.fixture(params=["native", "portable"])
def way(request, monkeypatch):
    if request.param == "portable":
        monkeypatch.setattr(kernels, "takes", lambda *tensors: False)
    else:
        assert kernels.takes(torch.zeros(1)), "the package was installed without its kernels"
    return request.param


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("poison")
def test_equals_a_dense_reference(way, kind, shape, dtype):
    wiring, sources = make_wiring(kind, *shape)
    w = torch.randn(sources.shape).to(dtype)
    for batch in BATCHES if shape[1] < 9000 else [1, 5]:
        x, g = torch.randn(batch, shape[0]).to(dtype), torch.randn(batch, shape[1]).to(dtype)
        check(*gradients(x, w, g, wiring), x, w, g, sources)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_takes_tensors_of_any_strides(way, kind):
    wiring, sources = make_wiring(kind, 50, 333, 4)
    x, w, g = torch.randn(50, 6).T, torch.randn(333, 4).T, torch.randn(333).expand(6, 333)
    check(*gradients(x, w, g, wiring), x, w, g, sources)
    x, w, g = torch.randn(6, 100)[:, ::2], torch.randn(8, 333)[::2], torch.randn(6, 666)[:, ::2]
    check(*gradients(x, w, g, wiring), x, w, g, sources)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_a_gradient_alone_equals_the_one_of_both(way, kind):
    wiring, _ = make_wiring(kind, 5000, 12_001, 3)
    for batch in (1, 4, 7):
        x, w, g = torch.randn(batch, 5000), torch.randn(3, 12_001), torch.randn(batch, 12_001)
        _, gx, gw = gradients(x, w, g, wiring)
        alone = x.clone().requires_grad_()
        (of_x,) = torch.autograd.grad(sparse_linear(alone, w, wiring), alone, g)
        torch.testing.assert_close(of_x, gx)
        alone = w.clone().requires_grad_()
        (of_w,) = torch.autograd.grad(sparse_linear(x, alone, wiring), alone, g)
        torch.testing.assert_close(of_w, gw)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_the_number_of_threads_changes_no_more_than_rounding(kind):
    wiring, _ = make_wiring(kind, 50_000, 100_001, 3)
    before = torch.get_num_threads()
    for batch in (1, 9):
        x, w, g = torch.randn(batch, 50_000), torch.randn(3, 100_001), torch.randn(batch, 100_001)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            try:
                results.append(gradients(x, w, g, wiring))
            finally:
                torch.set_num_threads(before)
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("batch", [1, 3])
def test_first_and_second_derivatives(kind, batch):
    wiring, sources = make_wiring(kind, 5, 12, 3)
    x = torch.randn(batch, 5, dtype=torch.double, requires_grad=True)
    w = torch.randn(sources.shape, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda x, w: sparse_linear(x, w, wiring), (x, w))
    assert gradgradcheck(lambda x, w: sparse_linear(x, w, wiring), (x, w))


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("of", [(True, True), (True, False), (False, True)], ids=str)
def test_forward_mode(kind, of):
    wiring, sources = make_wiring(kind, 5, 12, 3)
    x = torch.randn(2, 5, dtype=torch.double, requires_grad=of[0])
    w = torch.randn(sources.shape, dtype=torch.double, requires_grad=of[1])

    def call(x, w):
        return sparse_linear(x, w, wiring)

    assert gradcheck(call, (x, w), check_forward_ad=True)
    assert gradgradcheck(call, (x, w), check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_forward_mode_of_the_kernels_equals_reverse_mode(kind):
    wiring, sources = make_wiring(kind, 7, 20, 3)
    x, w = torch.randn(2, 7), torch.randn(sources.shape)

    def loss(x, w):
        return sparse_linear(x, w, wiring).pow(3).mean()

    for argnums in (0, 1):
        jacobian = torch.func.jacrev(loss, argnums)(x, w)
        torch.testing.assert_close(torch.func.jacfwd(loss, argnums)(x, w), jacobian)
        second = torch.func.jacrev(torch.func.jacrev(loss, argnums), argnums)(x, w)
        for order in (torch.func.hessian(loss, argnums), forward_twice(loss, argnums)):
            torch.testing.assert_close(order(x, w), second, rtol=1e-4, atol=1e-5)


def forward_twice(loss, argnums):
    return torch.func.jacfwd(torch.func.jacfwd(loss, argnums), argnums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_cotangents_at_once(dtype):
    wiring, sources = make_wiring("indexed", 7, 20, 3)
    x, w = torch.randn(2, 7, dtype=dtype), torch.randn(sources.shape, dtype=dtype)
    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(lambda x: sparse_linear(x, w, wiring), x)
    for strategy in ("reverse-mode", "forward-mode"):
        got = jacobian(lambda x: sparse_linear(x, w, wiring), x, vectorize=True, strategy=strategy)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_second_derivatives_of_the_kernels_equal_those_of_plain_pytorch(kind):
    wiring, sources = make_wiring(kind, 40, 130, 3)
    x, w, u, v = torch.randn(2, 40), torch.randn(sources.shape), torch.randn(2, 40), torch.rand(130)

    def second(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (x, w)]
        loss = sparse_linear(*inputs, wiring).pow(3).mul(v.to(dtype)).sum()
        gx, gw = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad((gx * u.to(dtype)).sum() + gw.pow(2).sum(), inputs)

    for got, expected in zip(second(torch.float32), second(torch.float64), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 0), (0, 2)])
def test_vmap_equals_a_loop(way, kind, in_dims):
    wiring, sources = make_wiring(kind, 11, 25, 3)
    size = 4
    x, w = torch.randn(2, 11), torch.randn(sources.shape)
    if in_dims[0] is not None:
        x = torch.stack([torch.randn(2, 11) for _ in range(size)], dim=in_dims[0])
    if in_dims[1] is not None:
        w = torch.stack([torch.randn(sources.shape) for _ in range(size)], dim=in_dims[1])

    def loss(x, w):
        return sparse_linear(x, w, wiring).pow(2).sum()

    mapped = torch.func.vmap(lambda x, w: sparse_linear(x, w, wiring), in_dims)(x, w)
    slopes = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims)(x, w)
    for i in range(size):
        one = [t if d is None else t.select(d, i) for t, d in zip((x, w), in_dims, strict=True)]
        torch.testing.assert_close(mapped[i], sparse_linear(*one, wiring))
        expected = torch.func.grad(loss, argnums=(0, 1))(*one)
        torch.testing.assert_close((slopes[0][i], slopes[1][i]), expected)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_the_operators_keep_the_rules_of_pytorch(batch):
    x, w, g = torch.randn(batch, 7), torch.randn(2, 17), torch.randn(batch, 17)
    sources = torch.randint(7, (2, 17), dtype=torch.int32)
    checks = ("test_schema", "test_faketensor")
    operators = torch.ops.sparsehyper
    for wiring, apply, adjoint in (
        ([1, 2, 3, 4, 5, 6], operators.circulant, operators.circulant_adjoint),
        (sources, operators.indexed, operators.indexed_adjoint),
    ):
        opcheck(apply.default, (x, w, wiring), test_utils=checks)
        for needs in ((True, True), (True, False), (False, True)):
            opcheck(adjoint.default, (g, x, w, wiring, *needs), test_utils=checks)


@pytest.mark.parametrize("topology", ["circulant", "uniform"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_without_a_graph_break_equals_eager(way, topology):
    layer = SparseLinear(5000, 10_001, 3, topology=topology)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, g = torch.randn(2, 5000, requires_grad=True), torch.randn(2, 10_001)
    inputs = [x, layer.weight]
    expected = [layer(x), *torch.autograd.grad(layer(x), inputs, g)]
    got = [compiled(x), *torch.autograd.grad(compiled(x), inputs, g)]
    torch.testing.assert_close(got, expected)


def test_autocast_leaves_the_product_in_the_precision_of_its_weights():
    layer = SparseLinear(5000, 9000, 2)
    x = torch.randn(3, 5000, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
        y.sum().backward()
    assert y.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.bfloat16().float()))


def test_works_where_the_package_was_installed_without_a_compiler(monkeypatch):
    layer, x = SparseLinear(5000, 9000, 2), torch.randn(1, 5000)
    expected = layer(x)
    monkeypatch.setattr(kernels, "compiled", None)
    monkeypatch.setattr(kernels, "_warn", lambda: None)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_has_no_say(default):
    layers = [SparseLinear(5000, 9000, 2), SparseLinear(5000, 9000, 2, topology="uniform")]
    x = torch.randn(3, 5000)
    expected = [layer(x) for layer in layers]
    try:
        torch.set_default_dtype(default)
        got = [layer(x) for layer in layers]
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        ([3, 6], [2, 17], r"`x` must have shape \[batch, 7\], got \[3, 6\]"),
        ([7], [2, 17], r"`x` must have shape \[batch, 7\], got \[7\]"),
        ([3, 7], [1, 17], r"`weight` must have shape \[2, n_out\], got \[1, 17\]"),
        ([3, 7], [2], r"`weight` must have shape \[2, n_out\], got \[2\]"),
    ],
)
@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_refuses_what_does_not_fit_the_wiring(way, kind, x, weight, message):
    wiring, _ = make_wiring(kind, 7, 17, 2)
    with pytest.raises(ValueError, match=message):
        sparse_linear(torch.zeros(x), torch.zeros(weight), wiring)


@pytest.mark.parametrize("kind", ["circulant", "indexed"])
def test_refuses_weights_of_another_dtype(way, kind):
    wiring, _ = make_wiring(kind, 7, 17, 2)
    with pytest.raises(TypeError, match=r"`weight` must be torch.float32.*got torch.bfloat16"):
        sparse_linear(torch.zeros(3, 7), torch.zeros(2, 17, dtype=torch.bfloat16), wiring)


@pytest.mark.parametrize(
    ("kind", "columns", "name"), [("circulant", 22, "shifts"), ("indexed", 16, "sources")]
)
def test_refuses_weights_of_other_outputs_than_the_wiring(way, kind, columns, name):
    wiring, _ = make_wiring(kind, 7, 17, 2)
    with pytest.raises(ValueError, match=rf"`{name}` must .*\[2, {columns}\]"):
        sparse_linear(torch.zeros(3, 7), torch.zeros(2, columns), wiring)


@pytest.mark.parametrize("shift", [-1, 7, 2**63 - 1])
def test_refuses_shifts_that_lead_out_of_the_inputs(shift):
    with pytest.raises(ValueError, match=rf"`shifts` must lie in \[0, 7\), got .*{shift}"):
        Circulant(7, [[0, shift], [1, 2]])


def test_refuses_shifts_of_different_lengths():
    with pytest.raises(ValueError, match="`shifts` must have rows of 2 numbers"):
        Circulant(7, [[0, 1], [1]])


@pytest.mark.parametrize("chained", [False, True])
def test_a_wiring_written_to_before_the_backward_pass_is_refused(way, chained):
    wiring, _sources = make_wiring("indexed", 7, 17, 2)
    x, w = torch.randn(3, 7, requires_grad=True), torch.randn(2, 17, requires_grad=True)
    y = sparse_chain(x, [w], [wiring]) if chained else sparse_linear(x, w, wiring)
    wiring.sources.fill_(3)
    with pytest.raises(ValueError, match="written to between the forward and the backward"):
        y.sum().backward()
    y = sparse_chain(x, [w], [wiring]) if chained else sparse_linear(x, w, wiring)
    y.sum().backward()
    torch.testing.assert_close(x.grad[:, 3], w.detach().sum().expand(3))
    assert x.grad[:, [0, 1, 2, 4, 5, 6]].count_nonzero() == 0


def test_tensors_on_several_devices_are_refused():
    x, weight = torch.zeros(3, 7), torch.zeros(2, 17)
    with pytest.raises(ValueError, match=r"on one device, got \['cpu', 'meta'\]"):
        torch.ops.sparsehyper.circulant(x, weight.to("meta"), [0] * 6)


@pytest.mark.parametrize("source", [-1, 7, 2**31 - 1])
def test_refuses_sources_that_are_no_inputs(way, source):
    sources = torch.tensor([[0, 1, source]], dtype=torch.int32)
    x, weight = torch.zeros(2, 7, requires_grad=True), torch.zeros(1, 3)
    with pytest.raises((ValueError, RuntimeError), match=r"\[0, 7\)|index"):
        sparse_linear(x, weight, Indexed(7, sources)).sum().backward()


@pytest.mark.parametrize("settings", [{"OMP_THREAD_LIMIT": "2"}, {"OMP_DYNAMIC": "true"}])
def test_fewer_threads_than_asked_for(settings):
    code = """
import torch
from sparsehyper.sparse import SparseLinear
from sparsehyper._util.memory import Memory
empty = Memory.empty
Memory.empty = lambda *a: empty(*a).fill_(float("nan"))
torch.set_num_threads(8)
layer = SparseLinear(10_000, 50_000, 3, topology="uniform")
x = torch.randn(1, 10_000, requires_grad=True)
layer(x).sum().backward()
expected = torch.zeros(10_000).index_add_(0, layer.sources.flatten(), layer.weight.flatten())
torch.testing.assert_close(x.grad[0], expected, rtol=1e-4, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True)
