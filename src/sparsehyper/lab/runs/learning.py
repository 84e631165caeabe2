"""New tasks for a run, learned from the images of a folder, or from the rows of a table.

A hypernetwork learns a task by the best means that its images allow (`adapt_tasks`), by one of
these means, or by its embedding alone. A baseline learns a last layer on its shared trunk, or on
the best of its experts. Where numbers are predicted, a task's last layer follows in closed form, or
its embedding is fitted. Where embeddings follow from examples, those of a new task do too, without
training.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_integer, check_number
from sparsehyper._util.inputs import Inputs
from sparsehyper._util.modes import evaluation_mode
from sparsehyper._util.objectives import score_of, variance_of
from sparsehyper._util.random import normal, seeded
from sparsehyper.adaptation import Adapted, adapt_tasks, fine_tune, fit_embeddings
from sparsehyper.adaptation.auto import FEW
from sparsehyper.adaptation.tune import tuned_parameters
from sparsehyper.adaptation.ways import in_words
from sparsehyper.conditioning import TaskExamples
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import LabelledTask
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.lab.runs.fitted import fitted_tensors, trimmed_head
from sparsehyper.lab.runs.loading import LoadedRun
from sparsehyper.lab.runs.ordinary import Form, form_of, tensors_of
from sparsehyper.lab.runs.probes import best_of
from sparsehyper.lab.runs.profiles import Images, own_images
from sparsehyper.lab.runs.setup import read_new_tasks
from sparsehyper.lab.runs.task_list import HEAD, Measured, TaskEntry, TaskList

_SECONDS = 20.0  # for a task
LEARNED_BY = ("auto", "examples", "linear", "head", "embedding", "norms", "all", "scratch")
"""Ways to learn a new task; ``"examples"`` is for runs with support sets, and ``"embedding"`` takes
settings of its own."""

_MOST_KNOWN = 300  # images of each known task
# Share of the way from the commonest class to all images right below which a task was not learned.
_LEAST_LEARNED = 0.2
_TINY = 1e-30  # no error at all
_PIECE = 500  # samples at a time
_FEWEST_ROWS = 20  # that tell the R² to expect: of 12 it is wrong by 0.7, of 20 by 0.4


@dataclass(frozen=True)
class Learned:
    """A new task as it was learned.

    Attributes:
        module: its ordinary model, in evaluation mode.
        tensors: what to keep of it.
        seconds: duration.
        tune, method, model: as `TaskEntry` has them.
        adapted: what `adapt_tasks` returned, if it was asked.
        expected: R² to expect of new rows, and its 95% interval, if they can be told.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    seconds: float
    tune: str | None = None
    method: str | None = None
    model: Form | None = None
    adapted: Adapted | None = None
    expected: tuple[float, tuple[float, float]] | None = None


@dataclass(frozen=True)
class _Tuning:
    tune: str | None
    steps: int
    lr: float
    seed: int

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> nn.Module:
        if self.tune is not None:
            fine_tune(
                *(module, (x, y)),
                tune=self.tune,
                n_classes=None if y.is_floating_point() else n_classes,
                steps=self.steps,
                lr=self.lr,
                seed=self.seed,
            )
        return module.eval()


def fit_tasks(
    loaded: LoadedRun,
    data: str | PathLike[str],
    *,
    task: str | None = None,
    method: str = "auto",
    seconds: float = _SECONDS,
    tune: str | None = None,
    tune_steps: int = 100,
    tune_lr: float = 1e-3,
    resize: bool = False,
    seed: int = 0,
    **settings: Any,
) -> tuple[TaskList, list[dict[str, Any]]]:
    """Learn all tasks of a folder.

    Args:
        loaded: the run; a hypernetwork gets the new tasks.
        data: the folder, as `adapt_run` takes it.
        task: name of the one task that the folder holds.
        method: one of `LEARNED_BY`; ``"auto"`` chooses, and with support sets is ``"examples"``. A
            baseline takes no other.
        seconds: time to take for each task, about; ``"auto"`` takes far less for numbers and with
            support sets. Not for ``"examples"``, ``"embedding"`` and baselines.
        tune: part of each new task's model to train further, as `fine_tune` takes it; for
            ``"embedding"`` and baselines.
        tune_steps: number of updates of this training.
        tune_lr: its learning rate.
        resize: resize images to the size that the model takes.
        seed: seed of everything random.
        **settings: settings of `fit_embeddings`, for ``"embedding"``.

    Returns:
        The tasks with the new ones added, and one row per new task: ``task``, ``classes``,
        ``method``, ``score`` (``"accuracy"`` or ``"R²"``), what `Measured` has, and ``seconds``. A
        warning tells of a task that was hardly learned.
    """
    model, info, tasks = loaded.model, loaded.tasks, loaded.task_list
    by_examples = isinstance(model, HyperNetwork) and isinstance(model.conditioner, TaskExamples)
    asked = method
    if info.are_numbers:
        method = _way_to_numbers(model, method)
    elif by_examples and method == "auto":
        method = "examples"
    elif method == "examples" and not by_examples:
        raise ValueError(
            "`method` 'examples' is for a run with `conditioner` 'support_set', whose embeddings "
            "follow from examples; take 'auto'"
        )
    given = {"tune": tune, "tune_steps": tune_steps, "tune_lr": tune_lr, **settings}
    follows = method == "examples" or (info.are_numbers and method == "auto")
    _check_settings(model, method, asked, {"seconds": seconds, **given})
    device = next(model.parameters()).device
    if tune is not None:
        some = normal([2, *info.image_shape], seeded(0)).float().to(device)
        tuned_parameters(_materialized(model, 0), tune, some)  # raises before any work is lost
    if task is not None:
        tasks.check_new(task)
    labelled = read_new_tasks(info, data, task=task, resize=resize)
    for one in labelled:
        tasks.check_new(one.name)
    if method == "examples":
        _check_support(model, labelled)
    samples = {
        one.name: (info.normalise(one.examples.pixels).to(device), one.examples.labels.to(device))
        for one in labelled
    }
    tuning = _Tuning(tune, tune_steps, tune_lr, seed)
    if not isinstance(model, HyperNetwork):
        learned = _last_layers(loaded, labelled, samples, tuning)
    elif follows:
        learned = _following(model, labelled, samples)
    elif method == "embedding":
        learned = _embeddings(model, labelled, samples, tuning, settings)
    else:
        learned = _adapted(loaded, labelled, samples, method, seconds, seed)
    rows = []
    for one in labelled:
        found = learned[one.name]
        measured = _measured(found, one, samples[one.name], loaded)
        entry = TaskEntry(
            *(one.name, one.classes, None, None),
            *(found.tune, found.method, found.model, measured),
        )
        tasks = tasks.add(entry, {k: t.cpu().clone() for k, t in found.tensors.items()})
        if not info.are_numbers:
            part = method if found.adapted is None else None
            _warn_if_hardly_learned(one, measured, part, loaded.experiment.data.samples)
        rows.append(
            {
                "task": one.name,
                "classes": list(one.classes),
                "method": tasks.entries[-1].origin,
                "score": info.score,
                **dataclasses.asdict(measured),
                "seconds": found.seconds,
            }
        )
    return tasks, rows


def _check_settings(model: nn.Module, method: str, asked: str, given: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a setting out of range, or one that does not apply.

    Args:
        model: the run's model.
        method: the method.
        asked: the method that was asked for.
        given: the other settings.
    """
    check_choice("method", method, LEARNED_BY)
    check_number("seconds", given["seconds"], above=0)
    check_integer("tune_steps", given["tune_steps"], minimum=1)
    check_number("tune_lr", given["tune_lr"], above=0)
    own = inspect.signature(fit_tasks).parameters
    fits = inspect.signature(fit_embeddings).parameters
    tunes = {"tune", "tune_steps", "tune_lr"}
    baseline = not isinstance(model, HyperNetwork)
    for name, value in {"method": method, **given}.items():
        parameter = own.get(name, fits.get(name))
        if parameter is None:
            raise TypeError(f"unexpected setting {name!r}")
        if value == parameter.default:
            continue
        if baseline and name not in tunes:
            raise ValueError(
                f"`{name}` is for hypernetworks; a run of {type(model).__name__} learns a last "
                f"layer; got {value!r}"
            )
        if not baseline and name == "seconds" and asked in ("examples", "embedding"):
            raise ValueError(f"`seconds` is not for `method` {asked!r}, got {value!r}")
        if not baseline and name not in ("method", "seconds") and method != "embedding":
            raise ValueError(
                f"`{name}` is for `method` 'embedding' alone, got {value!r} with `method` "
                f"{method!r}"
            )
        if name in ("tune_steps", "tune_lr") and given["tune"] is None:
            raise ValueError(f"`{name}` is for `tune`, which is not given; got {value!r}")


def _way_to_numbers(model: nn.Module, method: str) -> str:
    """The method for a regression; raises ``ValueError`` for one that is for classes."""
    if not isinstance(model, HyperNetwork):
        raise ValueError(
            f"a new task whose target is a number needs a hypernetwork, got a run of "
            f"{type(model).__name__}"
        )
    if method not in ("auto", "embedding"):
        raise ValueError(
            f"`method` must be 'auto' or 'embedding' where the target is a number, got {method!r}"
        )
    return method if model.head is not None else "embedding"


def _check_support(model: nn.Module, labelled: Sequence[LabelledTask]) -> None:
    """Raise ``ValueError`` for a task with a single class, or more than a support set may have."""
    assert isinstance(model, HyperNetwork)
    assert isinstance(model.conditioner, TaskExamples)
    most = model.conditioner.support.n_classes
    for one in labelled:
        if len(one.examples.labels.unique()) < 2:
            raise ValueError(
                f"task {one.name!r} needs samples of at least 2 classes, got samples of one"
            )
        if len(one.classes) > most:
            raise ValueError(
                f"task {one.name!r} has {len(one.classes)} classes, and the run takes examples of "
                f"at most {most}: give it another `method`, such as 'all', or train a run with "
                "more `outputs`"
            )


def _following(
    model: HyperNetwork, labelled: Sequence[LabelledTask], samples: Images
) -> dict[str, Learned]:
    """Tasks whose models follow from their examples without training: embeddings, heads or both.

    Without support sets it is the mean embedding of the known tasks. The heads of regressions start
    from the prior that the known tasks give; an embedding of the task's own adds nothing to that
    (`benchmarks/sites`).
    """
    learned = {}
    by_examples = isinstance(model.conditioner, TaskExamples)
    for one in labelled:
        began = time.perf_counter()
        own, count = samples[one.name], len(one.classes)
        number = model.add_task(one.name, own if by_examples else "mean")
        if model.head is not None:
            model.solve_head(one.name, own)
        module = trimmed_head(model, model.materialize(one.name), count).eval()
        tensors = fitted_tensors(model, number, count)
        how = "examples" if by_examples else HEAD
        expected = _expected_r_squared(model, number, *own) if own[1].is_floating_point() else None
        seconds = time.perf_counter() - began
        learned[one.name] = Learned(module, tensors, seconds, method=how, expected=expected)
    return learned


@torch.no_grad()
def _expected_r_squared(
    model: HyperNetwork, task: int, x: Tensor, y: Tensor
) -> tuple[float, tuple[float, float]] | None:
    """R² of new rows and its 95% interval, as each row predicted from the others tells them.

    The features must not be fitted to the rows. Copies of a row are left out with it. The interval
    is that of log(error / variance), whose standard error follows from what each row adds to both;
    it is widened as `Adapted.interval` is, since predictions from nearly the same rows err alike.
    On simulated sites it held in 85 to 91% of tasks of 20 rows, 89 to 94% of 40, 92 to 98% of 100.
    """
    first_equal = Inputs.of(torch.cat([x.flatten(1), y], 1)).first_equal
    count = len(first_equal.unique())
    variance = variance_of(y)
    if count < _FEWEST_ROWS or variance is None:
        return None
    with evaluation_mode(model):
        features = torch.cat([model.features(part, task=task) for part in x.split(_PIECE)])
    predicted = model.own_head().numbers_left_out(features, y, first_equal)
    errors, distances = (predicted - y).square().mean(1), (y - y.mean(0)).square().mean(1)
    ratio = float(errors.mean()) / variance
    shares = errors / errors.mean().clamp(min=_TINY) - distances / distances.mean()
    spread = 1.96 * float(shares.std()) * math.sqrt(2 / count)
    found = 1 - ratio, (1 - ratio * math.exp(spread), 1 - ratio * math.exp(-spread))
    return found if math.isfinite(ratio) and math.isfinite(spread) else None


def _adapted(
    loaded: LoadedRun,
    labelled: Sequence[LabelledTask],
    samples: Images,
    method: str,
    seconds: float,
    seed: int,
) -> dict[str, Learned]:
    """Tasks by the best means, each as if it were the only new one."""
    model, learned, known = loaded.hypernetwork(), {}, None
    if any(int(y.unique(return_counts=True)[1].min()) <= FEW for _, y in samples.values()):
        known = (own_images(loaded, _MOST_KNOWN) or {}).get("train")
    classes = {one.name: len(one.classes) for one in labelled}
    with torch.no_grad():
        some = next(iter(samples.values()))[0][:2]
        outputs = model.materialize(0).eval()(some).shape[1]
    found = adapt_tasks(
        *(model, samples),
        known=known,
        method=method,
        n_classes=classes,
        seconds=seconds,
        seed=seed,
    )
    for name, adapted in found.items():
        form, leaves = form_of(adapted.model, loaded.tasks.image_shape)
        tensors = tensors_of(leaves)
        if model.head is not None or outputs >= classes[name]:  # else the embedding says nothing
            tensors |= fitted_tensors(model, model.tasks.index(name), classes[name])
        shares = ", ".join(
            f"{in_words(way)} {own.weight:.0%}" for way, own in adapted.ways.items() if own.weight
        )
        learned[name] = Learned(
            *(adapted.model, tensors, adapted.seconds),
            method=f"auto: {shares}" if method == "auto" else method,
            model=form,
            adapted=adapted,
        )
    return learned


def _embeddings(
    model: HyperNetwork,
    labelled: Sequence[LabelledTask],
    samples: Images,
    tuning: _Tuning,
    settings: Mapping[str, Any],
) -> dict[str, Learned]:
    """Tasks by their embeddings, and by training more of their models then."""
    learned = {}
    classes = {one.name: len(one.classes) for one in labelled}
    numbers = next(iter(samples.values()))[1].is_floating_point()
    fits = fit_embeddings(
        model, samples, seed=tuning.seed, n_classes=None if numbers else classes, **settings
    )
    for name, count in classes.items():
        began = time.perf_counter()
        module = trimmed_head(model, model.materialize(name), count)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        tuning(module, *samples[name], count)
        tensors = fitted_tensors(model, model.tasks.index(name), count)
        tensors |= {
            f"tuned/{parameter}": tensor.detach()
            for parameter, tensor in module.named_parameters()
            if not torch.equal(tensor, before[parameter])
        }
        seconds = fits[name].seconds / len(classes) + time.perf_counter() - began
        learned[name] = Learned(module, tensors, seconds, tune=tuning.tune)
    return learned


def _last_layers(
    loaded: LoadedRun, labelled: Sequence[LabelledTask], samples: Images, tuning: _Tuning
) -> dict[str, Learned]:
    """Tasks by new last layers for a baseline."""
    model, learned = loaded.model, {}
    assert isinstance(model, (Experts, SharedTrunk))
    experts = isinstance(model, Experts)
    known = range(len(model.task_names) if experts else 1)
    for one in labelled:
        began = time.perf_counter()
        x, y = samples[one.name]
        count = len(one.classes)
        module = best_of((model.materialize(row).eval() for row in known), x, y, count)
        tuning(module, x, y, count)
        form, leaves = form_of(module, loaded.tasks.image_shape)
        learned[one.name] = Learned(
            *(module, tensors_of(leaves), time.perf_counter() - began, tuning.tune),
            "last layer on " + ("the nearest expert" if experts else "the shared trunk"),
            form,
        )
    return learned


def _materialized(model: nn.Module, task: int | str) -> nn.Module:
    assert isinstance(model, (HyperNetwork, Experts, SharedTrunk))
    return model.materialize(task)


def _measured(
    learned: Learned, one: LabelledTask, own: tuple[Tensor, Tensor], loaded: LoadedRun
) -> Measured:
    count, adapted = len(one.classes), learned.adapted
    found = Measured(len(own[1]), score_of(learned.module, *own, count))
    if one.test is not None:
        x, y = loaded.tasks.normalise(one.test.pixels).to(own[0]), one.test.labels.to(own[1])
        tested = score_of(learned.module, x, y, count)
        found = replace(found, test_images=len(y), test_accuracy=tested)
    if loaded.tasks.are_numbers:
        return _of_numbers(found, learned, own[1], loaded)
    if adapted is None:
        return found
    return replace(
        found,
        expected=adapted.accuracy,
        interval=adapted.interval,
        more=(adapted.more[2], adapted.more[4]) if adapted.more else None,
        why=adapted.why,
        warnings=adapted.warnings,
    )


def _of_numbers(found: Measured, learned: Learned, y: Tensor, loaded: LoadedRun) -> Measured:
    """What was measured, with R² to expect of new rows and errors in the target's own unit."""
    columns, variance = loaded.tasks.columns, variance_of(y)
    if variance is None or found.accuracy is None:
        return found
    assert columns is not None
    assert columns.scaling is not None
    spread = columns.scaling.scale * math.sqrt(variance)
    found = replace(found, error=spread * math.sqrt(1 - found.accuracy))
    if learned.expected is None:
        return found
    expected, interval = learned.expected
    error = spread * math.sqrt(1 - expected)
    return replace(found, expected=expected, interval=interval, expected_error=error)


def _warn_if_hardly_learned(
    one: LabelledTask, measured: Measured, part: str | None, samples: str
) -> None:
    """Warn if accuracy on the task's own images is hardly above the share of the largest class.

    Args:
        one: the task.
        measured: what was measured.
        part: the method, if a part of the model was all that could be learned.
        samples: what its samples are, such as images.
    """
    assert measured.accuracy is not None
    commonest = float(one.examples.labels.bincount().max()) / measured.images
    if measured.accuracy < commonest + _LEAST_LEARNED * (1 - commonest):
        right = "its images are in the folders of their classes"
        if samples != "images":
            right = f"the targets of its {samples} are right"
        remedy = f"see that {right}, and give more of them"
        if part is not None:
            more = "`method` 'all'" if part == "examples" else "`method` 'auto', or `tune` 'all'"
            remedy = f"let more of its model be learned ({more})"
        warnings.warn(
            f"the new task {one.name!r} was hardly learned: {measured.accuracy:.0%} of its own "
            f"{measured.images} {samples} are right, and {commonest:.0%} are of one class; "
            f"{remedy}",
            stacklevel=3,
        )
