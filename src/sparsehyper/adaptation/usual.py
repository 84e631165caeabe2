"""What ways to adapt are usually worth, for where a task's own examples cannot tell.

With one example a class, no example is left to judge a way that must learn the class from it; and
a few more judge badly. What ways are worth is then measured on known tasks that are learned anew,
each without its own embedding, from as many examples. The generator has seen these tasks, so that
ways which start from it look better than they are; where tasks share nothing, much better. So what
is found counts half, and what is usual on tasks of many kinds the other half.

A task that is unlike the known ones is recognised by its own examples, each left out in turn: a few
steps on the embedding then explain them worse than they explain known tasks learned anew. What is
usual moves towards `USUAL_WHERE_UNLIKE` by as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.inputs import labelled
from sparsehyper._util.random import seeded
from sparsehyper.adaptation.judge import fitted_temperature, stacking_weights
from sparsehyper.adaptation.samples import (
    Samples,
    TaskSamples,
    Unsuitable,
    check_loss,
    unsuitable_for_one,
)
from sparsehyper.adaptation.ways import WAYS, Start

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
    "norms": Usual(0.1, 0.52, 1.0, 0.55),
    "embedding, all": Usual(0.08, 0.5, 1.3, 0.55),
    "all": Usual(0.25, 0.5, 1.3, 0.5),
    "scratch": Usual(0.05, 0.75, 2.5, 0.35),
}

# The same for hypernetworks that were trained with a head in closed form.
USUAL_WITH_HEAD = {
    "linear": Usual(0.05, 0.75, 1.0, 0.35),
    "head": Usual(0.5, 0.45, 1.0, 0.65),
    "norms": Usual(0.2, 0.43, 1.0, 0.67),
    "embedding": Usual(0.15, 0.5, 1.0, 0.6),
    "embedding, all": Usual(0.05, 0.55, 1.3, 0.55),
    "all": Usual(0.1, 0.5, 1.3, 0.6),
    "scratch": Usual(0.05, 0.8, 2.5, 0.3),
}

# The same for tasks that share nothing with the known ones: permutations of the pixels.
USUAL_WHERE_UNLIKE = {
    "linear": Usual(0.4, 0.7, 1.0, 0.4),
    "head": Usual(0.06, 0.75, 1.0, 0.35),
    "embedding": Usual(0.04, 0.8, 1.0, 0.3),
    "norms": Usual(0.05, 0.78, 1.0, 0.33),
    "embedding, all": Usual(0.1, 0.72, 2.0, 0.38),
    "all": Usual(0.15, 0.72, 2.0, 0.38),
    "scratch": Usual(0.25, 0.7, 2.5, 0.4),
}


def usual_of(start: Start) -> dict[str, Usual]:
    """What ways are usually worth for a hypernetwork of this kind."""
    return USUAL if start.hnet.head is None else USUAL_WITH_HEAD


def usual_on(
    start: Start,
    known: Mapping[str, Samples],
    shots: int,
    names: Sequence[str],
    seed: int,
    deadline: float,
) -> dict[str, Usual]:
    """What ways are worth on some known tasks; those that do not apply are left as they are.

    Tasks whose samples are all of one class tell nothing, and are left out.

    Args:
        start: what the new task starts from.
        known: samples of known tasks, by name.
        shots: examples of each class.
        names: the ways.
        seed: seed of the choice of tasks and of samples.
        deadline: value of ``time.perf_counter()`` to end at; one task is always learned.
    """
    given = [name for name in known if start.hnet.tasks.index(name) in start.known]
    order = torch.randperm(len(given), generator=seeded(seed)).tolist()
    logits: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    began, done = time.perf_counter(), 0
    for place in order:
        if done == _TASKS:
            break
        spent = time.perf_counter() - began
        if done and time.perf_counter() + spent / done > deadline:
            break
        task = given[place]
        row = start.hnet.tasks.index(task)
        batches = list(labelled(f"the samples of task {task!r}", known[task]))
        if batches and len(torch.cat([y.flatten() for _, y in batches]).unique()) < 2:
            continue
        done += 1
        samples = TaskSamples.of(task, batches, start.hnet.device, seed=seed)
        if not samples.n_classes:
            raise ValueError(
                f"labels of the `known` task {task!r} must be class numbers, as those of the new "
                f"task, got {samples.y.dtype}"
            )
        chosen = _first_of_each(samples, shots)
        others = tuple(other for other in start.known if other != row)
        left = max(deadline - time.perf_counter(), 0.0) / (_TASKS + 1 - done)
        own = replace(start, known=others, task=samples.some(chosen), seconds=left)
        every = torch.arange(int(chosen.sum()))
        others_left = (~chosen).nonzero()[:_MOST_JUDGING, 0]
        both = torch.cat([chosen.nonzero()[:, 0], others_left])
        first = samples.x[both].first_equal
        rest = others_left[first[len(every) :] >= len(every)]  # no copies of the chosen ones
        x, y = samples.x[rest], samples.y[rest]
        if not others or len(x) == 0:
            continue
        for name in names:
            now = time.perf_counter()
            limit = now + max(deadline - now, 0.1) / len(names)
            try:
                with unsuitable_for_one():
                    model = WAYS[name](own, every.to(y.device), seed, limit)
                with torch.no_grad(), unsuitable_for_one():
                    outputs = x.call(model)[:, : samples.n_classes].float()
                check_loss(F.cross_entropy(outputs, y), samples)
            except Unsuitable:
                continue
            logits[name].append((outputs, y))
    usual = usual_of(start)
    found = {name: of_tasks for name, of_tasks in logits.items() if of_tasks}
    return {**usual, **_summary(found, usual)}


def usual_given(
    usual: Mapping[str, Usual], start: Start, outputs: Tensor, y: Tensor
) -> Mapping[str, Usual]:
    """What is usual, given how well a few steps on the embedding explain the new task.

    Args:
        usual: what is usual for tasks like the known ones.
        start: what the new task starts from.
        outputs: logits ``[n, classes]`` of the way ``"embedding"`` for samples held out.
        y: their class numbers ``[n]``.
    """
    if start.hnet.head is not None or len(y) == 0:
        return usual
    expected = usual["embedding"]
    if expected.loss >= 1:  # known tasks themselves are not explained
        return usual
    found = float(F.cross_entropy(outputs / expected.temperature, y)) / math.log(outputs.shape[1])
    unlike = min(max((found - expected.loss) / (1 - expected.loss), 0.0), 1.0)
    return {n: _between(u, USUAL_WHERE_UNLIKE[n], unlike) for n, u in usual.items()}


def _summary(
    logits: Mapping[str, list[tuple[Tensor, Tensor]]], usual: Mapping[str, Usual]
) -> dict[str, Usual]:
    """What ways are worth, given logits and labels of each task."""
    found: dict[str, Usual] = {}
    scores = []
    for name, tasks in logits.items():
        tried = [fitted_temperature(own, y, usual[name].temperature) for own, y in tasks]
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
    prior = torch.tensor([usual[name].weight for name in found], device=scores[0].device)
    weights = stacking_weights(torch.stack(scores), _PRIOR_COUNT * prior / prior.sum())
    return {
        name: _between(usual[name], replace(measured, weight=float(weight)), 0.5)
        for (name, measured), weight in zip(found.items(), weights, strict=True)
    }


def _between(a: Usual, b: Usual, share: float) -> Usual:
    """The point between the two, ``b`` for a share of 1."""
    return Usual(
        (1 - share) * a.weight + share * b.weight,
        (1 - share) * a.loss + share * b.loss,
        a.temperature ** (1 - share) * b.temperature**share,
        (1 - share) * a.skill + share * b.skill,
    )


def _first_of_each(samples: TaskSamples, shots: int) -> Tensor:
    """Whether a sample is among the first ``shots`` of its class, ``[n]``."""
    chosen = torch.zeros(len(samples.y), dtype=torch.bool, device=samples.y.device)
    for number in range(samples.n_classes):
        chosen[(samples.y == number).nonzero()[:shots, 0]] = True
    return chosen
