"""Outputs of ways of adapting on samples that they were not fitted to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsehyper.adaptation.judge import fitted_temperature, fold_numbers
from sparsehyper.adaptation.samples import Unsuitable, check_loss, unsuitable_for_one
from sparsehyper.adaptation.ways import KEEP_CLASSES, TUNED_WHOLE, WAYS, Start

_FOLDS = 5
_FEW = 10  # samples that are left out one at a time
_MANY, _ENOUGH = 5000, 1000  # samples of which so many are held out, once
_LOOK = 0.2  # share of the time in which each way is tried, where samples are held out once
_HURRIED = 0.9  # share of its time from which on a way is taken to have run out of it
_PIECE = 512


@dataclass
class HeldOut:
    """How ways did on samples held out.

    Attributes:
        outputs: outputs ``[n, outputs]`` of each way for the samples, where ``judged``.
        judged: whether a way was judged by a sample, ``[n]``.
        seconds: duration of each way's fits.
        models: the last fold's models.
        unsuitable: why ways do not apply.
        untried: ways that there was no time to try.
        out: whether a sample was held out, ``[n]``.
        share: share of the samples that a model was fitted to.
        folds: number of folds done, and wanted.
        once: whether samples were held out once, as there are many.
    """

    out: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)
    judged: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)
    unsuitable: dict[str, str] = field(default_factory=dict)
    untried: list[str] = field(default_factory=list)
    share: float = 1.0
    folds: tuple[int, int] = (0, 0)
    once: bool = False


def hold_out(
    start: Start,
    names: Sequence[str],
    seed: int,
    deadline: float,
    folds: int | None = None,
) -> HeldOut:
    """Fit ways to some of the samples, and keep their outputs on the rest.

    Few samples are held out in folds while there is time, at least one, and time is left to fit all
    ways once more. Equal samples are held out together. Ways that no time is left for are not
    tried. Many samples are held out once. Each way is then tried briefly, and of those that tune
    the whole model and ran out of time the best is fitted again in the rest of it: with many
    samples these ways gain most from more updates.

    Args:
        start: what ways start from.
        names: the ways.
        seed: seed of the fits.
        deadline: value of ``time.perf_counter()`` to end at.
        folds: number of folds; None for as many as the number of samples calls for.
    """
    task = start.task
    count = len(task.x)
    found = HeldOut(torch.zeros(count, dtype=torch.bool, device=task.y.device))
    y = task.y if start.outputs else torch.zeros(count, dtype=torch.long, device=task.y.device)
    first_equal = task.first_equal
    if not first_equal.any():  # with nothing else to fit to
        first_equal = torch.arange(count, device=y.device)
    distinct = len(first_equal.unique())
    found.once = folds is None and distinct >= _MANY
    if folds is None:
        folds = distinct // _ENOUGH if found.once else distinct if distinct <= _FEW else _FOLDS
    found.share = 1 - 1 / folds
    numbers = fold_numbers(y, first_equal, folds)
    if found.once:
        _hold_out_once(found, start, names, numbers == 0, seed, deadline)
        return found
    spent = 0.0
    for fold in range(folds):
        left = deadline - time.perf_counter()
        if fold and left < 2.2 * spent / fold:  # this fold, and the fits to all samples
            break
        began = time.perf_counter()
        out = numbers == fold
        for i, name in enumerate(names):
            # One fold shows whether a way applies at all.
            left_out = name in found.unsuitable or name in found.untried
            if left_out or (fold and not _judges(start, name, out).any()):
                continue
            if _too_late(found, name, deadline):
                continue
            again = len(names) if fold == 0 else 0  # the fits to all samples
            _fit(found, name, start, out, seed, deadline, len(names) - i + again)
        found.out |= out
        found.folds = (fold + 1, folds)
        spent += time.perf_counter() - began
    return found


def _hold_out_once(
    found: HeldOut, start: Start, names: Sequence[str], out: Tensor, seed: int, deadline: float
) -> None:
    """The fits of `hold_out` where samples are held out once; ``out`` are those, ``[n]``."""
    found.out |= out
    found.folds = (1, 1)
    now = time.perf_counter()
    look = now + (_LOOK if len(names) > 1 else 1.0) * (deadline - now)
    hurried: dict[str, float] = {}
    for i, name in enumerate(names):
        if _too_late(found, name, deadline):
            continue
        if not _fit(found, name, start, out, seed, look, len(names) - i) and name in TUNED_WHOLE:
            hurried[name] = _loss(found, name, start)
    if not hurried or len(names) == 1:
        return
    best = min(hurried, key=hurried.__getitem__)
    if deadline - time.perf_counter() < found.seconds[best]:
        return
    again = HeldOut(out)
    _fit(again, best, start, out, seed, deadline, 1)
    found.seconds[best] += again.seconds.get(best, 0.0)
    if best in again.outputs and _loss(again, best, start) < hurried[best]:
        found.outputs[best] = again.outputs[best]
        found.models[best] = again.models[best]


def _too_late(found: HeldOut, name: str, deadline: float) -> bool:
    """Whether a way was never tried and is not to be, as others took all of the time."""
    late = bool(found.models) and name not in found.models and time.perf_counter() > deadline
    if late:
        found.untried.append(name)
    return late


def _fit(
    found: HeldOut, name: str, start: Start, out: Tensor, seed: int, deadline: float, fits: int
) -> bool:
    """Fit a way to samples that are not held out, if it applies.

    Args:
        found: what is kept of it.
        name: the way.
        start: what it starts from.
        out: whether a sample is held out, ``[n]``.
        seed: seed of the fit.
        deadline: value of ``time.perf_counter()`` to end at.
        fits: number of fits that share the time until then, with this one.

    Returns:
        Whether the time sufficed, or the way does not apply.
    """
    now = time.perf_counter()
    limit = max(deadline - now, 0.1) / fits
    try:
        with unsuitable_for_one():
            model = WAYS[name](start, (~out).nonzero()[:, 0], seed, now + limit)
            fitted = time.perf_counter() - now
            _keep(found, name, model, start, out)
    except Unsuitable as error:
        found.unsuitable[name] = str(error)
        for kept in (found.outputs, found.judged, found.seconds, found.models):
            kept.pop(name, None)  # of earlier folds
        return True
    found.seconds[name] = found.seconds.get(name, 0) + time.perf_counter() - now
    return fitted < _HURRIED * limit


def _loss(found: HeldOut, name: str, start: Start) -> float:
    """The mean loss of a way on samples held out, by calibrated probabilities for classifiers."""
    judged = found.judged[name]
    outputs, y = found.outputs[name][judged], start.task.y[judged]
    if start.outputs:
        outputs = outputs / fitted_temperature(outputs, y)
    return float(start.task.losses(outputs, y).mean())


@torch.no_grad()
def _keep(found: HeldOut, name: str, model: nn.Module, start: Start, out: Tensor) -> None:
    outputs = torch.cat([x.call(model) for x in start.task.x[out].split(_PIECE)]).float()
    if start.outputs:
        outputs = outputs[:, : start.outputs]
    each = start.task.losses(outputs, start.task.y[out])
    check_loss(each.mean(), start.task, " on samples held out")
    if name not in found.outputs:
        found.outputs[name] = outputs.new_zeros(len(out), *outputs.shape[1:])
        found.judged[name] = torch.zeros_like(out)
    found.outputs[name][out] = outputs
    found.judged[name] |= _judges(start, name, out)
    found.models[name] = model


def _judges(start: Start, name: str, out: Tensor) -> Tensor:
    """Whether samples held out can judge a way: whether it knows their class, ``[n]``."""
    if not start.outputs or (name in KEEP_CLASSES and start.keeps_classes):
        return out
    seen = torch.zeros(start.outputs, dtype=torch.bool, device=out.device)
    seen[start.task.y[~out]] = True
    return out & seen[start.task.y]
