"""A new task by the best means that its examples allow.

Every way of `ways` is fitted to parts of the examples and judged by the rest. The ways that
explain the rest best, weighted, are fitted again to all examples, and their average is the task's
model. An example whose class has no other cannot judge a way that must learn the class from it:
such a way counts as much as it was worth on known tasks, or on tasks of many kinds (`usual`).

Source: the variance of an accuracy by cross-validation after C. Nadeau and Y. Bengio, "Inference
for the generalization error" (2003).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_integer, check_number, check_type
from sparsehyper._util.modes import evaluation_mode
from sparsehyper._util.text import listed
from sparsehyper.adaptation.choice import Choice, choose, right_of
from sparsehyper.adaptation.fitter import keep
from sparsehyper.adaptation.held_out import HeldOut, hold_out
from sparsehyper.adaptation.judge import wilson
from sparsehyper.adaptation.mixture import Mixture
from sparsehyper.adaptation.samples import (
    Loss,
    Samples,
    TaskSamples,
    Unsuitable,
    gather,
    with_gradients,
)
from sparsehyper.adaptation.usual import Usual, usual_given, usual_of, usual_on
from sparsehyper.adaptation.ways import WAYS, Start, fit_near, in_words, ways_for
from sparsehyper.hypernetwork import HyperNetwork

METHODS = ("auto", *WAYS)
_PRIOR_COUNT = 1.0  # samples that the usual accuracy is worth
# Usual exponent at which errors fall with the number of samples where most can be learned, and the
# standard deviation of such exponents.
_RATE, _RATE_SPREAD = 0.25, 0.15
FEW = 5  # samples of a class, with which known tasks help to choose
_FOR_EMBEDDING = 0.1  # share of the time that the task's own embedding has at least
_PIECE = 512  # samples at a time
_LEAST_OF_FOLD = 0.5  # share of the time of a fold's fit that one to all samples needs
_MANY_EQUAL = 0.1  # share of the samples that repeat others, to warn of
_FEWEST_HALVED = 4  # samples of each class to fit to half of the samples

_Fitted = tuple[Tensor, list[Tensor]] | None  # embedding and batch-norm statistics


@dataclass(frozen=True)
class Judged:
    """How a way did on examples held out.

    Attributes:
        weight: its weight in the model.
        loss: its mean loss, by calibrated probabilities for classifiers.
        temperature: what its logits are divided by.
        seconds: duration of its fits to parts of the examples.
    """

    weight: float
    loss: float
    temperature: float
    seconds: float


@dataclass(frozen=True)
class Adapted:
    """Result of `adapt_task`, and of `adapt_tasks` for each task.

    Attributes:
        name: task name.
        model: an ordinary module: calibrated log-probabilities ``[n, classes]``, which are logits
            too; for numbers, or with a loss of one's own, outputs.
        ways: how each way did on held-out examples, by name, in order of weight.
        accuracy: accuracy to expect on new samples, by examples held out; each of up to 500 counts
            for ways that were chosen without it. None without classes.
        interval: its 95% interval.
        more: accuracy to expect with 2 and with 4 times as many examples, by that factor; nothing
            where that with these may be no better than guessing.
        why: what was chosen and why, in words.
        warnings: what to mind, in words.
        seconds: duration.
    """

    name: str
    model: nn.Module = field(repr=False)
    ways: dict[str, Judged]
    accuracy: float | None
    interval: tuple[float, float] | None
    more: dict[int, float]
    why: str
    warnings: tuple[str, ...]
    seconds: float


def adapt_task(
    hnet: HyperNetwork,
    name: str,
    samples: Samples,
    *,
    known: Mapping[str, Samples] | None = None,
    method: str = "auto",
    n_classes: int | None = None,
    loss: Loss | None = None,
    overwrite: bool = False,
    seconds: float = 20.0,
    seed: int = 0,
) -> Adapted:
    """Learn a new task by the best means that its examples allow, and add the task.

    The arguments are those of `adapt_tasks`, with ``n_classes`` for this task alone.

    >>> import torch
    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> x = torch.randn(40, 5)
    >>> adapted = adapt_task(hnet, "hats", (x, (x[:, 0] > 0).long()))
    >>> hnet.task_names, adapted.model(x).shape
    (('shoes', 'bags', 'hats'), torch.Size([40, 2]))
    """
    return adapt_tasks(
        hnet,
        {name: samples},
        known=known,
        method=method,
        n_classes=n_classes,
        loss=loss,
        overwrite=overwrite,
        seconds=seconds,
        seed=seed,
    )[name]


@with_gradients()
def adapt_tasks(
    hnet: HyperNetwork,
    tasks: Mapping[str, Samples],
    *,
    known: Mapping[str, Samples] | None = None,
    method: str = "auto",
    n_classes: int | Mapping[str, int] | None = None,
    loss: Loss | None = None,
    overwrite: bool = False,
    seconds: float = 20.0,
    seed: int = 0,
) -> dict[str, Adapted]:
    """Learn new tasks, each by the best means that its own examples allow, and add them.

    No new task starts from another one. Their embeddings are added to the hypernetwork; nothing
    else in it changes. With `TaskFeatures` the tasks must have been added by their features, and
    their embeddings are refined. The models to use are the results', which take what the target
    takes.

    Args:
        hnet: hypernetwork that was trained on other tasks.
        tasks: examples of each new task: inputs, which are whatever the target takes, and labels;
            or batches of them.
        known: samples of known tasks, by name. They are used where a new task has few examples of
            some class: a few of these tasks are then learned again from as few examples, to measure
            how good each way is. This is done once for all new tasks with equally many examples.
        method: ``"auto"``, or the only way to use.
        n_classes: number of classes of all new tasks, or of each by name; by default the largest
            label plus one. It may exceed the number of the target's outputs.
        loss: function that returns the loss of each sample; by default the cross entropy of logits
            ``[n, outputs]``, or for labels that are floating-point numbers of the outputs' shape
            the mean squared error. PyTorch's own, such as ``nn.MSELoss()``, are used without their
            mean.
        overwrite: whether ``tasks`` may name known tasks, which are then learned anew, as if they
            were not known.
        seconds: time to take for each task, about.
        seed: seed of everything random.

    Returns:
        One `Adapted` for each task, by name.

    Raises:
        ValueError: a name is taken without ``overwrite``, a setting is out of range, samples do not
            fit, or no way applies, as where all losses are not finite. The hypernetwork is then
            unchanged.
        KeyError: ``known`` names an unknown task; with `TaskFeatures`, a task that was not added.
        TypeError: the hypernetwork's conditioner is not a `TaskEmbedding`, `TaskFeatures` or
            `TaskExamples`, or ``tasks`` or ``known`` is not a mapping.
        RuntimeError: called within ``torch.inference_mode()``.
    """
    check_choice("method", method, METHODS)
    check_number("seconds", seconds, above=0)
    check_integer("seed", seed, minimum=0)
    names = ways_for(hnet) if method == "auto" else (method,)
    gathered, rows = gather(hnet, tasks, n_classes, loss, seed, overwrite)
    if known is not None:
        check_type("known", known, Mapping, "samples of known tasks by name")
        for name in known:
            hnet.tasks.index(name)
    learned_anew: dict[int, dict[str, Usual]] = {}
    found: dict[str, tuple[TaskSamples, Adapted, _Fitted]] = {}
    for task in gathered:
        began = time.perf_counter()
        if len(task.y) < 2:
            raise ValueError(
                f"task {task.name!r} needs at least 2 samples, of which some are held out, got 1; "
                "`fit_embedding` takes one"
            )
        start, fewest = Start(hnet, rows, task, seconds), _fewest(task)
        _check_target(start)
        usual = usual_of(start)
        if known and 0 < fewest <= FEW:
            if fewest not in learned_anew:
                half = began + seconds / 2
                learned_anew[fewest] = usual_on(start, known, fewest, names, seed, half)
            usual = learned_anew[fewest]
        adapted, fitted = _adapt(start, names, usual, seed, began, began + seconds)
        found[task.name] = task, adapted, fitted
    for name, (task, _, fitted) in found.items():
        if fitted is not None:
            keep(hnet, task, *fitted)
        elif name not in hnet.task_names:
            hnet.add_task(name)
    return {name: adapted for name, (_, adapted, _) in found.items()}


def _adapt(
    start: Start,
    names: tuple[str, ...],
    usual: Mapping[str, Usual],
    seed: int,
    began: float,
    deadline: float,
) -> tuple[Adapted, _Fitted]:
    """What `adapt_tasks` returns for one task, and its embedding."""
    task = start.task
    held = hold_out(start, names, seed, deadline)
    if not held.outputs:
        way = [*held.unsuitable][-1]  # the first may have a reason of its own
        alone = f"`method` {way!r} does not apply"
        text = alone if len(names) == 1 else f"no way to learn {task.name!r} applies, as {way!r}"
        raise ValueError(f"{text}: {held.unsuitable[way]}")
    if task.n_classes and "embedding" in held.outputs:
        judged = held.judged["embedding"]
        usual = usual_given(usual, start, held.outputs["embedding"][judged], task.y[judged])
    choice = choose(held, task, usual)
    models = held.models
    unfitted: dict[str, str] = {}
    if not held.once:
        models, unfitted = _fit(start, choice, held, seed, deadline)
    model = Mixture(
        [models[way] for way in choice.weights],
        list(choice.weights.values()),
        [choice.temperatures[way] for way in choice.weights],
        start.outputs,
    ).eval()
    accuracy, interval = _expected(choice, held, task, usual, model)
    more: dict[int, float] = {}
    if accuracy is not None and not _may_be_guessing(choice, task, interval):
        rate = _rate(start, choice, held, accuracy, seed, deadline)
        more = {times: 1 - (1 - accuracy) * times**-rate for times in (2, 4)}
    ways = {
        way: Judged(
            choice.weights.get(way, 0.0), value, choice.temperatures[way], held.seconds[way]
        )
        for way, value in sorted(
            choice.losses.items(), key=lambda item: (-choice.weights.get(item[0], 0.0), item[1])
        )
    }
    fitted: _Fitted = None
    notes = [
        f"{in_words(way)} could not be fitted to all examples, so that its model is of a part of "
        f"them: {why}"
        for way, why in unfitted.items()
    ]
    limit = max(deadline, time.perf_counter() + _FOR_EMBEDDING * (deadline - began))
    try:
        z, statistics, _ = fit_near(start, _all(task), seed, 1, limit)
        fitted = z[0], statistics
    except Unsuitable as error:
        left = "as it was" if task.name in start.hnet.task_names else "the mean of the known ones"
        notes.append(
            f"The hypernetwork's own embedding of the task was not fitted and is {left}; use "
            f"`model` instead: {error}"
        )
    adapted = Adapted(
        task.name,
        model,
        ways,
        accuracy,
        interval,
        more,
        _why(choice, held),
        (*_warnings(choice, held, task, interval), *notes),
        time.perf_counter() - began,
    )
    return adapted, fitted


@torch.no_grad()
def _check_target(start: Start) -> None:
    """Raise ``ValueError`` unless the target's outputs can be averaged and are numbers."""
    task = start.task
    with evaluation_mode(start.hnet):
        outputs = task.x[:2].call(start.hnet, task=0)
    task.check_outputs(outputs, task.y[:2], "target", None)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            "models are averaged, so the target must return a tensor, or `logits` among others, "
            f"got {type(outputs).__name__!r}; `fit_embedding` takes any outputs"
        )
    odd = task.x[task.x.not_finite]  # a target may take NaN for a missing number
    with evaluation_mode(start.hnet):
        wrong = [x.call(start.hnet, task=0).isnan().any() for x in odd.split(_PIECE)]
    if any(wrong):
        raise ValueError(
            f"inputs of task {task.name!r} must be finite, got NaN or infinity in {len(odd)} of "
            f"{len(task.x)} samples, of which the target makes NaN"
        )


def _all(task: TaskSamples) -> Tensor:
    """The numbers of all samples."""
    return torch.arange(len(task.y), device=task.y.device)


def _fewest(task: TaskSamples) -> int:
    """The number of different samples of the rarest class; 0 without classes."""
    if not task.n_classes:
        return 0
    classes = torch.stack([task.y, task.first_equal]).unique(dim=1)[0]
    return int(classes.unique(return_counts=True)[1].min())


def _fit(
    start: Start, choice: Choice, held: HeldOut, seed: int, deadline: float
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The chosen ways' models of all samples, and why some have that of a part of them instead."""
    models: dict[str, nn.Module] = {}
    unfitted: dict[str, str] = {}
    for way in choice.weights:
        now = time.perf_counter()
        limit = max(deadline - now, 0.1) / (len(choice.weights) - len(models))
        try:
            if limit < _LEAST_OF_FOLD * held.seconds[way] / held.folds[0]:
                raise Unsuitable("`seconds` did not suffice for another fit")
            models[way] = WAYS[way](start, _all(start.task), seed, now + limit)
        except Unsuitable as error:
            models[way], unfitted[way] = held.models[way], str(error)
    return models, unfitted


@torch.no_grad()
def _expected(
    choice: Choice,
    held: HeldOut,
    task: TaskSamples,
    usual: Mapping[str, Usual],
    model: nn.Module,
) -> tuple[float | None, tuple[float, float] | None]:
    """Accuracy to expect of the task's ``model``, and its interval."""
    if not task.n_classes:
        return None, None
    guess = 1 / task.n_classes
    skill = sum(weight * usual[way].skill for way, weight in choice.weights.items())
    of_usual = guess + (1 - guess) * skill
    judged = choice.judged
    distinct = len(task.first_equal[judged].unique())  # equal samples are right or wrong together
    right = distinct * float(choice.right.float().mean()) if distinct else 0.0
    count = distinct + _PRIOR_COUNT
    accuracy = (right + _PRIOR_COUNT * of_usual) / count
    rest = held.out & ~judged
    if rest.any():  # usual at best: a class is not known whose own examples the model gets wrong
        outputs = torch.cat([x.call(model) for x in task.x[rest].split(_PIECE)])
        own = float((outputs.argmax(1) == task.y[rest]).float().mean())
        share = int(rest.sum()) / int(held.out.sum())
        accuracy = (1 - share) * accuracy + share * own * of_usual
    # A model of all samples errs less than those of folds.
    errors = (1 - accuracy) * (1 if held.once else held.share ** _usual_rate(accuracy, task))
    # Models of overlapping samples err alike, so that n samples tell less than n.
    worth = count / (1 + held.folds[0] * (1 - held.share) / held.share)
    return 1 - errors, wilson((1 - errors) * worth, worth)


def _usual_rate(accuracy: float, task: TaskSamples) -> float:
    """The usual exponent at which errors fall, 0 where nothing was learned: noise is for ever."""
    guess = _guessing(task)
    return _RATE * max(0.0, (accuracy - guess) / (1 - guess))


def _rate(
    start: Start, choice: Choice, held: HeldOut, accuracy: float, seed: int, deadline: float
) -> float:
    """The exponent at which errors fall with the number of samples.

    It is that between models of half the samples and those of folds, as far as the numbers of
    errors tell it, and the usual one otherwise.
    """
    count = sum(held.seconds[way] for way in choice.weights) / held.folds[0]
    task, usual = start.task, _usual_rate(accuracy, start.task)
    if _fewest(task) < _FEWEST_HALVED or held.once or time.perf_counter() + 2 * count > deadline:
        return usual
    halves = hold_out(start, tuple(choice.weights), seed, deadline, folds=2)
    if halves.unsuitable or halves.untried:
        return usual
    judged, right = right_of(halves, task, choice.weights, choice.temperatures, halves.out)
    both = (right[judged], choice.right)
    errors = [float((~r).sum()) + 0.5 for r in both]
    shares = [e / (len(r) + 1) for e, r in zip(errors, both, strict=True)]
    apart = math.log(held.share / halves.share)
    found = math.log(shares[0] / shares[1]) / apart
    certainty = apart**2 / (1 / errors[0] + 1 / errors[1])
    prior = 1 / _RATE_SPREAD**2
    return max(0.0, (certainty * found + prior * usual) / (certainty + prior))


def _why(choice: Choice, held: HeldOut) -> str:
    parts = [f"{in_words(way)} ({weight:.0%})" for way, weight in choice.weights.items()]
    best = min(choice.losses, key=choice.losses.__getitem__)
    count = int(held.out.sum())
    examples = f"{count} example{'s' if count > 1 else ''}"
    text = f"On {examples} held out, {' and '.join(parts)} had a mean loss of {choice.loss:.2f}"
    if len(parts) > 1:
        text += f" together; the best alone, {in_words(best)}, {choice.losses[best]:.2f}"
        if choice.losses[best] < choice.loss:
            text += "; the others are kept all the same, as a mixture is safer"
    unjudged = [in_words(way) for way in choice.losses if not held.judged[way].any()]
    if unjudged:
        text += (
            f". One example a class cannot tell what {', '.join(unjudged)} would be worth, which "
            "was taken from other tasks"
        )
    return text + "."


def _warnings(
    choice: Choice, held: HeldOut, task: TaskSamples, interval: tuple[float, float] | None
) -> tuple[str, ...]:
    found = [f"{in_words(way)} does not apply: {why}" for way, why in held.unsuitable.items()]
    if held.untried:
        found.append(f"`seconds` did not suffice to try {listed(held.untried)}; give more")
    if _may_be_guessing(choice, task, interval):
        found.append(
            "The accuracy on examples held out may be no better than guessing: give more examples "
            "a class, and see that inputs and labels are right"
        )
    equal = len(task.y) - len(task.first_equal.unique())
    if equal > _MANY_EQUAL * len(task.y):
        found.append(
            f"{equal} of {len(task.y)} examples have the inputs of others; these are held out "
            "together, as the accuracy to expect is that on inputs which are not among the examples"
        )
    if not task.n_classes and task.loss is None:
        variance = float(task.y.float().var(0, correction=0).mean())
        if choice.loss >= variance:
            found.append(
                f"The squared error on examples held out, {choice.loss:.3g}, is no less than the "
                f"labels' variance, {variance:.3g}: give more examples, and labels in the units "
                "and of the size of the known tasks'"
            )
    done, wanted = held.folds
    if done < wanted:
        found.append(f"`seconds` sufficed for {done} of {wanted} parts to hold out; give more")
    return tuple(found)


def _may_be_guessing(
    choice: Choice, task: TaskSamples, interval: tuple[float, float] | None
) -> bool:
    """Whether a classifier may be no better than guessing."""
    return interval is not None and len(choice.right) > 0 and interval[0] <= _guessing(task)


def _guessing(task: TaskSamples) -> float:
    """The accuracy of always naming the most frequent class."""
    return float(task.y.bincount().max()) / len(task.y)
