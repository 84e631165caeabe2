from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.func import grad, vmap

from sparsehyper._util.memory import MIN_POOLED_BYTES, shared_memory
from sparsehyper.target import unpacking
from sparsehyper.target.unpacking import UnpackPlan, unpack

SHAPES = [torch.Size(shape) for shape in [(3, 4), (5,), (), (2, 1, 2)]]
PLAN = UnpackPlan(
    [shape.numel() for shape in SHAPES],
    SHAPES,
    [0.5, 2.0, 3.0, 1.5],
    [0.0, 1.0, 0.0, -2.0],
    [(0, 1)],
)
NUMEL = sum(PLAN.sizes)


@pytest.fixture(params=["cpu", "gpu's way"])
def way(request, monkeypatch):
    """Run a test on the CPU too by the operations that are meant for a GPU."""
    if request.param != "cpu":
        monkeypatch.setattr(unpacking, "_on_gpu", lambda _: True)
    return request.param


def vector(*lead: int) -> torch.Tensor:
    return torch.randn(*lead, NUMEL, dtype=torch.double, requires_grad=True)


def expected(generated: torch.Tensor, base: torch.Tensor | None) -> list[torch.Tensor]:
    sizes = torch.tensor(PLAN.sizes)
    means, stds = (
        torch.tensor(moment, dtype=generated.dtype).repeat_interleave(sizes)
        for moment in (PLAN.means, PLAN.stds)
    )
    theta = (means if base is None else base) + stds * generated
    theta[..., 4:8] = 0  # the row that is zero
    lead = generated.shape[:-1]
    return [p.view(lead + s) for p, s in zip(theta.split(PLAN.sizes, -1), SHAPES, strict=True)]


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("lead", [(), (2,), (0,)])
def test_values_and_derivatives_of_both_orders(based, lead, way):
    inputs = (vector(*lead), vector()) if based else (vector(*lead),)

    def tensors(generated, base=None):
        return unpack(generated, PLAN, base)

    for tensor, value in zip(
        tensors(*inputs), expected(inputs[0], inputs[1] if based else None), strict=True
    ):
        torch.testing.assert_close(tensor, value)
        assert tensor.is_contiguous() or way != "cpu"
        assert all(each.is_contiguous() for each in (tensor if lead else [tensor]))
    for some in ([0], [1], [0, 1]) if based else ([0],):
        for i, tensor in enumerate(inputs):
            tensor.requires_grad_(i in some)
        assert torch.autograd.gradcheck(tensors, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(tensors, inputs, check_fwd_over_rev=True)


def test_a_tensor_without_a_gradient_counts_as_zero(way):
    generated = vector()
    unpack(generated, PLAN)[1].sum().backward()
    assert generated.grad.nonzero().flatten().tolist() == [12, 13, 14, 15, 16]
    assert generated.grad[12:17].tolist() == [2.0] * 5


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 1), (1, None)])
def test_vmap_and_grad_transforms(in_dims, way):
    generated, base = (
        vector() if dim is None else vector(3).movedim(0, dim).detach() for dim in in_dims
    )

    def loss(generated, base):
        return sum(tensor.pow(3).sum() for tensor in unpack(generated, PLAN, base)[:3])

    def row(tensor, dim, i):
        return tensor if dim is None else tensor.select(dim, i)

    for derivative in (loss, grad(loss), grad(loss, argnums=1)):
        together = vmap(derivative, in_dims)(generated, base)
        for i in range(3):
            alone = derivative(row(generated, in_dims[0], i), row(base, in_dims[1], i))
            torch.testing.assert_close(together[i], alone)


# From the compiler, which makes an instance of every autograd function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_the_compiler_sees_one_graph():
    torch._dynamo.reset()

    def loss(generated, base):
        return sum(tensor.pow(3).sum() for tensor in unpack(generated, PLAN, base))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    inputs = vector(2), vector()
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(loss(*inputs), inputs)
    )


def test_fake_tensors_and_views_of_a_negation():
    with torch._subclasses.FakeTensorMode():
        assert [t.shape for t in unpack(torch.randn(NUMEL), PLAN)] == SHAPES
    generated = torch.randn(NUMEL, requires_grad=True)
    tensors = unpack(generated, PLAN)
    ones = [torch.ones_like(t) for t in tensors]
    negated = [torch.complex(-one, one).conj().imag for one in ones]  # -1, kept as 1 and a mark
    assert all(t.is_neg() for t in negated)
    (plain,) = torch.autograd.grad(tensors, generated, ones, retain_graph=True)
    (other,) = torch.autograd.grad(tensors, generated, negated)
    torch.testing.assert_close(other, -plain)


@pytest.mark.parametrize("size", [NUMEL - 1, NUMEL + 1])
def test_a_vector_of_another_length_is_refused(size, way):
    with pytest.raises(RuntimeError, match="split"):
        unpack(torch.zeros(size), PLAN)


def test_a_base_of_another_dtype(way):
    generated, base = torch.randn(NUMEL), torch.randn(NUMEL, dtype=torch.double)
    for tensor, value in zip(unpack(generated, PLAN, base), expected(generated, base), strict=True):
        torch.testing.assert_close(tensor.double(), value.double())


def test_forward_mode_of_the_kernels_equals_reverse_mode(way):
    generated, base = torch.randn(2, NUMEL), torch.randn(NUMEL)

    def loss(generated, base):
        return sum(tensor.pow(3).sum() for tensor in unpack(generated, PLAN, base))

    for argnums in (0, 1):
        expected = torch.func.jacrev(loss, argnums)(generated, base)
        torch.testing.assert_close(torch.func.jacfwd(loss, argnums)(generated, base), expected)
        second = torch.func.jacrev(torch.func.jacrev(loss, argnums), argnums)(generated, base)
        got = torch.func.hessian(loss, argnums)(generated, base)
        torch.testing.assert_close(got, second)


@pytest.mark.parametrize("lead", [[], [2]])
@pytest.mark.parametrize("large", [False, True])
def test_each_tensor_has_a_storage_of_its_own(lead, large):
    memory = shared_memory()  # hold a reference
    shapes = [
        torch.Size([MIN_POOLED_BYTES // 4 if large else 100]),
        torch.Size([3, 2]),
        torch.Size([0]),
    ]
    sizes = [shape.numel() for shape in shapes]
    generated = torch.randn(*lead, sum(sizes))
    tensors = unpack(generated, UnpackPlan(sizes, shapes, [1.0] * 3, [0.0] * 3))
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.storage_offset() == 0
        assert copy.deepcopy(tensor).equal(tensor)
    expected, small = tensors[1].clone(), tensors[1]
    file = io.BytesIO()
    torch.save(small, file)
    assert file.tell() < 3000
    tensors[0].fill_(7)
    del tensors
    lent = [memory.empty([MIN_POOLED_BYTES // 4]).fill_(9) for _ in range(4)]
    assert small.equal(expected)
    assert len(lent) == 4


@pytest.mark.parametrize("layer", ["Embedding", "EmbeddingBag"])
def test_gradients_that_list_the_rows_looked_up(layer, way):
    shapes = [torch.Size([10, 4]), torch.Size([3])]
    plan = UnpackPlan([40, 3], shapes, [2.0, 0.5], [0.0, 0.0])
    index, gradients = torch.arange(12).view(4, 3) % 10, []
    for sparse in (False, True):
        generated = torch.linspace(-1, 1, 43).requires_grad_()
        table, bias = unpack(generated, plan)
        if layer == "Embedding":
            y = torch.nn.functional.embedding(index, table, sparse=sparse)
        else:
            y = torch.nn.functional.embedding_bag(index, table, mode="sum", sparse=sparse)
        (y.square().sum() + bias.sum()).backward()
        gradients.append(generated.grad)
    torch.testing.assert_close(*gradients)


def test_a_gradient_without_memory_is_one_of_zeros(way):
    generated = torch.randn(NUMEL, requires_grad=True)
    tensors = unpack(generated, PLAN)
    zeros = [torch._efficientzerotensor(t.shape) for t in tensors]
    (grad,) = torch.autograd.grad(tensors, generated, zeros)
    assert grad.eq(0).all()


@pytest.mark.parametrize("way", ["gpu's way"], indirect=True)
@pytest.mark.parametrize("shapes", [[(64, 4), (16,), (5,)], [(3, 5), (), (0,), (70,)]])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_on_a_gpu_all_tensors_are_aligned_parts_of_one_block(shapes, lead, way):
    shapes = [torch.Size(shape) for shape in shapes]
    sizes = [shape.numel() for shape in shapes]
    plan = UnpackPlan(sizes, shapes, [2.0] * len(shapes), [1.0] * len(shapes))
    generated = torch.randn(*lead, sum(sizes), requires_grad=True)
    tensors = unpack(generated, plan)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    first = tensors[0].data_ptr()
    for tensor in tensors:
        for row in tensor if lead else [tensor]:
            assert not row.numel() or (row.data_ptr() - first) % 64 == 0
    before = [tensor.detach().clone() for tensor in tensors[1:]]
    with torch.no_grad():
        tensors[0].zero_()  # as an embedding with a largest norm does
    for tensor, was in zip(tensors[1:], before, strict=True):
        torch.testing.assert_close(tensor, was, rtol=0, atol=0)
    sum(tensor.square().sum() for tensor in tensors[1:]).backward()
    assert generated.grad[..., : sizes[0]].eq(0).all()


def test_a_plan_s_copies_carry_no_vectors(way):
    unpack(torch.randn(NUMEL), PLAN)
    for copied in (copy.deepcopy(PLAN), pickle.loads(pickle.dumps(PLAN))):
        assert copied == PLAN
        assert not {"_blocks", "packed"} & set(vars(copied))


@pytest.mark.gpu
@pytest.mark.parametrize("shapes", [[(4, 5), (8,)] * 40, [(3, 5), (7,)] * 40])
@pytest.mark.parametrize("based", [False, True])
def test_on_a_gpu_few_launches_compute_what_the_cpu_computes(shapes, based):
    shapes = [torch.Size(shape) for shape in shapes]
    sizes = [shape.numel() for shape in shapes]
    stds = [0.5 + i for i in range(len(sizes))]
    plan = UnpackPlan(sizes, shapes, stds, [1.0] * len(sizes))
    inputs = [torch.randn(sum(sizes)) for _ in range(1 + based)]
    upstream = [torch.randn(shape) for shape in shapes]
    upstream_on = {"cpu": upstream, "cuda": [each.cuda() for each in upstream]}

    def run(device):
        leaves = [each.clone().to(device).requires_grad_() for each in inputs]
        tensors = unpack(leaves[0], plan, *leaves[1:])
        torch.autograd.backward(tensors, upstream_on[device])
        return [*tensors, *(leaf.grad for leaf in leaves)]

    for here, there in zip(run("cpu"), run("cuda"), strict=True):
        torch.testing.assert_close(there.cpu(), here)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run("cuda")
        torch.cuda.synchronize()
    launched = [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    assert 4 <= len(launched) < 12, launched


@pytest.mark.gpu
@pytest.mark.parametrize("lead", [(), (2,)])
def test_derivatives_of_both_orders_on_a_gpu(lead):
    inputs = [
        vector(*lead).detach().cuda().requires_grad_(),
        vector().detach().cuda().requires_grad_(),
    ]

    def tensors(generated, base):
        return unpack(generated, PLAN, base)

    assert torch.autograd.gradcheck(tensors, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(tensors, inputs, check_fwd_over_rev=True)
