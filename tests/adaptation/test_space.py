from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from helpers.small_tasks import samples
from sparsehyper import HyperNetwork, Ridge, Sparse, TaskEmbedding
from sparsehyper.adaptation.space import Located, class_means, fit_space


@pytest.fixture
def fitted(make):
    return fit_space(make(tasks=2), [samples(0), samples(1)])


def test_classes_have_unit_covariance_and_their_means_are_uncorrelated(fitted):
    space, located = fitted
    residuals, means = [], []
    for z, y in located:
        of_class = class_means(z, y)[1]
        residuals.append(z - of_class[y])
        means.append(of_class)
    together = torch.cat(residuals)
    covariance = together.T @ together / (len(together) - 6)
    # correlations are shrunk, as there are not many samples
    torch.testing.assert_close(
        covariance.trace() / len(covariance), torch.tensor(1.0), rtol=0.2, atol=0
    )
    torch.testing.assert_close(torch.cat(means).mean(0), space.centre, atol=1e-4, rtol=1e-4)
    assert (space.between >= 0).all()
    assert space.between.max() > 0.5


def exact(space, z: Tensor, seen: Tensor) -> Tensor:
    """Log-density of a sample given others of its class, from their joint distribution."""
    count, dim = len(seen) + 1, len(z)
    joint = torch.kron(torch.ones(count, count), space.between.diag()) + torch.eye(count * dim)
    mean = space.centre.repeat(count)

    def log_density(x: Tensor, n: int) -> Tensor:
        part = MultivariateNormal(mean[: n * dim].double(), joint[: n * dim, : n * dim].double())
        return part.log_prob(x.double()) if n else torch.zeros(())

    everything = log_density(torch.cat([seen.flatten(), z]), count)
    before = log_density(seen.flatten(), count - 1) if count > 1 else torch.zeros(())
    return everything - before + dim / 2 * torch.tensor(2 * torch.pi).log()


def test_densities_are_those_of_the_next_sample(fitted):
    space, [(z, y), _] = fitted
    seen = z[y == 1][:3]
    found = space.log_density(z[:1], torch.tensor([3.0]), seen.mean(0)[None])[0, 0]
    torch.testing.assert_close(found.double(), exact(space, z[0], seen), rtol=1e-3, atol=1e-3)
    unknown = space.log_density_unknown(z[:1])[0]
    torch.testing.assert_close(unknown.double(), exact(space, z[0], z[:0]), rtol=1e-3, atol=1e-3)


def test_a_sample_is_left_out_of_its_own_class(fitted):
    space, (located, _) = fitted
    z, y = located
    every = torch.ones(len(y))
    found = space.log_density_alone(located, *class_means(z, y), every)
    several = Located(z.repeat(3, 1), y.repeat(3))
    copied = space.log_density_alone(several, *class_means(*several), 3 * every.repeat(3))
    for i in (0, 7):
        rest = torch.arange(len(z)) != i
        counts, means = class_means(z[rest], y[rest])
        expected = space.log_density(z[i : i + 1], counts, means)[0, y[i]]
        torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-3)
        rest = rest.repeat(3)
        counts, means = class_means(several.z[rest], several.y[rest])
        expected = space.log_density(z[i : i + 1], counts, means)[0, y[i]]
        torch.testing.assert_close(copied[i], expected, rtol=1e-3, atol=1e-3)


def test_samples_are_located_as_the_known_ones_were(make):
    hnet = make(tasks=2)
    x, y = samples(0, count=600)  # more than at a time
    space, ((z, _), _) = fit_space(hnet, [(x, y), samples(1)])
    torch.testing.assert_close(space.locate(hnet, x), z)
    torch.testing.assert_close(space.locate(hnet, x[5:6]), z[5:6])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 50), (6000,)])
def test_inputs_of_any_size(shape):
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    module(torch.zeros(1, *shape))
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(["a", "b"], dim=16))
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0))
    space, _ = fit_space(hnet, [(x, torch.arange(40) % 2), (x + 1, torch.arange(40) % 2)])
    assert len(space.input_mean) <= 4096
    assert len(space.feature_mean) == 4
    assert space.locate(hnet, x[:3]).isfinite().all()


def test_features_before_a_head_are_what_the_target_returns():
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(["a", "b"], dim=16), head=Ridge())
    (x, y), other = samples(0), samples(1)
    space, _ = fit_space(hnet, [(x, y), other])
    mean = torch.stack([hnet.embedding(name) for name in ("a", "b")]).mean(0)
    features = torch.cat([hnet.features(some, task=mean) for some in (x, other[0])])
    torch.testing.assert_close(space.feature_mean, features.mean(0), rtol=1e-4, atol=1e-5)


def test_targets_that_give_no_tensor_are_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.weight, x

    hnet = HyperNetwork(Two(), Sparse(), TaskEmbedding(["a"], dim=16))
    with pytest.raises(ValueError, match=r"`hnet` must give outputs \[n, …\] of n .*, got tuple"):
        fit_space(hnet, [samples(0)])


def test_inputs_by_name_in_any_order_are_the_same():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, p, q):
            return self.layer(torch.cat([p, q], 1))

    x, y = samples(0)
    hnet = HyperNetwork(Two(), Sparse(), TaskEmbedding(["a", "b"], dim=8))
    first, second = {"q": x[:, :2], "p": x[:, 2:]}, {"p": x[:, 2:], "q": x[:, :2]}
    space, _ = fit_space(hnet, [(first, y), (second, y)])
    torch.testing.assert_close(space.locate(hnet, first), space.locate(hnet, second))
