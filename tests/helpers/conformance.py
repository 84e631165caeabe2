"""Tests that every generator and topology must pass, against a dense reference in float64."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sparsehyper.generators import Generator
from sparsehyper.sparse import SparseLinear


def embeddings(batch: int, dim: int, seed: int = 0) -> Tensor:
    """Normalised embeddings, float64."""
    z = torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return nn.functional.layer_norm(z, [dim])


def dense_matrix(layer: SparseLinear) -> Tensor:
    """The layer's weights as a matrix ``[out_features, in_features]``."""
    matrix = torch.zeros(layer.out_features, layer.in_features, dtype=layer.weight.dtype)
    for sources, weights in zip(layer.connections(), layer.weights().detach(), strict=True):
        matrix[torch.arange(layer.out_features), sources.long()] += weights
    return matrix


class ConformingGenerator:
    """The suite: a subclass that has `spec` and `reference` runs all of it."""

    spec: Generator
    latent_dim = 8
    numel = 203

    def reference(self, generator: nn.Module, z: Tensor) -> Tensor:
        """The same map by dense matrices and plain loops."""
        raise NotImplementedError

    @pytest.fixture
    def generator(self) -> nn.Module:
        return self.spec.build(self.latent_dim, self.numel, seed=3).double()

    @pytest.mark.parametrize("batch", [0, 1, 5])
    def test_equals_the_dense_reference(self, generator, batch):
        z = embeddings(batch, self.latent_dim)
        out = generator(z)
        assert out.shape == (batch, self.numel)
        torch.testing.assert_close(out, self.reference(generator, z))

    @pytest.mark.parametrize("batch", [1, 3])
    def test_gradients_equal_the_reference(self, generator, batch):
        z = embeddings(batch, self.latent_dim).requires_grad_()
        weights = torch.linspace(-1, 1, batch * self.numel, dtype=torch.double).view(batch, -1)
        loss = (generator(z).sin() * weights).sum()
        grads = torch.autograd.grad(loss, [z, *generator.parameters()])
        expected = torch.autograd.grad((self.reference(generator, z).sin() * weights).sum(), z)
        torch.testing.assert_close(grads[0], expected[0])
        direction = [torch.full_like(p, 0.5) for p in generator.parameters()]
        with torch.no_grad():  # gradients of the weights, by a central difference along a direction
            values = []
            for sign in (1e-6, -1e-6):
                shifted = copy.deepcopy(generator)
                for p, d in zip(shifted.parameters(), direction, strict=True):
                    p.add_(d, alpha=sign)
                values.append((shifted(z).sin() * weights).sum())
        slope = sum((g * d).sum() for g, d in zip(grads[1:], direction, strict=True))
        torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-3, atol=1e-6)

    def test_every_parameter_gets_a_gradient(self, generator):
        generator(embeddings(3, self.latent_dim)).square().sum().backward()
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_a_row_does_not_depend_on_its_batch(self, generator):
        z = embeddings(4, self.latent_dim)
        rows = torch.cat([generator(row[None]) for row in z])
        torch.testing.assert_close(generator(z), rows)

    def test_same_seed_same_network_and_other_seed_another(self):
        one, two, other = (self.spec.build(self.latent_dim, self.numel, s) for s in (5, 5, 6))
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name
        z = embeddings(1, self.latent_dim).float()
        assert not torch.allclose(one(z), other(z))

    def test_the_global_random_state_is_neither_used_nor_moved(self):
        torch.manual_seed(1)
        one = self.spec.build(self.latent_dim, self.numel)
        after = torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(after, torch.rand(1))
        two = self.spec.build(self.latent_dim, self.numel)
        assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))

    def test_a_state_dict_restores_wiring_and_weights(self, generator):
        other = self.spec.build(self.latent_dim, self.numel, seed=99).double()
        other.load_state_dict(generator.state_dict())
        z = embeddings(2, self.latent_dim)
        assert torch.equal(other(z), generator(z))
        (one,) = torch.autograd.grad(generator(z.requires_grad_()).square().sum(), z)
        (two,) = torch.autograd.grad(other(z).square().sum(), z)
        assert torch.equal(one, two)

    @pytest.mark.parametrize(("latent_dim", "numel"), [(8, 1), (8, 7), (64, 10), (3, 1000)])
    def test_any_size_builds_and_its_parameters_are_counted(self, latent_dim, numel):
        generator = self.spec.build(latent_dim, numel)
        assert generator(embeddings(2, latent_dim).float()).shape == (2, numel)
        count = sum(p.numel() for p in generator.parameters())
        assert self.spec.count_parameters(latent_dim, numel) == count

    @pytest.mark.parametrize("numel", [150, 20_000])
    def test_output_variance_is_one(self, numel):
        z = embeddings(64, 64).float()
        with torch.no_grad():
            moments = [self.spec.build(64, numel, seed)(z).square().mean() for seed in range(8)]
        assert torch.stack(moments).mean() == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize("latent_dim", [0, -1])
    def test_refuses_a_latent_size_below_one(self, latent_dim):
        with pytest.raises(ValueError, match=f"`latent_dim` must be at least 1, got {latent_dim}"):
            self.spec.build(latent_dim, 10)

    def test_refuses_no_parameters(self):
        with pytest.raises(ValueError, match="`layout` must be at least 1, got 0"):
            self.spec.build(8, 0)

    def test_a_budget_too_small_names_the_smallest(self):
        numel, latent_dim = 10_000, 16
        with pytest.raises(ValueError, match=r"`budget` must be at least .*, got 1;") as error:
            self.spec.with_budget(1, latent_dim, numel)
        smallest = int(re.search("at least ([0-9]+)", str(error.value))[1])
        assert self.spec.with_budget(smallest, latent_dim, numel).count_parameters(
            latent_dim, numel
        ) in range(smallest - 20, smallest + 1)
        with pytest.raises(ValueError, match=f"at least {smallest} .*, got {smallest - 1};"):
            self.spec.with_budget(smallest - 1, latent_dim, numel)

    @pytest.mark.parametrize("numel", [1, 1000])
    @pytest.mark.parametrize("budget", [10**7, 10**13])
    def test_no_budget_is_too_large(self, budget, numel):
        count = self.spec.with_budget(budget, 16, numel).count_parameters(16, numel)
        assert 0 < count <= budget

    @pytest.mark.parametrize("weights_a_parameter", [4, 20])
    def test_a_budget_is_met_and_never_exceeded(self, weights_a_parameter):
        numel, latent_dim = 10_000, 16
        budget = weights_a_parameter * numel
        if self.spec.kind == "dense":
            budget = latent_dim * numel
        spec = self.spec.with_budget(budget, latent_dim, numel)
        count = spec.count_parameters(latent_dim, numel)
        assert sum(p.numel() for p in spec.build(latent_dim, numel).parameters()) == count
        assert count <= budget
        if self.spec.kind == "sparse" and count < 0.9 * budget:
            one_more = replace(spec, fan_in=spec.fan_in + 1)
            assert one_more.count_parameters(latent_dim, numel) > budget
