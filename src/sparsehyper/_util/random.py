"""Random numbers that are the same on every machine.

They are drawn on the CPU from the integers of a Mersenne twister, followed by at most one rounding
of a float, because PyTorch's own ``uniform_`` and ``normal_`` differ between processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsehyper._util.checks import check_integer


def seeded(seed: int) -> torch.Generator:
    """A new CPU generator."""
    check_integer("seed", seed, minimum=0, maximum=2**64 - 1)
    return torch.Generator("cpu").manual_seed(seed)


def spawn_seeds(seed: int, count: int) -> list[int]:
    """``count`` independent seeds derived from one (NumPy's ``SeedSequence``)."""
    check_integer("seed", seed, minimum=0)
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]


def integers(high: int, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Int64, uniform in [0, high)."""
    return torch.randint(high, tuple(shape), generator=rng, device="cpu")


def uniform(shape: Sequence[int], variance: float, rng: torch.Generator) -> Tensor:
    """Float32, uniform and symmetric around zero, of the given variance."""
    steps = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    # 24 bits are exact in float32, so only the product is rounded.
    steps.random_(0, 2**24, generator=rng)
    return steps.sub_(2**23 - 0.5).mul_(math.sqrt(3 * variance) / 2**23)


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Float64, standard normal, by inversion of the distribution function."""
    u = (integers(2**31, shape, rng).double() + 0.5) / 2**31
    return torch.erfinv(2 * u - 1) * math.sqrt(2)
