from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from sparsehyper import (
    Butterfly,
    Chunked,
    Composed,
    Dense,
    Generator,
    HyperNetwork,
    LowRank,
    Sparse,
    TaskEmbedding,
)
from sparsehyper.target.initialisation import initial_moments

NETWORKS, TASKS = 20, 10


def generated_std(target: nn.Module, generator: Generator, **settings) -> dict[str, float]:
    """Spread of each generated tensor around its mean, over networks, tasks and elements."""
    squares: dict[str, list[torch.Tensor]] = {}
    for seed in range(NETWORKS):
        embedding = TaskEmbedding(TASKS, 64, seed=seed)
        hnet = HyperNetwork(target, generator, embedding, seed=seed, **settings)
        with torch.no_grad():
            mean = nn.utils.parameters_to_vector(hnet.target.unpack(torch.zeros(hnet.target.numel)))
            deviation = hnet.theta(hnet.conditioner.weight) - mean
        for theta in deviation:
            for spec in hnet.target.layout:
                value = theta[spec.offset : spec.offset + spec.numel]
                squares.setdefault(spec.name, []).append(value.square().mean())
    return {name: float(torch.stack(values).mean().sqrt()) for name, values in squares.items()}


@cache
def torch_std(make: Callable[[], nn.Module], name: str) -> float:
    """Standard deviation that PyTorch's own initialisation gives a tensor, over many copies."""
    values = [make().get_parameter(name).detach().reshape(-1) for _ in range(200)]
    return float(torch.cat(values).std())


LAYERS = {
    "linear": (lambda: nn.Linear(20, 30), ("weight", "bias")),
    "bilinear": (lambda: nn.Bilinear(7, 5, 30), ("weight", "bias")),
    "conv1d": (lambda: nn.Conv1d(4, 30, 3), ("weight", "bias")),
    "conv2d": (lambda: nn.Conv2d(6, 30, 3), ("weight", "bias")),
    "grouped conv2d": (lambda: nn.Conv2d(12, 24, 3, groups=4), ("weight", "bias")),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(8, 30, 3), ("weight", "bias")),
    "embedding": (lambda: nn.Embedding(20, 10), ("weight",)),
    "embedding bag": (lambda: nn.EmbeddingBag(20, 10), ("weight",)),
    "lstm": (lambda: nn.LSTM(5, 12), ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")),
    "gru cell": (lambda: nn.GRUCell(5, 12), ("weight_ih", "weight_hh", "bias_hh")),
    "attention": (lambda: nn.MultiheadAttention(12, 2), ("in_proj_weight", "out_proj.weight")),
    "attention, other sizes": (
        lambda: nn.MultiheadAttention(12, 2, kdim=6, vdim=8),
        ("q_proj_weight", "k_proj_weight", "v_proj_weight"),
    ),
}


@pytest.mark.parametrize("generator", [Dense(), Sparse(), Sparse(activation="prelu")])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_generated_tensor_varies_like_an_ordinary_one(layer, generator):
    make, names = LAYERS[layer]
    std = generated_std(make(), generator)
    for name in names:
        assert std[name] == pytest.approx(torch_std(make, name), rel=0.1), name


def one_of_each() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "linear": nn.Linear(40, 60),
            "conv": nn.Conv2d(8, 40, 3),
            "norm": nn.LayerNorm(100),
            "attention": nn.MultiheadAttention(24, 2),
            "embedding": nn.Embedding(40, 30),
        }
    )


GENERATORS = {
    "dense": Dense(),
    "dense, MLP": Dense(hidden=30),
    "chunked": Chunked(7),
    "chunked by tensor": Chunked(7, by="tensor"),
    "chunked by filter": Chunked(by="filter"),
    "sparse": Sparse(),
    "sparse, affine": Sparse(bias=True),
    "sparse, prelu": Sparse(activation="prelu"),
    "sparse, local": Sparse(topology="local"),
    "sparse, growth 8": Sparse(growth=8),
    "sparse, shared": Sparse(share=8),
    "butterfly": Butterfly(stages=6),
    "benes": Butterfly(benes=True),
    "low rank": LowRank(4, Sparse()),
    "composed": Composed({"*bias": Dense(), "*": Sparse()}),
}


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_generator_gives_every_kind_of_tensor_its_variance(generator):
    std = generated_std(one_of_each(), GENERATORS[generator])
    for name in ("linear.weight", "linear.bias", "conv.weight", "conv.bias", "embedding.weight"):
        assert std[name] == pytest.approx(torch_std(one_of_each, name), rel=0.1), name
    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        assert std[name] == pytest.approx(torch_std(one_of_each, name), rel=0.1), name
    for name in ("norm.weight", "norm.bias"):  # a deviation of 0.1 from 1 and from 0
        assert std[name] == pytest.approx(0.1, rel=0.1), name


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_generator_starts_norms_around_scale_one_and_shift_zero(generator):
    hnet = HyperNetwork(one_of_each(), GENERATORS[generator], TaskEmbedding(200, 64))
    with torch.no_grad():
        theta = hnet.theta(hnet.conditioner.weight).mean(0)
    means = {s.name: theta[s.offset : s.offset + s.numel].mean() for s in hnet.target.layout}
    assert means["norm.weight"] == pytest.approx(1, abs=0.02)
    assert means["norm.bias"] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(50), nn.LayerNorm(50), nn.GroupNorm(5, 50), nn.RMSNorm(50)]
)
def test_norms_start_around_scale_one_and_shift_zero(norm):
    hnet = HyperNetwork(norm, Dense(), TaskEmbedding(200, 64))
    with torch.no_grad():
        tensors = [hnet.generate(task) for task in range(200)]
    scale = torch.stack([t["weight"] for t in tensors])
    assert scale.mean() == pytest.approx(1, abs=0.02)
    assert scale.std() == pytest.approx(0.1, rel=0.1)
    if getattr(norm, "bias", None) is not None:
        shift = torch.stack([t["bias"] for t in tensors])
        assert shift.mean() == pytest.approx(0, abs=0.02)
        assert shift.std() == pytest.approx(0.1, rel=0.1)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(30))
        self.offset = nn.Parameter(torch.zeros(30))
        self.scalar = nn.Parameter(torch.tensor(-2.0))
        self.table = nn.Parameter(3 + 0.5 * torch.randn(40, 50))

    def forward(self, x):
        return x * self.gain + self.offset + self.scalar + self.table.sum()


def test_a_parameter_of_no_known_layer_keeps_its_own_moments():
    module = Own()
    assert initial_moments(module, "gain", module.gain) == (1.0, 0.1)
    assert initial_moments(module, "offset", module.offset) == (0.0, 0.02)
    assert initial_moments(module, "scalar", module.scalar) == (-2.0, 0.2)
    mean, std = initial_moments(module, "table", module.table)
    assert mean == pytest.approx(float(module.table.detach().mean()))
    assert std == pytest.approx(0.5, rel=0.05)


HYPERFAN = [  # layer, rule, variance of its weight and of its bias
    (nn.Linear(20, 30), "hyperfan_in", 1 / 20, 1.0),
    (nn.Linear(20, 30, bias=False), "hyperfan_in", 2 / 20, None),
    (nn.Linear(20, 30), "hyperfan_out", 2 / 30, 2 / 3),
    (nn.Linear(30, 20), "hyperfan_out", 2 / 20, 0.02**2),
    (nn.Conv2d(6, 30, 3), "hyperfan_in", 1 / 54, 1.0),
    (nn.Conv2d(6, 30, 3), "hyperfan_out", 2 / 270, 2 * (1 - 54 / 270)),
    (nn.Conv2d(12, 24, 3, groups=4), "hyperfan_out", 2 / 54, 2 * (1 - 27 / 54)),
    (nn.ConvTranspose2d(8, 32, 4, stride=2), "hyperfan_in", 1 / 32, 1.0),
]


@pytest.mark.parametrize(("layer", "rule", "weight", "bias"), HYPERFAN)
def test_hyperfan_variances(layer, rule, weight, bias):
    std = generated_std(layer, Chunked(7), init=rule)
    assert std["weight"] ** 2 == pytest.approx(weight, rel=0.1)
    if bias is not None:
        assert std["bias"] ** 2 == pytest.approx(bias, rel=0.2)


def test_a_bias_that_is_not_generated_takes_no_part():
    std = generated_std(nn.Linear(20, 30), Dense(), init="hyperfan_in", generate="weight")
    assert std["weight"] ** 2 == pytest.approx(2 / 20, rel=0.1)


def test_a_layer_that_starts_without_effect_nearly_does():
    layer = nn.Linear(20, 30)
    assert initial_moments(layer, "weight", nn.init.zeros_(layer.weight)) == (0.0, 0.02)
    assert initial_moments(layer, "bias", layer.bias) == (0.0, pytest.approx(60**-0.5))


def test_scale_multiplies_every_deviation_and_no_mean():
    target = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30))
    full, tenth = (generated_std(target, Dense(), scale=scale) for scale in (1, 0.1))
    for name, std in full.items():
        assert tenth[name] == pytest.approx(std / 10, rel=1e-3)


def test_a_deep_generated_network_keeps_its_signal_like_an_ordinary_one():
    def make() -> nn.Sequential:
        layers = [m for _ in range(6) for m in (nn.Linear(60, 60), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(60, 60))

    x = torch.randn(100, 60)
    hnet = HyperNetwork(make(), Sparse(), TaskEmbedding(20, 64))
    with torch.no_grad():
        generated = torch.stack([hnet(x, task=t).std() for t in range(20)]).mean()
        ordinary = torch.stack([make()(x).std() for _ in range(20)]).mean()
    assert math.log(generated / ordinary) == pytest.approx(0, abs=0.2)


def test_biases_of_attention():
    layer = nn.MultiheadAttention(12, 2)  # PyTorch starts them at 0
    assert initial_moments(layer, "in_proj_bias", layer.in_proj_bias) == (0, 0.02)
    found = initial_moments(layer.out_proj, "bias", layer.out_proj.bias)
    assert found == pytest.approx((0, (3 * 12) ** -0.5))
