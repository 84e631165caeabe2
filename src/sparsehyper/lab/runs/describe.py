"""Facts about a training run, for `sparsehyper.lab.report`.

All work is bounded, so that runs with hundreds of tasks or large targets take seconds too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.classifiers import accuracy, mask_classes
from sparsehyper.analysis import (
    count_multiply_adds,
    distances,
    layer_statistics,
    line,
    nearest_vectors,
    project,
    summarize,
    task_embeddings,
)
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, TaskSplit, images_of
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.lab.runs.conditioners import is_by_task
from sparsehyper.lab.runs.internals import filters, wiring
from sparsehyper.lab.runs.loading import (
    LoadedRun,
    check_fingerprint,
    finished_result,
    load_run,
    read_run_config,
    recorded_tasks,
)
from sparsehyper.lab.runs.setup import load_tasks
from sparsehyper.lab.runs.task_list import is_adapted
from sparsehyper.training import Run, evaluate
from sparsehyper.training.directory import read_config
from sparsehyper.training.evaluate import ACCURACY
from sparsehyper.training.sources import condition

_COMPARED = 200  # most tasks in the table of distances
_CHOSEN = 6  # most tasks whose filters are shown, and between all pairs of which is interpolated
_POINTS = 11  # points on a line between two tasks
_CURVES = {"train": ("step", "loss"), "validation": ("step", "loss", "accuracy", "worst_accuracy")}
_WORK = 10**11  # multiply-adds to spend on confusion matrices, and as many on interpolation


def describe_run(
    directory: str | PathLike[str],
    *,
    data_dir: str | PathLike[str] | None = None,
    trust: Collection[str] = (),
) -> dict[str, Any]:
    """Facts about a run, for a report.

    Args:
        directory: directory of the run; of any method, finished or not, adapted or not.
        data_dir: folder of the named data sets' files.
        trust: as `load_run` takes it.

    Returns:
        A JSON-ready dict. Values that do not apply are None: a baseline has no embeddings, nor
        has a run whose models follow from the input; an
        adapted run, or one whose images are missing, has no confusion matrices, nor has one that
        predicts numbers.

        - ``kind`` (``"run"``), ``name`` of the directory, resolved ``config``, ``versions``;
        - ``score``: what every ``accuracy`` below is, ``"accuracy"`` or ``"R²"``; ``samples``: what
          the ``images`` below are, ``"images"``, ``"rows"`` or ``"sequences"``;
        - ``missing``: why there are no images, or None; ``split``: the images that everything below
          was measured on: ``"test"``, or ``"val"`` for a run that has not finished;
        - ``evaluation``: `Evaluation.to_dict` from ``result.json``, without the single tasks;
        - ``training``: the same file's ``training``, without its best evaluation; ``made``: its
          ``date``, ``command`` and ``machine``;
        - ``curves``: ``train`` and ``validation``, the lines of ``metrics.jsonl`` by column;
        - ``tasks``: for each ``name``, ``classes``, ``origin``, ``images``, ``accuracy``, ``loss``,
          what was ``measured`` when an added task was learned (as `Measured`), ``nearest`` (number
          of the task with the nearest embedding) and its ``distance``; first those with one;
        - ``confusion``: ``images`` (at most, per task) and ``matrices`` (one per task, with a row
          of counts for each true class);
        - ``map``: ``points`` in the plane of the largest variance, and the share ``explained``;
        - ``distances``: ``tasks`` (numbers) and ``values``, rows of cosine distances;
        - ``interpolation``: ``tasks``, ``positions``, ``images`` per task, ``mean_statistics``
          (whether there are batch norms, which use the mean statistics of all tasks), and
          ``pairs`` of numbers ``a`` and ``b`` with the accuracies on both, ``of_a`` and ``of_b``;
        - ``filters`` of the first layer: ``tensor``, ``shape`` and ``rows``, each with its
          ``task`` (None for all tasks), base64 int8 ``pixels`` and their ``scale``, the largest
          magnitude in the row;
        - ``layers``: `layer_statistics`, with ``initial_std``; ``summary``: `summarize`;
        - ``wiring`` of a sparse generator: ``sizes``, ``fan_ins``, and ``traces`` of some outputs.

    Raises:
        FileNotFoundError, CheckpointError: as `load_run`.
    """
    path = Path(directory)
    loaded = load_run(path, trust=trust)
    experiment, info, model = loaded.experiment, loaded.tasks, loaded.model
    versions = read_config(path).get("versions", {})
    result = None if is_adapted(path) else finished_result(path, experiment)
    split = "test" if result else "val"
    tasks, missing = _load_run_tasks(path, loaded, data_dir)
    images = None if tasks is None else getattr(tasks, split)
    n_classes = info.n_classes
    evaluation: dict[str, Any] | None = result["test"] if result else None
    if evaluation is None and tasks is not None:
        evaluation = evaluate(
            model,
            getattr(tasks, split),
            names=info.names,
            n_classes=n_classes,
            variance=tasks.variance,
        ).to_dict()
    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "classes": list(entry.classes),
            "origin": entry.origin,
            "images": images.counts[i] if images is not None else None,
            "accuracy": evaluation["accuracies"][entry.name] if evaluation else None,
            "loss": evaluation["losses"][entry.name] if evaluation else None,
            "entropy": evaluation.get("entropies", {}).get(entry.name) if evaluation else None,
            "measured": entry.measured and dataclasses.asdict(entry.measured),
            "nearest": None,
            "distance": None,
        }
        for i, entry in enumerate(loaded.task_list.entries)
    ]
    own = {entry.name for entry in loaded.task_list.entries if entry.model is not None}
    if is_by_task(model):
        own -= set(model.task_names)  # they have an embedding too
    rows.sort(key=lambda row: row["name"] in own)
    described: dict[str, Any] = {
        "kind": "run",
        "name": path.resolve().name,
        "config": _without_tasks(read_run_config(path)),
        "versions": versions,
        "score": evaluation.get("score", ACCURACY) if evaluation else info.score,
        "samples": experiment.data.samples,
        "missing": missing,
        "split": split,
        "evaluation": _without(evaluation, "accuracies", "losses", "entropies"),
        "training": _without(result and result["training"], "best"),
        "made": result and {key: result.get(key) for key in ("date", "command", "machine")},
        "curves": _curves(Run(path).read_metrics()),
        "tasks": rows,
        "confusion": None,
        **dict.fromkeys(("map", "distances", "interpolation", "layers", "summary", "wiring")),
        "filters": None,
    }
    if images is not None and not info.are_numbers:
        most = _affordable(model, images, len(rows), 50, 1000)
        described["confusion"] = {
            "images": most,
            "matrices": [_confusion(model, images, i, n, most) for i, n in enumerate(n_classes)],
        }
    generated = rows[: len(rows) - len(own)]
    chosen = list(range(len(generated)))[:_CHOSEN]
    if is_by_task(model):
        between = distances(task_embeddings(model))
        chosen = _choose(between, [row["accuracy"] for row in generated])
        described |= _describe_embeddings(model, between, generated)
        if images is not None and len(rows) > 1 and not info.are_numbers:
            described["interpolation"] = _interpolate(model, images, chosen, n_classes)
    # The rows of adapted experts are other tasks.
    others = is_adapted(path) and isinstance(model, Experts)
    single = is_by_task(model) or not isinstance(model, HyperNetwork)
    if info.columns is None and single and not others:
        described["filters"] = filters(model, info.image_shape, chosen)
    return described


def _load_run_tasks(
    path: Path, loaded: LoadedRun, data_dir: str | PathLike[str] | None
) -> tuple[TaskSet | None, str | None]:
    """The images of the tasks, or the reason why there are none, so that other runs are shown."""
    samples = loaded.experiment.data.samples
    if is_adapted(path):
        return None, (
            f"This run has other tasks than it was trained on, and no {samples} of them; what was "
            "measured when they were learned is in the table of tasks."
        )
    try:
        tasks = load_tasks(loaded.experiment.data, data_dir, known=recorded_tasks(path))
        check_fingerprint(path, loaded.tasks.fingerprint, tasks.fingerprint)
    except FileNotFoundError as error:
        return None, f"The {samples} were not found: {error}"
    except (OSError, KeyError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error  # its text has quotes
        return None, f"The {samples} cannot be used: {reason}"
    return tasks, None


def _without(values: Mapping[str, Any] | None, *keys: str) -> dict[str, Any] | None:
    return None if values is None else {k: v for k, v in values.items() if k not in keys}


def _without_tasks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the long lists of tasks and classes."""
    resolved = config["resolved"]
    return {
        **config,
        "resolved": {**resolved, "tasks": _without(resolved["tasks"], "names", "classes")},
    }


def _curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    return {
        kind: {key: [row[key] for row in metrics if row["kind"] == kind] for key in keys}
        for kind, keys in _CURVES.items()
    }


def _affordable(model: nn.Module, split: TaskSplit, runs: int, least: int, most: int) -> int:
    """Number of images for each of ``runs`` passes through a target, within the limits."""
    x, _ = images_of(split, 0, 1)
    if isinstance(model, HyperNetwork):
        z = torch.zeros(model.conditioner.dim, device=model.device, dtype=model.dtype)
        module = model.materialize(0 if is_by_task(model) else z).eval()
    elif isinstance(model, Experts):
        module = model.experts[0]
    else:
        assert isinstance(model, SharedTrunk)
        module = model.trunk
    return max(least, min(most, _WORK // max(1, count_multiply_adds(module, x)) // runs))


@torch.no_grad()
def _confusion(
    model: nn.Module, split: TaskSplit, task: int, n_classes: int, most: int
) -> list[list[int]]:
    x, y = images_of(split, task, most)
    logits = torch.cat([model(some, **condition(model, task)) for some in x.split(500)])
    cells = y * n_classes + mask_classes(logits, n_classes).argmax(1)
    counts = torch.bincount(cells, minlength=n_classes**2)
    return counts.view(n_classes, n_classes).tolist()


def _choose(between: Tensor, accuracies: Sequence[float | None]) -> list[int]:
    """The worst task, the best, then repeatedly the farthest from all chosen; sorted."""
    n = len(accuracies)
    if n <= _CHOSEN:
        return list(range(n))
    known = [0.0 if a is None else a for a in accuracies]
    chosen = [known.index(min(known))]
    if max(known) > min(known):
        chosen.append(known.index(max(known)))
    while len(chosen) < _CHOSEN:
        nearest = between[chosen].amin(0)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


def _describe_embeddings(
    model: HyperNetwork, between: Tensor, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Describe what needs no images; adds the nearest task to each of ``rows``."""
    if len(rows) > 1:
        nearest, cosines = nearest_vectors(task_embeddings(model))
        for row, i, cosine in zip(rows, nearest.tolist(), cosines.tolist(), strict=True):
            row |= {"nearest": i, "distance": 1 - cosine}
    projection = project(task_embeddings(model))
    compared = torch.arange(min(_COMPARED, len(rows))) * len(rows) // min(_COMPARED, len(rows))
    summary = summarize(model)
    statistics = layer_statistics(model)
    return {
        "map": {
            "points": [[round(x, 4) for x in point] for point in projection.points.tolist()],
            "explained": list(projection.explained),
        },
        "distances": {
            "tasks": compared.tolist(),
            "values": [
                [round(x, 3) for x in row] for row in between[compared][:, compared].tolist()
            ],
        },
        "layers": [
            {**row, "initial_std": tensor["initial_std"]}
            for row, tensor in zip(statistics, summary["tensors"], strict=True)
        ],
        "summary": summary,
        "wiring": wiring(model),
    }


def _interpolate(
    model: HyperNetwork, split: TaskSplit, chosen: list[int], n_classes: Sequence[int]
) -> dict[str, Any]:
    pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    most = _affordable(model, split, 2 * _POINTS * len(pairs), 20, 200)
    images = {task: images_of(split, task, most) for task in chosen}

    def along(a: int, b: int, task: int) -> list[float]:
        def measure(module: nn.Module) -> float:
            return accuracy(module, *images[task], n_classes[task])

        head = None if model.head is None else task
        return list(line(model, measure, a, b, points=_POINTS, head=head).values)

    return {
        "tasks": chosen,
        "positions": [i / (_POINTS - 1) for i in range(_POINTS)],
        "images": most,
        "mean_statistics": bool(model.target.statistics.names),
        "pairs": [
            {"a": a, "b": b, "of_a": along(a, b, a), "of_b": along(a, b, b)} for a, b in pairs
        ],
    }
