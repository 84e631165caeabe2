from __future__ import annotations

import functools

import pytest
import torch

from helpers.conformance import ConformingGenerator, dense_matrix, embeddings
from sparsehyper._util.random import seeded
from sparsehyper.generators import ACTIVATIONS, Sparse
from sparsehyper.sparse import TOPOLOGIES
from sparsehyper.sparse.topology import draw_sources


class ConformingSparse(ConformingGenerator):
    def reference(self, generator, z):
        x = z
        for i, layer in enumerate(generator.layers):
            x = x @ dense_matrix(layer).T
            if layer.bias is not None:
                outputs = torch.arange(layer.out_features)
                x = x + layer.bias[outputs % layer.columns]
            if i < len(generator.layers) - 1:
                slope = ACTIVATIONS[self.spec.activation]
                x = torch.where(x > 0, x, slope * x)
        return x


class TestLinearCirculant(ConformingSparse):
    spec = Sparse()


class TestWideCirculant(ConformingSparse):
    """Wide enough for the slices of the circulant product, with an incomplete last copy."""

    spec = Sparse(growth=1.7)
    numel = 9001


class TestAffineUniform(ConformingSparse):
    spec = Sparse(topology="uniform", bias=True, fan_in=3)


class TestLocalPReLU(ConformingSparse):
    spec = Sparse(topology="local", activation="prelu", fan_in="geometric")


class TestRegularReLU(ConformingSparse):
    spec = Sparse(topology="regular", activation="relu", growth=1.5)


class TestMixedLeakyReLU(ConformingSparse):
    spec = Sparse(topology="mixed", activation="leaky_relu", bias=True)


class TestLocalAbs(ConformingSparse):
    spec = Sparse(topology="local", sigma=0.0, activation="abs", growth=4.0)


class TestShared(ConformingSparse):
    spec = Sparse(share=2.5)


class TestSharedUniformPReLU(ConformingSparse):
    spec = Sparse(topology="uniform", activation="prelu", bias=True, share=40)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("share", [1, 8, 40])
def test_sharing_weights_leaves_the_models_as_many_directions(topology, share):
    generator = Sparse(topology=topology, share=share).build(16, 100_000)
    with torch.no_grad():
        models = generator(torch.eye(16))
    values = torch.linalg.svdvals((models @ models.T).double()).sqrt()
    assert values[-1] > 0.02 * values[0]


@pytest.mark.parametrize("share", [4, 4000])
def test_sharing_leaves_the_variance(share):
    z = embeddings(64, 64).float()
    with torch.no_grad():
        moments = [Sparse(share=share).build(64, 200_000, s)(z).square().mean() for s in range(4)]
    for moment in moments:
        assert moment == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("budget", [0.05, 0.3, 1, 3.9])
@pytest.mark.parametrize("bias", [False, True])
def test_small_budgets_are_met_by_sharing(budget, bias):
    numel = 50_000
    spec = Sparse(bias=bias).with_budget(int(budget * numel), 16, numel)
    count = spec.count_parameters(16, numel)
    assert 0.95 * budget * numel < count <= budget * numel
    assert sum(p.numel() for p in spec.build(16, numel).parameters()) == count
    assert spec == Sparse(bias=bias, share=spec.share)
    assert spec.share > 1


@pytest.mark.parametrize(
    ("fan_in", "budget", "expected"),
    [
        ("linear", 4.1, "linear"),
        ("linear", 5.5, "linear"),
        ("linear", 6.1, 3),
        ("linear", 16.1, 8),
        (2, 6.1, 3),
        (3, 7.9, 3),
        ("geometric", 100, 50),
    ],
)
def test_large_budgets_are_spent_on_connections(fan_in, budget, expected):
    numel = 50_000
    spec = Sparse(fan_in, share=8).with_budget(int(budget * numel), 16, numel)
    assert spec == Sparse(expected)
    count = spec.count_parameters(16, numel)
    assert count <= budget * numel
    assert sum(p.numel() for p in spec.build(16, numel).parameters()) == count


# Depth n comes from a growth of (numel / latent)^(1/n).
DEPTHS = {1: (2.0, 60), 3: (2.5, 600), 20: (1.2, 2200)}


@pytest.mark.parametrize(
    ("topology", "fan_in"),
    [*((topology, "linear") for topology in TOPOLOGIES), ("circulant", "geometric"), ("local", 3)],
)
def test_output_variance_is_one_at_every_depth(topology, fan_in, monkeypatch):
    @functools.cache
    def draw_once(*sizes, sigma, rng_seed):  # for all activations, to save time
        return draw_sources(*sizes, sigma=sigma, rng=seeded(rng_seed))

    monkeypatch.setattr(
        "sparsehyper.sparse.linear.draw_sources",
        lambda *sizes, sigma, rng: draw_once(*sizes, sigma=sigma, rng_seed=rng.initial_seed()),
    )
    z = embeddings(256, 64).float()
    usual = (topology, fan_in) == ("circulant", "linear")  # scales follow whatever the wiring is
    for depth, (growth, numel) in DEPTHS.items():
        for activation in ACTIVATIONS if usual else (Sparse().activation, "relu"):
            spec = Sparse(fan_in, growth, topology, activation=activation)
            assert len(spec.layer_shapes(64, numel)) == depth
            with torch.no_grad():
                moments = [spec.build(64, numel, seed)(z).square().mean() for seed in range(3)]
            moment = torch.stack(moments).mean()
            assert moment == pytest.approx(1, abs=0.1), (depth, activation)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_latent_unit_reaches_outputs_all_over(topology):
    """The thesis's normal connectivity collapsed at the output layer; ours must not."""
    latent_dim, numel = 16, 4096
    generator = Sparse(topology=topology).build(latent_dim, numel)
    reach = torch.eye(latent_dim)
    for layer in generator.layers:
        reach = (reach @ (dense_matrix(layer) != 0).float().T > 0).float()
        used = (dense_matrix(layer) != 0).any(0).float().mean()
        assert used > 0.75, f"{topology} uses {used:.0%} of the inputs of {layer}"
    assert reach.mean() > 0.9
    assert reach.mean(1).min() > 0.7


def test_a_linear_generator_is_linear_and_one_with_an_activation_is_not():
    a, b = embeddings(2, 8)
    for activation, linear in (("none", True), ("prelu", False)):
        g = Sparse(activation=activation).build(8, 500).double()
        together = g((a + b)[None])
        assert torch.allclose(together, g(a[None]) + g(b[None])) is linear


def test_cost_is_about_four_weights_a_parameter_and_less_with_growth():
    numel = 1_000_000
    assert Sparse().count_parameters(64, numel) / numel == pytest.approx(4, rel=0.02)
    assert Sparse(growth=8).count_parameters(64, numel) / numel == pytest.approx(1.31, rel=0.01)


def test_wiring_and_weights_are_the_same_on_every_machine():
    """A golden digest: it changes only if a seed gives a different network."""
    digests = {}
    for topology in TOPOLOGIES:
        generator = Sparse(topology=topology, fan_in=3).build(8, 300, seed=1)
        total = 0
        for name, value in generator.state_dict().items():
            if name.endswith(("shifts", "sources")):
                total += int((value.long() * torch.arange(value.numel()).view_as(value)).sum())
        weights = generator.layers[-1].weight
        digests[topology] = (total, round(weights[0, 7].item(), 7))
    assert digests == GOLDEN


GOLDEN = {
    "circulant": (2401, -0.126263),
    "local": (37728017, -0.0428484),
    "mixed": (38187270, 0.9947781),
    "regular": (34741764, 0.5989763),
    "uniform": (35463585, -0.8024087),
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fan_in": 0}, "`fan_in` must be at least 1, got 0"),
        ({"fan_in": "quadratic"}, "`fan_in` must be an integer or one of .*, got 'quadratic'"),
        ({"growth": 1}, "`growth` must be greater than 1, got 1"),
        ({"growth": 0.5}, "`growth` must be greater than 1, got 0.5"),
        ({"growth": float("inf")}, "`growth` must be finite, got inf"),
        ({"topology": "ring"}, "`topology` must be one of 'circulant', .*; got 'ring'"),
        ({"sigma": -1.0}, "`sigma` must be at least 0, got -1.0"),
        ({"activation": "gelu"}, "`activation` must be one of 'none', .*; got 'gelu'"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Sparse(**settings)


def test_refuses_a_growth_that_is_no_number():
    with pytest.raises(TypeError, match="`growth` must be a number, got '2'"):
        Sparse(growth="2")


def test_hooks_of_layers_run():
    generator = Sparse().build(latent_dim=8, layout=100)
    z, seen = torch.randn(2, 8), []
    plain = generator(z)
    generator.layers[0].register_forward_pre_hook(lambda *_: seen.append("first"))
    torch.testing.assert_close(generator(z), plain)
    assert seen == ["first"]
