"""The change of a layer by two factors: in the weight, beside the layer, of every sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.adapters import film, lora, merge
from sparsehyper.target.adapters.low_rank import changes

SAMPLES = 4


def conv1d(n_out: int, n_in: int) -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(n_out, n_in)


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class OtherSizes(nn.Module):
    """Attention whose projections have weights of their own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=3, batch_first=True)

    def forward(self, x):
        return self.attention(x, x[..., :5], x[..., :3])[0]


INDICES = torch.tensor([[0, 1, 2], [3, 3, 0], [4, 4, 4], [6, 5, 6]])
# How to make a layer, an input, and the shapes of A and B at rank 2.
BESIDE = {
    "linear": (lambda: nn.Linear(5, 3), torch.randn(4, 2, 5), (2, 5), (3, 2)),
    "linear on vectors": (lambda: nn.Linear(5, 3, bias=False), torch.randn(4, 5), (2, 5), (3, 2)),
    "conv1d": (
        lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2),
        torch.randn(4, 4, 9),
        (2, 12),
        (6, 2),
    ),
    "grouped": (
        lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2, padding_mode="reflect"),
        torch.randn(4, 4, 5, 5),
        (2, 18),
        (6, 2),
    ),
    "many outputs": (lambda: nn.Conv1d(4, 64, 3, groups=2), torch.randn(4, 4, 9), (2, 6), (64, 2)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), torch.randn(4, 4, 5, 5), (2, 9), (4, 2)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), torch.randn(4, 2, 3, 3, 3), (2, 16), (4, 2)),
    "Conv1D": (lambda: conv1d(3, 5), torch.randn(4, 7, 5), (2, 5), (3, 2)),
    "embedding": (lambda: nn.Embedding(7, 5), INDICES, (2, 7), (5, 2)),
    "padding": (lambda: nn.Embedding(7, 5, padding_idx=0), INDICES, (2, 7), (5, 2)),
}
IN_THE_WEIGHT = {
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
        torch.randn(4, 4, 5, 5),
        (2, 4),
        (27, 2),
    ),
    "attention": (lambda: Attention(8, 2, batch_first=True), torch.randn(4, 3, 8), (2, 8), (24, 2)),
}
LAYERS = {**BESIDE, **IN_THE_WEIGHT}


def moved(module: nn.Module) -> nn.Module:
    """The same module with its trainable parameters elsewhere."""
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.3)
    return module


def adapted(kind: str, **settings) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    make, x, *_ = LAYERS[kind]
    module = nn.Sequential(make())
    return module, lora(module, 2, ["0"], alpha=3, **settings), x


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dora", [False, True])
def test_every_kind_of_layer(kind, dora):
    module, copied, x = adapted(kind, dora=dora)
    torch.testing.assert_close(copied(x), module(x), atol=1e-6, rtol=1e-5)
    (change,) = changes(copied)
    assert change.beside is (kind in BESIDE and not dora)
    assert (tuple(change.part.A.shape), tuple(change.part.B.shape)) == LAYERS[kind][2:]
    moved(copied)
    out = copied(x)
    out.sum().backward()
    assert all((p.grad is not None) is p.requires_grad for p in copied.parameters())
    assert not torch.allclose(out, module(x), atol=1e-2)
    weight = getattr(copied[0], change.tensor).detach().clone()
    merge(copied)
    torch.testing.assert_close(copied(x), out, atol=1e-5, rtol=1e-5)
    assert getattr(copied[0], change.tensor).equal(weight)  # whoever reads it gets the changed one
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in module.named_parameters()]


@pytest.mark.parametrize("kind", BESIDE)
def test_a_change_for_every_sample_equals_a_loop(kind):
    _, copied, x = adapted(kind)
    (change,) = changes(copied)
    factors = {
        name: torch.randn(SAMPLES, *getattr(change.part, name).shape, requires_grad=True)
        for name in "AB"
    }

    def run(x: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor:
        change.part._parameters.update(factors)
        return copied(x)

    each = [run(x[i : i + 1], {name: f[i] for name, f in factors.items()}) for i in range(SAMPLES)]
    expected = torch.cat(each)
    out = run(x, factors)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    for grad, wanted in zip(
        torch.autograd.grad(out, factors.values(), upstream),
        torch.autograd.grad(expected, factors.values(), upstream),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-4)

    shared = [run(x[:1], {name: f[i] for name, f in factors.items()}) for i in range(SAMPLES)]
    torch.testing.assert_close(run(x[:1], factors), torch.cat(shared), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"each of 4 samples must get .* got shape \[3, "):
        run(torch.cat([x, x])[:3].unsqueeze(-1).squeeze(-1), factors)
    with pytest.raises(ValueError, match="no one weight; only the layer's own forward"):
        copied[0].weight.sum()


def test_padding_stays_zero():
    _, copied, _ = adapted("padding")
    moved(copied)
    assert not copied(torch.tensor([[0]])).any()
    assert not copied[0].weight[0].any()
    assert copied[0].weight[1:].all()


@pytest.mark.parametrize("kind", ["linear", "grouped", "transposed", "Conv1D"])
def test_dora_keeps_norms_times_the_magnitude(kind):
    module, copied, _ = adapted(kind, dora=True)
    moved(copied)
    (change,) = changes(copied)
    norms = [norms_of_outputs(m[0]) for m in (copied, module)]
    torch.testing.assert_close(norms[0], change.part.magnitude * norms[1])


def norms_of_outputs(layer: nn.Module) -> torch.Tensor:
    """The norm of the weights that reach each output, group after group."""
    if isinstance(layer, nn.ConvTranspose2d):
        own = [w[:, o] for w in layer.weight.chunk(layer.groups) for o in range(w.shape[1])]
    else:
        own = list(layer.weight.T if "Conv1D" in type(layer).__name__ else layer.weight)
    return torch.stack([weight.norm() for weight in own])


def test_an_embedding_that_changes_its_own_weight_is_refused():
    with pytest.raises(ValueError, match=r"layer '' .* renorms its weight in place, .* `max_norm`"):
        lora(nn.Embedding(7, 5, max_norm=1.0), 2, [""])


def test_all_weights_of_an_attention_with_other_sizes():
    module, x = OtherSizes(), torch.randn(4, 3, 8)
    copied = lora(module, 2)
    assert {(c.name, c.tensor) for c in changes(copied)} == {
        ("attention", "q_proj_weight"),
        ("attention", "k_proj_weight"),
        ("attention", "v_proj_weight"),
        ("attention.out_proj", "weight"),
    }
    moved(copied)
    out = copied(x)
    torch.testing.assert_close(merge(copied)(x), out, atol=1e-6, rtol=1e-5)
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in module.named_parameters()]


def test_adapters_before_and_after_it_and_a_forward_of_the_layers_own():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    x = torch.randn(4, 5)
    for make in (lambda: nn.Linear(5, 3), lambda: Halved(5, 3)):
        for chain in ([lora, film], [film, lora], [lora, lora]):
            copied = nn.Sequential(make())
            for adapter in chain:
                copied = moved(adapter(copied, 2, "0") if adapter is lora else film(copied, "0"))
            out = copied(x)
            torch.testing.assert_close(merge(copied)(x), out, atol=1e-6, rtol=1e-5)


def test_which_can_be_computed_beside():
    """Only the last change, and of layers whose own forward is called."""
    twice = lora(lora(nn.Sequential(nn.Linear(5, 3)), 2, "0"), 1, "0")
    assert [(c.part.rank, c.beside) for c in changes(twice)] == [(2, False), (1, True)]
    attention = lora(nn.Sequential(Attention(8, 2)), 2)
    assert [c.beside for c in changes(attention)] == [False, False]
    assert not changes(film(lora(nn.Linear(5, 3), 2)))[0].beside


def test_other_parametrizations_on_top_count():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    copied = moved(lora(nn.Linear(5, 3, bias=False), 2))
    x = torch.randn(4, 5)
    out = copied(x)
    parametrize.register_parametrization(copied, "weight", Doubled())
    torch.testing.assert_close(copied(x), 2 * out, atol=1e-6, rtol=1e-5)


# --- quantised layers -----------------------------------------------------------------------


class Packed(torch.Tensor):
    """A weight in bytes, as quantised weights of other packages are: a tensor subclass."""

    def __deepcopy__(self, memo):
        copied = self.as_subclass(torch.Tensor).clone().as_subclass(Packed)
        return nn.Parameter(copied, requires_grad=False)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, *bias = args
            plain = weight.as_subclass(torch.Tensor)
            return function(x, plain.to(x.dtype) / 8, *bias)
        return super().__torch_function__(function, types, args, kwargs or {})


def in_a_subclass() -> nn.Module:
    layer = nn.Linear(5, 3)
    values = torch.randint(-20, 20, (3, 5), dtype=torch.int8).as_subclass(Packed)
    layer.weight = nn.Parameter(values, requires_grad=False)
    return layer


class PackedLinear(nn.Module):
    """A linear layer with two numbers in a byte, in a buffer."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 3
        self.register_buffer("qweight", torch.randint(0, 255, (3, 3), dtype=torch.uint8))
        self.register_buffer("scales", torch.rand(3))

    def forward(self, x):
        unpacked = torch.stack([self.qweight & 15, self.qweight >> 4], -1).view(3, 6)
        return x @ (unpacked.to(x.dtype) * self.scales[:, None]).T


@pytest.mark.parametrize(("make", "n_in"), [(in_a_subclass, 5), (PackedLinear, 6)])
def test_a_quantised_layer_stays_as_it_is(make, n_in):
    module, x = nn.Sequential(make(), nn.Linear(3, 2)), torch.randn(4, n_in)
    copied = lora(module, 2, ["0"], alpha=3)
    assert type(copied[0]).__name__ == type(module[0]).__name__
    assert isinstance(copied[0], type(module[0]))
    torch.testing.assert_close(copied(x), module(x))
    moved(copied)
    part = copied[0].lora
    expected = module[1](module[0](x) + 1.5 * x @ part.A.T @ part.B.T)
    torch.testing.assert_close(copied(x), expected)
    stored = {name: t for name, t in copied.state_dict().items() if "lora" not in name}
    assert all(t.equal(stored[name]) for name, t in module.state_dict().items())
    assert "lora" not in repr(module)
    torch.testing.assert_close(merge(copied)(x), expected)  # it stays beside

    hnet = HyperNetwork(copied, Sparse(), TaskEmbedding(["one", "two"], 8)).eval()
    out = hnet(x, task="two")
    assert not torch.allclose(out, hnet(x, task="one"), atol=1e-4)
    torch.testing.assert_close(hnet.materialize("two")(x), out)
    with pytest.raises(
        ValueError, match="`dora` needs the weight of layer '0', which is quantised"
    ):
        lora(module, 2, ["0"], dora=True)
    with pytest.raises(ValueError, match=r"has a part named 'lora' already|matches no Linear or"):
        lora(copied, 2, ["0"])
    with pytest.raises(ValueError, match="`layers` pattern '0' matches no Linear or Conv"):
        film(module, "0")


def test_factors_of_a_quantised_layer_keep_their_precision():
    layer = in_a_subclass()
    layer.bias = None
    x = torch.randn(4, 5, dtype=torch.bfloat16)
    copied = moved(lora(layer, 2))
    assert copied.lora.A.dtype == torch.float32
    change = x.float() @ copied.lora.A.T @ copied.lora.B.T
    assert copied(x).dtype == torch.bfloat16
    torch.testing.assert_close(copied(x), layer(x) + change.bfloat16())


def test_a_weight_of_many_samples_tells_its_kind_and_is_no_number():
    adapted = lora(nn.Linear(5, 3).double(), 2)
    change = adapted.parametrizations.weight[0]
    change.A = nn.Parameter(torch.zeros(4, 2, 5))
    weight = adapted.weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.dtype, weight.device.type) == (torch.float64, "cpu")
    assert (weight.shape, weight.size(0), weight.ndim, weight.dim()) == ((3, 5), 3, 2, 2)
    assert (weight.numel(), weight.is_cuda, weight.is_floating_point()) == (15, False, True)
    x = torch.zeros(5, dtype=torch.float64)
    uses = [
        lambda: weight + 1,
        lambda: x @ weight.T,
        lambda: nn.functional.linear(x, weight),
        lambda: x.to(weight),
        lambda: weight.detach(),
        lambda: weight.numpy(),
        lambda: weight.tolist(),
        lambda: torch.empty(3, 5, dtype=torch.float64).copy_(weight),
        lambda: weight[0],
    ]
    for use in uses:
        with pytest.raises(ValueError, match="every sample has factors of its own here"):
            use()
