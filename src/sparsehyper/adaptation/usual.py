"""What ways to adapt are usually worth, for where a task's own examples cannot tell.

With one example a class, no example is left to judge a way that must learn the class from it; and
a few more judge badly. What ways are worth is then measured on known tasks that are learned anew,
each without its own embedding, from as many examples. The generator has seen these tasks, so that
ways which start from it look better than they are; where tasks share nothing, much better. So what
is found counts half, and what is usual on tasks of many kinds the other half.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsehyper._util.random import seeded
from sparsehyper.adaptation.judge import fitted_temperature, stacking_weights
from sparsehyper.adaptation.samples import Samples, TaskSamples
from sparsehyper.adaptation.ways import WAYS, Start, Unsuitable

_TASKS = 4  # known tasks to learn anew, at most
_MOST_JUDGING = 200  # samples of each
_PRIOR_COUNT = 10.0  # samples that `USUAL` is worth


@dataclass(frozen=True)
class Usual:
    """What a way is usually worth.

    Attributes:
        weight: its weight among all ways.
        loss: its cross entropy, as a share of that of guessing.
        temperature: what its logits are divided by.
        skill: its accuracy, from 0, guessing, to 1.
    """

    weight: float
    loss: float
    temperature: float
    skill: float


# Means over families of tasks from one example a class: pairs, rotations, permutations.
USUAL = {
    "linear": Usual(0.12, 0.7, 1.0, 0.35),
    "head": Usual(0.25, 0.55, 1.0, 0.5),
    "embedding": Usual(0.25, 0.5, 1.0, 0.6),
    "embedding, all": Usual(0.08, 0.5, 1.3, 0.55),
    "all": Usual(0.25, 0.5, 1.3, 0.5),
    "scratch": Usual(0.05, 0.75, 2.5, 0.35),
}


def usual_on(
    start: Start,
    known: Mapping[str, Samples],
    shots: int,
    names: Sequence[str],
    seed: int,
    deadline: float,
) -> dict[str, Usual]:
    """What ways are worth on some known tasks; those that do not apply are left as they are.

    Args:
        start: what the new task starts from.
        known: samples of known tasks, by name.
        shots: examples of each class.
        names: the ways.
        seed: seed of the choice of tasks and of samples.
        deadline: value of ``time.perf_counter()`` to end at; one task is always learned.
    """
    order = torch.randperm(len(known), generator=seeded(seed)).tolist()
    given = list(known)
    logits: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    began = time.perf_counter()
    for done, place in enumerate(order[:_TASKS]):
        spent = time.perf_counter() - began
        if done and time.perf_counter() + spent / done > deadline:
            break
        task = given[place]
        row = start.hnet.tasks.index(task)
        samples = TaskSamples.of(task, known[task], None, True, start.known.device, seed)
        chosen = _first_of_each(samples, shots)
        others = tuple(other for other in start.rows if other != row)
        own = replace(start, rows=others, outputs=samples.n_classes)
        x, y = samples.x[~chosen][:_MOST_JUDGING], samples.y[~chosen][:_MOST_JUDGING]
        if not others or len(x) == 0:
            continue
        for name in names:
            now = time.perf_counter()
            limit = now + max(deadline - now, 0.1) / len(names)
            try:
                model = WAYS[name](own, samples.x[chosen], samples.y[chosen], seed, limit)
            except Unsuitable:
                continue
            with torch.no_grad():
                logits[name].append((model(x)[:, : samples.n_classes].float(), y))
    return {**USUAL, **_summary({name: found for name, found in logits.items() if found})}


def _summary(logits: Mapping[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Usual]:
    """What ways are worth, given logits and labels of each task."""
    found: dict[str, Usual] = {}
    scores = []
    for name, tasks in logits.items():
        tried = [fitted_temperature(own, y, USUAL[name].temperature) for own, y in tasks]
        temperature = math.exp(sum(map(math.log, tried)) / len(tried))
        each = [(own / temperature).log_softmax(1).gather(1, y[:, None])[:, 0] for own, y in tasks]
        guesses = [math.log(own.shape[1]) for own, _ in tasks]
        share = sum(-float(e.mean()) / g for e, g in zip(each, guesses, strict=True)) / len(each)
        rates = [(float((o.argmax(1) == y).float().mean()), 1 / o.shape[1]) for o, y in tasks]
        skill = sum((right - guess) / (1 - guess) for right, guess in rates) / len(rates)
        found[name] = Usual(0.0, share, temperature, skill)
        scores.append(torch.cat(each))
    if not found:
        return found
    prior = torch.tensor([USUAL[name].weight for name in found], device=scores[0].device)
    weights = stacking_weights(torch.stack(scores), _PRIOR_COUNT * prior / prior.sum())
    return {
        name: _between(USUAL[name], replace(usual, weight=float(weight)))
        for (name, usual), weight in zip(found.items(), weights, strict=True)
    }


def _between(a: Usual, b: Usual) -> Usual:
    """Midway between the two."""
    return Usual(
        (a.weight + b.weight) / 2,
        (a.loss + b.loss) / 2,
        math.sqrt(a.temperature * b.temperature),
        (a.skill + b.skill) / 2,
    )


def _first_of_each(samples: TaskSamples, shots: int) -> Tensor:
    """Whether a sample is among the first ``shots`` of its class, ``[n]``."""
    chosen = torch.zeros(len(samples.y), dtype=torch.bool, device=samples.y.device)
    for number in range(samples.n_classes):
        chosen[(samples.y == number).nonzero()[:shots, 0]] = True
    return chosen
