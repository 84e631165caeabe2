"""The effective rank: in how many directions the models of a hypernetwork differ."""

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

# Both are relative to the outputs, and above float32's rounding.
_AFFINE_TOLERANCE = 1e-4  # deviation from additivity
_ZERO_TOLERANCE = 1e-6  # singular values up to this count as zero


@dataclass(frozen=True)
class EffectiveRank:
    """The spectrum of a generator's outputs for random embeddings.

    Attributes:
        effective_rank: exp of the entropy of the singular values ÷ their sum: r for r equal ones,
            less the more they differ, and 0 if all are zero.
        participation_ratio: (Σ σ²)² ÷ Σ σ⁴, a similar count, in which small singular values count
            less.
        singular_values: Standard deviations σ along the principal axes, greatest first.
        exact: Whether the spectrum is that of all embeddings, because the generator is affine;
            otherwise it is that of a sample.
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
    """Effective rank of the generated family: the number of directions in which models differ.

    The family is G(z) for uniformly distributed normalised embeddings z; σ² are the eigenvalues of
    its covariance. A normalised embedding has mean zero, so an affine generator has
    ``latent_dim`` - 1 of them. They are computed exactly, from the inner products of G's columns,
    of which at most 2.5 GiB are held at a time. For other generators they are estimated
    from a sample and number at most ``samples`` - 1; the estimate is too low unless the true rank
    is far smaller.

    All generated numbers have the same weight: they are taken before ``scale`` is applied.

    Args:
        hnet: the hypernetwork.
        samples: number of random embeddings for a generator that is not affine, at least 2; None
            for four times ``latent_dim``.
        seed: seed of these embeddings.

    Raises:
        ValueError: ``samples`` below 2, ``seed`` below 0, or generated numbers that are not finite.

    Source: O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality"
    (EUSIPCO 2007), who normalise the singular values, not their squares.

    >>> from sparsehyper import Dense, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(500, 2), Dense(), TaskEmbedding(2, dim=8))
    >>> found = effective_rank(hnet)
    >>> len(found.singular_values), f"{found.effective_rank:.1f}"
    (7, '7.0')
    """
    generator, dim = hnet.generator, hnet.conditioner.dim
    samples = 4 * dim if samples is None else samples
    check_integer("samples", samples, minimum=2)
    check_integer("seed", seed, minimum=0)
    drawn = normal([samples, dim], seeded(seed))
    exact = _is_affine(generator, *drawn[:2].to(hnet.device, hnet.dtype))
    # Subtracting the mean projects embeddings onto the plane of mean zero, and removes a bias.
    inputs = (torch.eye(dim) if exact else F.layer_norm(drawn, [dim])).to(hnet.device, hnet.dtype)
    products = gram_of_outputs(generator, inputs, hnet.target.numel)
    if not products.isfinite().all():
        raise ValueError("`hnet` must generate finite numbers, got some that are not")
    variances = torch.linalg.eigvalsh(centred(products)).flip(0)[:-1]
    variances[variances <= _ZERO_TOLERANCE**2 * products.trace()] = 0
    # In that plane the covariance of normalised embeddings is dim / (dim - 1).
    variances *= dim / (dim - 1) if exact else 1 / (samples - 1)
    return _spectrum(variances.sqrt(), exact)


def _spectrum(sigma: Tensor, exact: bool) -> EffectiveRank:
    """The ranks of singular values, greatest first."""
    if sigma[0] == 0:
        return EffectiveRank(0.0, 0.0, tuple(sigma.tolist()), exact)
    entropy = torch.special.entr(sigma / sigma.sum()).sum()
    variances = (sigma / sigma[0]).square()
    ratio = variances.sum().square() / variances.square().sum()
    return EffectiveRank(float(entropy.exp()), float(ratio), tuple(sigma.tolist()), exact)


def _is_affine(generator: nn.Module, a: Tensor, b: Tensor) -> bool:
    out_a, out_b, both, none = generator(torch.stack([a, b, a + b, torch.zeros_like(a)]))
    deviation = (both - out_a) + (none - out_b)
    return bool(deviation.norm() <= _AFFINE_TOLERANCE * (both - none).norm())
