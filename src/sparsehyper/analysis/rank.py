"""How many directions the models that a hypernetwork can generate differ in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import check_integer
from sparsehyper._util.random import normal, seeded
from sparsehyper.analysis.gram import centred, gram_of_outputs
from sparsehyper.hypernetwork import HyperNetwork

# Relative to what is generated, both above float32's rounding.
_AFFINE = 1e-4  # deviation from additivity
_NOTHING = 1e-6  # a singular value that is taken for zero


@dataclass(frozen=True)
class EffectiveRank:
    """The spectrum of what a generator makes of random embeddings.

    Attributes:
        effective_rank: exp of the entropy of the singular values ÷ their sum: r if there are r
            equal ones, less the more they differ, and 0 if all are zero.
        participation_ratio: (Σ σ²)² ÷ Σ σ⁴, another such count, which small singular values add
            less to.
        singular_values: σ, the standard deviations along the principal axes, greatest first.
        exact: over all embeddings, as the generator is affine; else over a sample of them.
    """

    effective_rank: float
    participation_ratio: float
    singular_values: tuple[float, ...]
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {**dataclasses.asdict(self), "singular_values": list(self.singular_values)}


@torch.no_grad()
def effective_rank(
    hnet: HyperNetwork, *, samples: int | None = None, seed: int = 0
) -> EffectiveRank:
    """Effective rank of the generated family: how many directions the models differ in.

    The family is G(z) for all normalised embeddings z, each as likely as any other, and σ² are the
    eigenvalues of its covariance. A normalised embedding has mean zero, so an affine generator has
    ``latent_dim`` - 1 of them; these are worked out exactly, from the inner products of G's
    columns, of which at most 2.5 GiB are kept at a time. For another generator they are those of a
    sample, of which there are at most ``samples`` - 1, so that the rank comes out too low unless it
    is far below that.

    The generated numbers count alike, before they are scaled to the size of each tensor.

    Args:
        hnet: the hypernetwork.
        samples: random embeddings for a generator that is not affine, at least 2; None for four
            times ``latent_dim``.
        seed: of these.

    Raises:
        ValueError: ``samples`` below 2, ``seed`` below 0, or numbers generated that are not finite.

    Source: O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality"
    (EUSIPCO 2007), who normalise the singular values, not their squares.

    >>> from sparsehyper import Dense, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(500, 2), Dense(), TaskEmbedding(2, dim=8))
    >>> found = effective_rank(hnet)
    >>> len(found.singular_values), f"{found.effective_rank:.1f}"
    (7, '7.0')
    """
    generator, dim, like = hnet.generator, hnet.conditioner.dim, hnet.target.moments
    samples = 4 * dim if samples is None else samples
    check_integer("samples", samples, minimum=2)
    check_integer("seed", seed, minimum=0)
    drawn = normal([samples, dim], seeded(seed))
    exact = _is_affine(generator, *drawn[:2].to(like))
    # Taking off the mean confines embeddings to the plane of mean zero, and removes a bias.
    inputs = (torch.eye(dim) if exact else F.layer_norm(drawn, [dim])).to(like)
    products = gram_of_outputs(generator, inputs, hnet.target.numel)
    if not products.isfinite().all():
        raise ValueError("`hnet` must generate finite numbers, got some that are not")
    variances = torch.linalg.eigvalsh(centred(products)).flip(0)[:-1]
    variances[variances <= _NOTHING**2 * products.trace()] = 0
    # The covariance of normalised embeddings is dim / (dim - 1) in that plane.
    variances *= dim / (dim - 1) if exact else 1 / (samples - 1)
    return _spectrum(variances.sqrt(), exact)


def _spectrum(sigma: Tensor, exact: bool) -> EffectiveRank:
    """Of singular values, greatest first."""
    if sigma[0] == 0:
        return EffectiveRank(0.0, 0.0, tuple(sigma.tolist()), exact)
    entropy = torch.special.entr(sigma / sigma.sum()).sum()
    variances = (sigma / sigma[0]).square()
    ratio = variances.sum().square() / variances.square().sum()
    return EffectiveRank(float(entropy.exp()), float(ratio), tuple(sigma.tolist()), exact)


def _is_affine(generator: nn.Module, a: Tensor, b: Tensor) -> bool:
    out_a, out_b, both, none = generator(torch.stack([a, b, a + b, torch.zeros_like(a)]))
    deviation = (both - out_a) + (none - out_b)
    return bool(deviation.norm() <= _AFFINE * (both - none).norm())
