"""The study of interpolation: what lies between the embeddings of two tasks, or of three.

Tasks are MNIST turned by equal steps. Every other angle is trained; the angles in between are what
an embedding between two neighbours should be good at, if the space of embeddings is one of angles.

Measured of each trained hypernetwork: accuracy along the line between neighbours, on the tasks at
both ends and on the task half-way; over the plane of three tasks, on the mean of these; of averaged
embeddings; and what a direction does to the generated weights: how straight their way is, how many
of them change, and in how many independent ways they can.

Source: accuracy along the line between two embeddings is a measure of F. Cubélier, "Sparse
hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_integer
from sparsehyper._util.classifiers import accuracy
from sparsehyper.adaptation import fit_embeddings
from sparsehyper.analysis import line, plane
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import TaskSet, images_of
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.studies.cells import (
    SCALES,
    Cell,
    Settings,
    SharedTasks,
    run_cells,
    shared_tasks,
    slug,
)
from sparsehyper.lab.studies.intervals import claim_of
from sparsehyper.lab.studies.learners import LEARNING, shots_of
from sparsehyper.lab.studies.search import (
    LR,
    LRS,
    SEARCH_SEED,
    run_searches,
    with_settings,
)
from sparsehyper.lab.studies.trainings import measured, training

# Method → its generator, budget, base, and how alike tasks start.
METHODS: dict[str, tuple[str, float | None, str, float]] = {
    "sparse": ("sparse", 4.0, "zeros", 0.0),
    "sparse, similar start": ("sparse", 4.0, "zeros", 0.9),
    "sparse, learned base": ("sparse", 4.0, "learned", 0.0),
    "sparse, MLP": ("sparse:activation=prelu", 4.0, "zeros", 0.0),
    "chunked": ("chunked", 4.0, "zeros", 0.0),
    "dense": ("dense", None, "zeros", 0.0),
}
REFERENCE = "sparse"

# What a model in between is compared with, on the task in between.
BETWEEN = ("half-way", "neighbour", "fitted")


@dataclass(frozen=True)
class Interpolation(Settings):
    """The study's settings.

    Args:
        data: tasks in a circle, of an even number; those of even numbers are trained, and those of
            odd ones lie in between.
        searched_on: the trained ones alone, for the search of learning rates.
        target: as `build_target` takes it.
        steps: updates.
        tasks_per_batch: of 25 images each.
        points: along a line, and each way over a plane; an odd number.
        shots: images a class that an embedding for a task in between is fitted to, to compare with.
        test_images: of each task, at most.
        trials: of each search.
        seeds: number of seeds.
        device: where training takes place.
    """

    data: DataConfig
    searched_on: DataConfig
    target: str = "mlp:100-100"
    steps: int = 1000
    tasks_per_batch: int = 4
    points: int = 11
    shots: int = 20
    test_images: int = 1000
    trials: int = 5
    seeds: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("points", self.points, minimum=3)
        if self.points % 2 == 0:
            raise ValueError(f"`points` must be odd, so that one is half-way, got {self.points}")


def interpolation_study(scale: str = "cpu") -> Interpolation:
    """The study's settings at a scale, as `new_tasks_study` has them."""
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        data, trained = DataConfig("digits", "rotated:6"), DataConfig("digits", "rotated:3")
        return Interpolation(data, trained, "mlp:200", 20, 3, 3, 5, 50, 2, 2)
    data, trained = DataConfig("mnist", "rotated:24"), DataConfig("mnist", "rotated:12")
    if scale == "cpu":
        return Interpolation(data, trained)
    return Interpolation(data, trained, "mlp:400-400-400", 30_000, device="auto")


def run_interpolation(
    study: Interpolation,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``seconds`` of all cells;
        ``searches`` of learning rates; ``rows``, one a method, of what each cell measured, for each
        seed; and ``claims``.
    """
    with shared_tasks(directory, [study.data, study.searched_on], data_dir) as files:
        file = files[study.data]
        searched = {
            f"search--{slug(method)}": (
                replace(_experiment(study, method, SEARCH_SEED), data=study.searched_on),
                {LR: LRS},
            )
            for method in METHODS
        }
        how: dict[str, Any] = {"workers": workers, "quiet": quiet}
        searches = run_searches(searched, study.trials, directory, files, **how)
        cells = [
            Cell(
                f"{slug(method)}--{seed}",
                {
                    "fingerprint": file.fingerprint,
                    "experiment": with_settings(
                        _experiment(study, method, seed),
                        searches[f"search--{slug(method)}"]["settings_found"],
                    ).to_dict(),
                    "points": study.points,
                    "shots": study.shots,
                    "test_images": study.test_images,
                    "learning": LEARNING["embedding"],
                },
            )
            for seed in range(study.seeds)
            for method in METHODS
        ]
        done = run_cells(cells, _cell, directory, files, **how)
    rows = []
    for method in METHODS:
        found = [done[f"{slug(method)}--{seed}"] for seed in range(study.seeds)]
        values = {name: [run[name] for run in found] for name in found[0] if name != "settings"}
        rows.append({"method": method, **values})
    return {
        "study": study.to_dict(),
        "machine": machine(),
        "searches": searches,
        "rows": rows,
        "claims": _claims(rows),
        "seconds": sum(cell["seconds"] for cell in [*done.values(), *searches.values()]),
    }


def _experiment(study: Interpolation, method: str, seed: int) -> Experiment:
    described, budget, base, similarity = METHODS[method]
    return Experiment(
        study.data,
        training(study.steps, seed, device=study.device),
        method=parse_method(described),
        budget=budget,
        latent_dim=64,
        base=base,
        similarity=similarity,
        target=study.target,
        batch_size=25 * study.tasks_per_batch,
        tasks_per_batch=study.tasks_per_batch,
    )


def _cell(settings: dict[str, Any], files: dict[DataConfig, SharedTasks]) -> dict[str, Any]:
    began = time.perf_counter()
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    known, between = tasks.select(tasks.names[::2]), tasks.select(tasks.names[1::2])
    model, values = measured(experiment, known)
    assert isinstance(model, HyperNetwork)
    found = _between(model.cpu(), known, between, settings, experiment.seed)
    return {
        "accuracy": values["accuracy"],
        "parameters": values["parameters"],
        **found,
        "seconds": time.perf_counter() - began,
    }


def _between(
    hnet: HyperNetwork, known: TaskSet, between: TaskSet, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """What lies between the trained tasks, JSON-ready: accuracies, and what becomes of weights."""
    count, points = len(known.names), settings["points"]
    on_known = [_judge(known, i, settings["test_images"]) for i in range(count)]
    on_between = [_judge(between, i, settings["test_images"]) for i in range(len(between.names))]
    neighbours = [(i, (i + 1) % count) for i in range(count)]
    lines = {
        "start": [line(hnet, on_known[a], a, b, points=points).values for a, b in neighbours],
        "end": [line(hnet, on_known[b], a, b, points=points).values for a, b in neighbours],
        "half-way": [line(hnet, on_between[a], a, b, points=points).values for a, b in neighbours],
    }
    third = max(1, count // 3)
    corners = (0, third, 2 * third)
    over = plane(
        hnet,
        lambda model: statistics.fmean(on_known[i](model) for i in corners),
        *corners,
        points=points,
    )
    mean = hnet.materialize(hnet.task_embedding.weight.detach().mean(0)).eval()
    samples = {
        name: shots_of(between.train, i, settings["shots"], seed)
        for i, name in enumerate(between.names)
    }
    ends = [hnet.materialize(i).eval() for i in range(count)]
    ways = [_straightness(hnet, a, b) for a, b in neighbours]
    changes = [_changing(hnet, a, b) for a, b in neighbours]
    ranks = [_directions(hnet, i) for i in range(count)]
    fit_embeddings(hnet, samples, seed=seed, **settings["learning"])
    fitted = [hnet.materialize(name).eval() for name in between.names]
    return {
        "lines": {name: _means(values) for name, values in lines.items()},
        "plane": asdict(over),
        "mean embedding": statistics.fmean(judge(mean) for judge in on_known),
        "half-way": statistics.fmean(values[points // 2] for values in lines["half-way"]),
        # The better of the two, which a user could tell only by labels.
        "neighbour": statistics.fmean(
            max(on_between[a](ends[a]), on_between[a](ends[b])) for a, b in neighbours
        ),
        "fitted": statistics.fmean(
            judge(model) for judge, model in zip(on_between, fitted, strict=True)
        ),
        "straightness": statistics.fmean(ways),
        "changing": statistics.fmean(changes),
        "directions": statistics.fmean(ranks),
    }


def _judge(tasks: TaskSet, task: int, most: int) -> Callable[[nn.Module], float]:
    """Accuracy on up to so many test images of a task."""
    x, y = images_of(tasks.test, task, most)
    classes = len(tasks.classes[task])
    return lambda model: accuracy(model, x, y, classes)


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*values, strict=True)]


@torch.no_grad()
def _straightness(hnet: HyperNetwork, a: int, b: int, steps: int = 16) -> float:
    """Distance of the generated weights of two tasks ÷ the length of the way between them; 1 where
    it is straight.
    """
    start, end = (hnet.normalise(hnet.embedding(i)[None])[0] for i in (a, b))
    way = torch.linspace(0, 1, steps + 1)[:, None]
    theta: Tensor = hnet.theta(start + way * (end - start))
    length = (theta[1:] - theta[:-1]).norm(dim=1).sum()
    return float((theta[-1] - theta[0]).norm() / length)


@torch.no_grad()
def _changing(hnet: HyperNetwork, a: int, b: int) -> float:
    """The smallest share of the weights in which nine tenths of the squared change from one task to
    another are.
    """
    start, end = hnet.theta(torch.stack([hnet.embedding(a), hnet.embedding(b)])).double()
    sums = (end - start).square().sort(descending=True).values.cumsum(0)
    return (int((sums < 0.9 * sums[-1]).sum()) + 1) / len(sums)


@torch.no_grad()
def _directions(hnet: HyperNetwork, task: int, step: float = 0.01) -> float:
    """In how many independent ways the weights change near a task: (Σ s²)² ÷ Σ s⁴ of the singular
    values s of the derivative of weights by embedding, taken by central differences.
    """
    z = hnet.embedding(task)
    steps = step * torch.eye(z.numel())
    derivative = (hnet.theta(z + steps) - hnet.theta(z - steps)).double() / (2 * step)
    squares = torch.linalg.eigvalsh(derivative @ derivative.T).clamp_min(0)
    return float(squares.sum().square() / squares.square().sum())


def _claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences over seeds, of accuracies on the tasks in between."""
    by_method = {row["method"]: row for row in rows}
    pairs = {}
    for method, row in by_method.items():
        for other in BETWEEN[1:]:
            pairs[method, f"half-way − {other}"] = (row["half-way"], row[other])
    for method in METHODS:
        if method != REFERENCE:
            ours, theirs = (by_method[name]["half-way"] for name in (REFERENCE, method))
            pairs["half-way", f"{REFERENCE} − {method}"] = (ours, theirs)
    return [claim_of(*place, *values) for place, values in pairs.items()]
