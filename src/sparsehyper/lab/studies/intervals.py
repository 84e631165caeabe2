"""Claims of studies: paired differences and effects, with their 95% intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.extras import require

_LEVEL = 0.05


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """The mean of paired differences, with its 95% interval by Student's t.

    A single pair has no interval.

    >>> paired([1.0, 2.0, 3.0])
    {'mean': 2.0, 'low': -0.484..., 'high': 4.484..., 'pairs': 3}
    """
    values = torch.tensor(differences, dtype=torch.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None, "pairs": 1}
    stats = require("scipy.stats", "data")
    error = float(values.std()) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(values)}


def claim_of(
    family: str, claim: str, ours: Sequence[float], theirs: Sequence[float], **more: Any
) -> dict[str, Any]:
    """The claim that a difference, paired over seeds, is above zero.

    Args:
        family: set of tasks for which it is claimed.
        claim: the difference in words.
        ours, theirs: the values whose difference it is, for each seed.
        more: further entries.

    Returns:
        A JSON-ready dict: the interval that `paired` returns, and the ``verdict``.

    >>> claim_of("pairs", "sparse − chunked", [0.9, 0.8], [0.7, 0.6])["verdict"]
    'supported'
    """
    interval = paired([a - b for a, b in zip(ours, theirs, strict=True)])
    return {"family": family, "claim": claim, **more, **interval, "verdict": verdict(interval)}


def mean_of(places: Iterable[Sequence[float]]) -> list[float]:
    """The mean over places for each seed.

    >>> mean_of([[1.0, 2.0], [3.0, 6.0]])
    [2.0, 4.0]
    """
    return [fmean(seed) for seed in zip(*places, strict=True)]


def verdict(interval: Mapping[str, Any]) -> str:
    """The verdict on the claim that a difference is above zero.

    >>> verdict(paired([1.0, 1.1, 0.9])), verdict(paired([-1.0, 1.0]))
    ('supported', 'undecided')
    """
    if interval["low"] is None:
        return "undecided"
    if interval["low"] > 0:
        return "supported"
    return "not supported" if interval["high"] < 0 else "undecided"


def holm(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims of one family, with verdicts that hold for all of them at once.

    A claim gets ``p``, its two-sided p value after Holm's correction. Its verdict is undecided
    unless that is at most 0.05.

    Args:
        claims: as `claim_of` returns them; each counts as one test.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal
    of Statistics 6, 1979).

    >>> pair = [claim_of("a", "b", x, [0.0, 0.0, 0.0]) for x in ([1.0, 1.1, 1.3], [1.0, 1.5, 2.4])]
    >>> [(round(claim["p"], 3), claim["verdict"]) for claim in holm(pair)]
    [(0.012, 'supported'), (0.058, 'undecided')]
    """
    raw = [_p_value(claim) for claim in claims]
    adjusted = [1.0] * len(raw)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
        least = max(least, min(1.0, (len(raw) - rank) * raw[place]))
        adjusted[place] = least
    return [
        {**claim, "p": p, "verdict": claim["verdict"] if p <= _LEVEL else "undecided"}
        for claim, p in zip(claims, adjusted, strict=True)
    ]


def in_images(interval: Mapping[str, Any], small: int = 25) -> str:
    """A difference of accuracy as a number of images.

    Args:
        interval: the difference, as `paired` returns it.
        small: a difference is called small if its whole interval is within plus and minus this
            number of images in 10,000.

    >>> in_images({"mean": -0.0005, "low": -0.001, "high": 0.0001})
    '5 images in 10,000 fewer, small'
    """
    images = round(10_000 * abs(interval["mean"]))
    sign = "more" if interval["mean"] > 0 else "fewer"
    words = f"{images} image{'s' * (images > 1)} in 10,000 {sign}"
    if images == 0:
        words = "no image in 10,000"
    low, high = interval["low"], interval["high"]
    is_small = low is not None and max(-low, high) <= small / 10_000
    return f"{words}, small" if is_small else words


def _p_value(interval: Mapping[str, Any]) -> float:
    """The two-sided p value of a difference by Student's t; 1 for a single pair."""
    if interval["low"] is None:
        return 1.0
    freedom = interval["pairs"] - 1
    stats = require("scipy.stats", "data")
    error = (interval["high"] - interval["low"]) / 2 / float(stats.t.ppf(0.975, freedom))
    if error == 0:
        return float(interval["mean"] == 0)
    return 2 * float(stats.t.sf(abs(interval["mean"]) / error, freedom))


def main_effects(
    settings: Sequence[Mapping[str, str]],
    outcomes: Sequence[float],
    defaults: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Effect of each level of each factor on an outcome, compared with the factor's default level.

    Fitted by least squares on indicators of all levels but the defaults, without interactions, with
    95% intervals by Student's t from the residuals.

    Args:
        settings: the level of every factor, for each run.
        outcomes: the outcome of each run.
        defaults: the default level of every factor.

    Returns:
        For each level but the defaults: ``factor``, ``level``, ``mean``, ``low``, ``high`` and
        ``freedom``, the residual degrees of freedom. Without any, ``low`` and ``high`` are None.

    >>> runs = [{"x": "a"}, {"x": "a"}, {"x": "b"}, {"x": "b"}]
    >>> effect, = main_effects(runs, [1.0, 2.0, 4.0, 5.0], {"x": "a"})
    >>> effect["level"], round(effect["mean"], 6), round(effect["high"] - effect["mean"], 3)
    ('b', 3.0, 3.042)
    """
    columns = _columns(settings, defaults)
    design, y = _design(settings, columns), torch.tensor(outcomes, dtype=torch.float64)
    inverse = torch.linalg.pinv(design)
    effects = inverse @ y
    squares, freedom = _residual(design, y)
    half = torch.full_like(effects, torch.nan)
    if freedom > 0:
        quantile = float(require("scipy.stats", "data").t.ppf(0.975, freedom))
        half = quantile * (squares / freedom * inverse.square().sum(1)).sqrt()
    return [
        {
            "factor": factor,
            "level": level,
            "mean": mean,
            "low": mean - error if freedom > 0 else None,
            "high": mean + error if freedom > 0 else None,
            "freedom": freedom,
        }
        for (factor, level), mean, error in zip(
            columns, effects[1:].tolist(), half[1:].tolist(), strict=True
        )
    ]


def factor_tests(
    settings: Sequence[Mapping[str, str]],
    outcomes: Sequence[float],
    defaults: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The F test of each factor: all its levels at once, with the other factors in the model.

    Args:
        settings, outcomes, defaults: as `main_effects` takes them.

    Returns:
        For each factor its name, the ``share`` of the outcome's variance that is explained with it
        and not without it, and the ``p`` of the test, None where the residuals have no degrees of
        freedom.

    >>> runs = [{"x": "a"}, {"x": "a"}, {"x": "b"}, {"x": "b"}]
    >>> test, = factor_tests(runs, [1.0, 2.0, 4.0, 5.0], {"x": "a"})
    >>> round(test["share"], 3), round(test["p"], 3)
    (0.9, 0.051)
    """
    columns, y = _columns(settings, defaults), torch.tensor(outcomes, dtype=torch.float64)
    whole, freedom = _residual(_design(settings, columns), y)
    total = float((y - y.mean()).square().sum())
    tests = []
    for factor in defaults:
        others = [column for column in columns if column[0] != factor]
        rest, more = _residual(_design(settings, others), y)
        p = None
        if freedom > 0 and more > freedom:
            ratio = (rest - whole) / (more - freedom) / (whole / freedom)
            p = float(require("scipy.stats", "data").f.sf(ratio, more - freedom, freedom))
        tests.append({"factor": factor, "share": (rest - whole) / total, "p": p})
    return tests


def _columns(
    settings: Sequence[Mapping[str, str]], defaults: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Factor and level of the indicators: all levels that occur, except the defaults."""
    found = {(factor, run[factor]) for run in settings for factor in defaults}
    return [pair for pair in sorted(found) if defaults[pair[0]] != pair[1]]


def _design(settings: Sequence[Mapping[str, str]], columns: Sequence[tuple[str, str]]) -> Tensor:
    """The design matrix: for each run a 1, then the indicators of the levels."""
    return torch.tensor(
        [[1.0, *(float(run[factor] == level) for factor, level in columns)] for run in settings],
        dtype=torch.float64,
    )


def _residual(design: Tensor, y: Tensor) -> tuple[float, int]:
    """The residual sum of squares of a least-squares fit, and its degrees of freedom."""
    left = y - design @ (torch.linalg.pinv(design) @ y)
    return float(left.square().sum()), len(y) - int(torch.linalg.matrix_rank(design))
