"""The common space in which the samples of all tasks are compared: Gaussian classes.

A sample is its input and the features of the model at the mean embedding (what its last linear
layer gets, or its outputs if a head in closed form follows them), each reduced to their principal
components. A linear map then makes the covariance within classes the identity, and that between
class means diagonal:

    class mean ~ N(centre, between)        sample ~ N(class mean, I)

With n samples of a class, whose mean is m, its next sample is normal with

    mean  centre + g (m - centre),   g = n between / (n between + 1)
    variance  1 + between / (n between + 1)

A class of which nothing is known has n = 0. Directions in which classes are alike count for little,
so that the number of components hardly matters.

Source: probabilistic linear discriminant analysis, S. Ioffe (ECCV 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.inputs import Inputs, logits_of
from sparsehyper._util.last_layer import linear_layers_used
from sparsehyper._util.modes import evaluation_mode, frozen
from sparsehyper._util.random import seeded
from sparsehyper.hypernetwork import HyperNetwork

_COMPONENTS = 64  # of the inputs, and of the features
_FEWEST = 4  # samples, beyond one for each class, that a component needs
_LARGEST_SIDE, _MOST_INPUTS = 32, 4096  # larger inputs are averaged down
_MOST_SAMPLES = 4096  # samples that principal components are taken from
_BATCH = 500  # samples at a time


class Located(NamedTuple):
    """Samples in the space."""

    z: Tensor  # [n, D]
    y: Tensor  # class numbers [n]


@dataclass(frozen=True, eq=False, repr=False)
class Space:
    """The common space; made by `fit_space`.

    Attributes:
        embedding: embedding ``[latent_dim]`` of the model whose features are used.
        statistics: its batch-norm statistics.
        input_mean, input_basis: principal components of the inputs, ``[inputs]`` and
            ``[inputs, d]``; ``inputs`` is 0 for inputs that are not floating-point numbers.
        feature_mean, feature_basis: the same for the features.
        whitener: ``[D, D]``, from all components to the coordinates of the space.
        centre, between: mean and variances of class means, ``[D]``.
    """

    embedding: Tensor
    statistics: tuple[Tensor, ...]
    input_mean: Tensor
    input_basis: Tensor
    feature_mean: Tensor
    feature_basis: Tensor
    whitener: Tensor
    centre: Tensor
    between: Tensor

    @torch.no_grad()
    def locate(self, hnet: HyperNetwork, x: Any) -> Tensor:
        """Coordinates ``[n, D]`` of samples; ``x`` are inputs as `Inputs.of` takes them."""
        model = _model(hnet, self.embedding, self.statistics)
        return self._coordinates(*_describe(model, x, ends=hnet.head is None))

    def _coordinates(self, inputs: Tensor, features: Tensor) -> Tensor:
        parts = [
            (inputs - self.input_mean) @ self.input_basis,
            (features - self.feature_mean) @ self.feature_basis,
        ]
        return torch.cat(parts, 1) @ self.whitener

    def log_density(self, z: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        """Log-density ``[n, classes]`` of samples in classes, less a constant.

        Args:
            z: samples ``[n, D]``.
            counts: number of known samples of each class, ``[classes]``.
            means: their mean, ``[classes, D]``.
        """
        expected, variances = self._predict(counts, means)
        precise = 1 / variances
        squares = z.square() @ precise.T - 2 * z @ (expected * precise).T
        return -0.5 * (squares + (expected.square() * precise + variances.log()).sum(1))

    def log_density_alone(
        self, located: Located, counts: Tensor, means: Tensor, copies: Tensor
    ) -> Tensor:
        """Log-density ``[n]`` of samples in their own classes, each as if it were not known.

        Args:
            located: the samples.
            counts, means: as for `log_density`, with these samples.
            copies: number of samples ``[n]`` that equal each one, with itself.
        """
        z, y = located
        others = counts[y] - copies
        without = counts[y][:, None] * means[y] - copies[:, None] * z
        without = without / others.clamp(min=1)[:, None]
        expected, variances = self._predict(others, without)
        return -0.5 * ((z - expected).square() / variances + variances.log()).sum(1)

    def log_density_unknown(self, z: Tensor) -> Tensor:
        """Log-density ``[n]`` of samples in a class of which nothing is known."""
        return self.log_density(z, z.new_zeros(1), self.centre[None])[:, 0]

    def _predict(self, counts: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variances of the next sample of classes, ``[classes, D]`` each."""
        known = counts[:, None] * self.between
        expected = self.centre + known / (known + 1) * (means - self.centre)
        return expected, 1 + self.between / (known + 1)


def fit_space(
    hnet: HyperNetwork, samples: Sequence[tuple[Any, Tensor]]
) -> tuple[Space, list[Located]]:
    """Make the space of some tasks.

    Args:
        hnet: hypernetwork with named tasks.
        samples: inputs, as `Inputs.of` takes them, and class numbers of each task.

    Returns:
        The space, and the samples in it.
    """
    with evaluation_mode(hnet):
        embedding = torch.stack([hnet.embedding(name) for name in hnet.tasks.names]).mean(0)
    statistics = tuple(hnet.target.statistics.row(hnet.target.module, None))
    model = _model(hnet, embedding, statistics)
    described = [_describe(model, x, ends=hnet.head is None) for x, _ in samples]
    inputs, features = map(torch.cat, zip(*described, strict=True))
    labels = torch.cat([y + (task << 32) for task, (_, y) in enumerate(samples)])
    owners = labels.unique(return_inverse=True)[1]  # class numbers over all tasks
    free = len(owners) - int(owners.max()) - 1
    if free < 1:
        raise ValueError("`tasks` must have a class with at least two samples, got none")
    most = max(1, min(_COMPONENTS, free // _FEWEST))
    inputs_about, features_about = (_principal(part, most) for part in (inputs, features))
    dim = inputs_about[1].shape[1] + features_about[1].shape[1]
    if dim == 0:
        raise ValueError("`tasks` must have samples that differ from one another, got equal ones")
    space = Space(
        embedding,
        statistics,
        *inputs_about,
        *features_about,
        whitener=torch.eye(dim).to(features),
        centre=features.new_zeros(dim),
        between=features.new_ones(dim),
    )
    whitener, centre, between = _discriminant(space._coordinates(inputs, features), owners)
    space = replace(space, whitener=whitener, centre=centre, between=between)
    pairs = zip(described, samples, strict=True)
    return space, [Located(space._coordinates(*parts), y) for parts, (_, y) in pairs]


def class_means(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Number of samples ``[classes]`` and mean ``[classes, D]`` of each class; 0 without any."""
    counts = torch.bincount(y).to(z)
    sums = z.new_zeros(len(counts), z.shape[1]).index_add_(0, y, z)
    return counts, sums / counts.clamp(min=1)[:, None]


def _model(hnet: HyperNetwork, embedding: Tensor, statistics: Sequence[Tensor]) -> nn.Module:
    """The model whose features are used."""
    target = hnet.target
    with frozen(hnet):
        tensors = target.unpack(hnet.raw_theta(embedding[None])[0])
    return target.materialize(tensors, statistics).eval()


def _describe(model: nn.Module, x: Any, *, ends: bool) -> tuple[Tensor, Tensor]:
    """Inputs and features of samples, each float32 ``[n, numbers]``.

    Args:
        model: the model whose features are used.
        x: inputs of the samples.
        ends: whether the model has its last layer; else its outputs are the features.
    """
    pieces = Inputs.of(x).split(_BATCH)
    inputs = torch.cat([torch.cat(list(map(_reduced, some.in_fixed_order)), 1) for some in pieces])
    features = torch.cat([_features(model, some, ends=ends) for some in pieces])
    if wrong := int((~features.isfinite()).any(1).sum()):
        raise ValueError(
            f"the features that `hnet` gives must be finite, got others for {wrong} of "
            f"{len(features)} samples; look at its parameters"
        )
    return inputs, features


def _reduced(x: Tensor) -> Tensor:
    """Inputs as at most 4,096 numbers each; of images, those of at most 32 × 32 pixels."""
    if not x.is_floating_point():
        return torch.zeros(len(x), 0, device=x.device)
    x = x.float()
    if x.ndim == 4:
        height, width = (min(side, _LARGEST_SIDE) for side in x.shape[2:])
        x = F.adaptive_avg_pool2d(x, (height, width))
    x = x.flatten(1) if x.ndim > 1 else x[:, None]
    return x if x.shape[1] <= _MOST_INPUTS else F.adaptive_avg_pool1d(x, _MOST_INPUTS)


def _features(model: nn.Module, x: Inputs, *, ends: bool) -> Tensor:
    """What the linear layer gets that is used last, or the outputs if there is none."""
    used, found = linear_layers_used(model, *x.args, **x.kwargs)
    found = used[-1].given if ends and used else logits_of(found)
    if not isinstance(found, Tensor) or found.shape[:1] != (len(x),):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"`hnet` must give outputs [n, …] of n samples, got {shape}")
    # Of a sequence, the mean over its places.
    return found.float().reshape(len(x), -1, found.shape[-1] if found.ndim > 1 else 1).mean(1)


def _principal(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Mean ``[inputs]`` and at most ``most`` principal components ``[inputs, d]`` of samples.

    Source: a randomised range finder with power iterations, N. Halko et al., "Finding structure
    with randomness" (SIAM Review 2011).
    """
    mean = x.mean(0)
    chosen = torch.linspace(0, len(x) - 1, min(len(x), _MOST_SAMPLES), dtype=torch.float64).long()
    rows = x[chosen.to(x.device)]
    least = 1e-6 * rows.norm()  # beyond rounding
    rows = rows - mean
    count = min(most, *rows.shape)
    probe = torch.randn(rows.shape[1], min(count + 10, *rows.shape), generator=seeded(0))
    found = rows @ probe.to(rows)
    for _ in range(4):
        found = torch.linalg.qr(rows @ (rows.T @ found))[0]
    _, sizes, directions = torch.linalg.svd(found.T @ rows, full_matrices=False)
    kept = sizes[:count] > torch.maximum(least, 1e-5 * sizes[:1])
    return mean, directions[:count][kept].T.contiguous()


def _discriminant(z: Tensor, owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whitener ``[D, D]``, and mean and variances ``[D]`` of class means after it.

    Args:
        z: components ``[n, D]`` of samples.
        owners: class number of each sample.
    """
    wide, dim = z.double(), z.shape[1]
    counts, means = class_means(wide, owners)
    residuals = wide - means[owners]
    free = len(z) - len(means)
    within = residuals.T @ residuals / free
    # Covariances of different components are drawn towards 0 where they are of few samples.
    diagonal = within.diagonal() + 1e-6 * wide.var(0).mean()
    within = (free * within + dim * diagonal.diag()) / (free + dim)
    whitener = torch.linalg.inv(torch.linalg.cholesky(within)).T
    means = means @ whitener
    centre = means.mean(0)
    spread = (means - centre).T @ (means - centre) / max(1, len(means) - 1)
    spread = spread - (1 / counts).mean() * torch.eye(dim).to(wide)
    between, rotation = torch.linalg.eigh(spread)
    between = between.clamp(min=0)
    # New classes may differ where the known ones happen to be alike.
    between = ((len(means) - 1) * between + between.mean()) / len(means)
    found = whitener @ rotation, centre @ rotation, between
    whitener, centre, between = (part.to(z.dtype) for part in found)
    return whitener, centre, between
