"""Which known task samples belong to, how sure that is, and whether they belong to none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import check_number, class_numbers
from sparsehyper._util.inputs import Inputs, as_tensor
from sparsehyper.adaptation.profiles import TaskProfiles, in_own_classes
from sparsehyper.hypernetwork import HyperNetwork

_DRIFT = 0.01  # variance of a set's mean score that is no sign of another task; 1 is a sample's
_STEPS = 100  # of expectation maximisation


@dataclass(frozen=True)
class Identified:
    """Result of `identify_task`.

    Attributes:
        name: name of the task; None for none of the known ones.
        probabilities: probability of each task, if it is a known one.
        p_value: probability that as many samples of the likeliest task fit it as badly as these.
        shares: share of the samples that belongs to each task, if every sample may belong to
            another.
    """

    name: str | None
    probabilities: dict[str, float]
    p_value: float
    shares: dict[str, float]

    @property
    def likeliest(self) -> str:
        """Name of the likeliest task, whether the samples are typical of it or not."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


@torch.no_grad()
def identify_task(
    hnet: HyperNetwork,
    profiles: TaskProfiles,
    x: Any,
    y: Any = None,
    *,
    significance: float = 0.01,
) -> Identified:
    """Tell the known task that samples belong to, or that they belong to none.

    All samples must be of one task. The answer is none if they fit the likeliest task worse than
    nearly all sets of that task's own samples do, each in the class of its label where labels are
    given. A mixture of samples of several tasks gives none too; ``shares`` then estimates the
    mixture. One sample is seldom enough to tell.

    Args:
        hnet: the hypernetwork that the profiles were made with.
        profiles: what the samples of known tasks look like, by `task_profiles`.
        x: inputs of n samples, as `task_profiles` takes them, without labels.
        y: class numbers ``[n]``, if known.
        significance: ``name`` is None if ``p_value`` is below this. It is also about the largest
            rate at which samples of a known task are wrongly said to be of none.

    Raises:
        TypeError: ``x`` are no inputs, or ``profiles`` are not profiles.
        ValueError: no samples, inputs of another shape or that are not finite, or labels that no
            task has.
    """
    if not isinstance(profiles, TaskProfiles):
        raise TypeError(
            f"`profiles` must be what `task_profiles` returned, got a {type(profiles).__name__}"
        )
    check_number("significance", significance, minimum=0, maximum=1)
    x = Inputs.of(x, "`x`").to(hnet.device)
    if len(x) == 0:
        raise ValueError("`x` must hold at least one sample, got none")
    x.check_finite("`x`")
    if y is not None:
        y = class_numbers("`y`", as_tensor(y), len(x)).to(x.device)
    space, tasks = profiles.space, list(profiles.tasks.values())
    z = space.locate(hnet, x)
    tables = [profile.log_densities(space, z) for profile in tasks]
    kind = min(int(y is not None), len(profiles.calibration.temperature) - 1)
    compared = tables  # with typical scores, which older profiles have without labels only
    if y is not None:
        tables = [in_own_classes(table, y) for table in tables]
        compared = tables if kind else compared
    each = torch.stack([p.mixed(table) for p, table in zip(tasks, tables, strict=True)], 1)
    total = each.mean(0)
    if y is not None and total.max() == -torch.inf:
        raise ValueError(f"`y` must be labels that some task has, got {y.unique().tolist()}")
    probabilities = (profiles.calibration.factor(len(x), kind) * total).softmax(0)
    best = int(probabilities.argmax())
    p_value = _p_value(
        tasks[best].standardised(space, z, compared[best], kind),
        profiles.calibration.quantiles[kind],
        float(tasks[best].held[kind]),
    )
    name = list(profiles.tasks)[best] if p_value >= significance else None
    shares = _shares(profiles.calibration.temperature[kind] * each)
    return Identified(
        name,
        dict(zip(profiles.tasks, probabilities.tolist(), strict=True)),
        p_value,
        dict(zip(profiles.tasks, shares.tolist(), strict=True)),
    )


def _p_value(scores: Tensor, quantiles: Tensor, held: float) -> float:
    """Share of sets of typical samples that have scores as far off.

    The first score is too low in other tasks, the second too low or too high. Ranks among typical
    samples become normal numbers, so that a few odd samples do not decide.

    Args:
        scores: standardised scores ``[2, n]``.
        quantiles: quantiles ``[2, levels]`` of typical ones.
        held: number of samples that the scores are standardised by.
    """
    ranks = torch.searchsorted(quantiles, scores.contiguous())
    normal = torch.special.ndtri((ranks + 0.5) / (quantiles.shape[1] + 1))
    variance = 1 / scores.shape[1] + 1 / held + _DRIFT
    ratio, unknown = torch.special.ndtr(normal.mean(1) / variance**0.5).tolist()
    return min(1.0, 2 * min(ratio, 2 * min(unknown, 1 - unknown)))


def _shares(logits: Tensor) -> Tensor:
    """Shares ``[tasks]`` that make samples likeliest; ``logits`` ``[n, tasks]`` of each."""
    logits = logits - logits.max(1, keepdim=True)[0].clamp(min=-1e30)
    shares = torch.full_like(logits[0], 1 / logits.shape[1])
    for _ in range(_STEPS):
        joint = logits.exp() * shares
        shares = (joint / joint.sum(1, keepdim=True)).mean(0)
    return shares
