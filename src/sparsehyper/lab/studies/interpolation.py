"""The study of interpolation: what lies between the embeddings of two tasks, or of three.

Tasks are MNIST rotated by equal steps. Every other angle is trained. If embeddings form a space of
angles, an embedding between two neighbours should be good at the angle in between.

For each trained hypernetwork the study measures accuracy along the line between neighbours, on the
tasks at both ends and on the task half-way; over the plane through three tasks, as the mean over
these; and of the mean embedding. It also measures what a direction does to the generated weights:
how straight their path is, how many of them change, and in how many independent directions they
can.

Source: accuracy along the line between two embeddings is a measure of F. Cubélier, "Sparse
hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer
from sparsehyper._util.classifiers import accuracy
from sparsehyper.adaptation import fit_embeddings
from sparsehyper.analysis import line, plane
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import SharedTasks, TaskSet, images_of, shots_of
from sparsehyper.lab.plots import BLUE, GREEN, VERMILION
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.intervals import claim_of
from sparsehyper.lab.studies.learners import LEARNING
from sparsehyper.lab.studies.pages import Table, panels, percent, points, searches_table
from sparsehyper.lab.studies.search import LR, LRS, SEARCH_SEED, run_searches, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import measured, training

# Method → its generator, its budget, its base, and the similarity of tasks at the start.
INTERPOLATED_METHODS: dict[str, tuple[str, float | None, str, float]] = {
    "sparse": ("sparse", 4.0, "zeros", 0.0),
    "sparse, similar start": ("sparse", 4.0, "zeros", 0.9),
    "sparse, learned base": ("sparse", 4.0, "learned", 0.0),
    "sparse, MLP": ("sparse:activation=prelu", 4.0, "zeros", 0.0),
    "chunked": ("chunked", 4.0, "zeros", 0.0),
    "dense": ("dense", None, "zeros", 0.0),
}
_REFERENCE = "sparse"

# Colours of the lines of accuracy, and table headings of a row's keys.
_COLOURS = {"start": VERMILION, "end": BLUE, "half-way": GREEN}
_COLUMNS = {
    "trained tasks, %": "accuracy",
    "task half-way: embedding half-way, %": "half-way",
    "better neighbour, %": "neighbour",
    "fitted embedding, %": "fitted",
    "mean embedding on all trained tasks, %": "mean embedding",
}


@dataclass(frozen=True)
class Interpolation(Study):
    """The study of interpolation.

    Results: ``searches`` of learning rates; ``rows``, one for each method, with what its cells
    measured, for each seed; and ``claims``.

    Args:
        data: an even number of tasks in a circle; those at even places are trained, those at odd
            places lie in between.
        searched_on: the trained tasks alone, for the search of learning rates.
        target: as `build_target` takes it.
        steps: number of updates.
        tasks_per_batch: tasks in a batch, of 25 images each.
        points: number of points along a line, and along each side of a plane; odd.
        shots: images per class to fit the embedding of a task in between to, for comparison.
        test_images: images per task, at most.
        trials: number of trials of each search.
        seeds: number of seeds.
        device: training device.
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

    name = "interpolation"
    title = "Interpolation"
    question = (
        "What lies between the embeddings of two tasks: is the model half-way good at the task "
        "half-way?"
    )
    method = (
        "Tasks are images rotated by equal steps; every other angle is trained. Along the line "
        "between neighbours' embeddings, models are tested on the tasks at both ends and on the "
        "untrained one in between. There they are compared with the better of the two neighbours' "
        "models, and with an embedding fitted to 20 images per class. Each method has the learning "
        "rate that is best on validation images of the trained tasks. Straightness is the distance "
        "between generated weights ÷ the length of the path between them. The number of "
        "independent directions is (Σ s²)² ÷ Σ s⁴ of the singular values s of the derivative of "
        "the weights with respect to the embedding, at trained tasks. Means over neighbours ± "
        "standard deviation over seeds."
    )
    picture = "lines.svg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("points", self.points, minimum=3)
        if self.points % 2 == 0:
            raise ValueError(f"`points` must be odd, so that one is half-way, got {self.points}")

    @classmethod
    def smoke(cls) -> Interpolation:
        data, trained = DataConfig("digits", "rotated:6"), DataConfig("digits", "rotated:3")
        return cls(data, trained, "mlp:200", 20, 3, 3, 5, 50, 2, 2)

    @classmethod
    def cpu(cls) -> Interpolation:
        return cls(DataConfig("mnist", "rotated:24"), DataConfig("mnist", "rotated:12"))

    @classmethod
    def full(cls) -> Interpolation:
        return replace(cls.cpu(), target="mlp:400-400-400", steps=30_000, device="auto")

    def task_sets(self) -> list[DataConfig]:
        return [self.data, self.searched_on]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        searched = {
            f"search--{slug(method)}": (
                replace(_experiment(self, method, SEARCH_SEED), data=self.searched_on),
                {LR: LRS},
            )
            for method in INTERPOLATED_METHODS
        }
        searches = run_searches(searched, self.trials, workspace)
        cells = [
            Cell(
                f"{slug(method)}--{seed}",
                {
                    "fingerprint": workspace.files[self.data].fingerprint,
                    "experiment": with_settings(
                        _experiment(self, method, seed),
                        searches[f"search--{slug(method)}"]["settings_found"],
                    ).to_dict(),
                    "points": self.points,
                    "shots": self.shots,
                    "test_images": self.test_images,
                    "learning": LEARNING["embedding"],
                },
            )
            for seed in range(self.seeds)
            for method in INTERPOLATED_METHODS
        ]
        done = workspace.run(cells, _cell)
        rows = []
        for method in INTERPOLATED_METHODS:
            found = [done[f"{slug(method)}--{seed}"] for seed in range(self.seeds)]
            values = {name: [run[name] for run in found] for name in found[0] if name != "settings"}
            rows.append({"method": method, **values})
        return {"searches": searches, "rows": rows, "claims": _claims(rows)}

    @staticmethod
    def tables(results: Results) -> list[Table]:
        rows = [
            [
                row["method"],
                f"{row['parameters'][0]:.2f}",
                *(percent(row[key]) for key in _COLUMNS.values()),
                _inside(row["plane"]),
            ]
            for row in results["rows"]
        ]
        weights = [
            [
                row["method"],
                f"{statistics.fmean(row['straightness']):.3f}",
                f"{100 * statistics.fmean(row['changing']):.1f}",
                f"{statistics.fmean(row['directions']):.1f}",
            ]
            for row in results["rows"]
        ]
        columns = ["method", "trainable ÷ N", *_COLUMNS, "centre of the plane, %"]
        return [
            Table("Between neighbours", columns, rows),
            Table(
                "What a direction between neighbours does to the generated weights",
                [
                    "method",
                    "straightness",
                    "weights with 90% of the change, %",
                    "independent directions",
                ],
                weights,
            ),
            searches_table(results),
        ]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        titles = [row["method"] for row in results["rows"]]
        x, y = "from one task's embedding to its neighbour's", "test accuracy, %"
        with panels(titles, path, x=x, y=y, size=(5, 3.2), legend=3) as drawn:
            for axes, row in zip(drawn, results["rows"], strict=True):
                for name, colour in _COLOURS.items():
                    of_seeds = list(zip(*(lines[name] for lines in row["lines"]), strict=True))
                    places = [i / (len(of_seeds) - 1) for i in range(len(of_seeds))]
                    label = f"on the task: {name}"
                    look = {"color": colour, "marker": "", "errorevery": 2}
                    points(axes, places, of_seeds, label, **look)
                axes.set_ylim(0, 100)


def _experiment(study: Interpolation, method: str, seed: int) -> Experiment:
    described, budget, base, similarity = INTERPOLATED_METHODS[method]
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


def _cell(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Train one method, and measure what lies between its tasks."""
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    known, between = tasks.select(tasks.names[::2]), tasks.select(tasks.names[1::2])
    model, values = measured(experiment, known)
    assert isinstance(model, HyperNetwork)
    found = _between(model.cpu(), known, between, settings, experiment.seed)
    return {"accuracy": values["accuracy"], "parameters": values["parameters"], **found}


def _between(
    hnet: HyperNetwork, known: TaskSet, between: TaskSet, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Measure what lies between the trained tasks: accuracies, and changes of the weights."""
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
    straight = [_straightness(hnet, a, b) for a, b in neighbours]
    changes = [_changing(hnet, a, b) for a, b in neighbours]
    ranks = [_directions(hnet, i) for i in range(count)]
    fit_embeddings(hnet, samples, seed=seed, **settings["learning"])
    fitted = [hnet.materialize(name).eval() for name in between.names]
    return {
        "lines": {name: _means(values) for name, values in lines.items()},
        "plane": asdict(over),
        "mean embedding": statistics.fmean(judge(mean) for judge in on_known),
        "half-way": statistics.fmean(values[points // 2] for values in lines["half-way"]),
        # the better of the two, which only labels can tell
        "neighbour": statistics.fmean(
            max(on_between[a](ends[a]), on_between[a](ends[b])) for a, b in neighbours
        ),
        "fitted": statistics.fmean(
            judge(model) for judge, model in zip(on_between, fitted, strict=True)
        ),
        "straightness": statistics.fmean(straight),
        "changing": statistics.fmean(changes),
        "directions": statistics.fmean(ranks),
    }


def _judge(tasks: TaskSet, task: int, most: int) -> Callable[[nn.Module], float]:
    """A function that gives a model's accuracy on up to ``most`` test images of a task."""
    x, y = images_of(tasks.test, task, most)
    classes = len(tasks.classes[task])
    return lambda model: accuracy(model, x, y, classes)


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*values, strict=True)]


@torch.no_grad()
def _straightness(hnet: HyperNetwork, a: int, b: int, steps: int = 16) -> float:
    """Distance between the generated weights of two tasks ÷ length of the path between them.

    It is 1 for a straight path.
    """
    start, end = (hnet.normalise(hnet.embedding(i)[None])[0] for i in (a, b))
    way = torch.linspace(0, 1, steps + 1)[:, None]
    theta: Tensor = hnet.theta(start + way * (end - start))
    length = (theta[1:] - theta[:-1]).norm(dim=1).sum()
    return float((theta[-1] - theta[0]).norm() / length)


@torch.no_grad()
def _changing(hnet: HyperNetwork, a: int, b: int) -> float:
    """The smallest share of weights that holds 90% of the squared change from task to task."""
    start, end = hnet.theta(torch.stack([hnet.embedding(a), hnet.embedding(b)])).double()
    sums = (end - start).square().sort(descending=True).values.cumsum(0)
    return (int((sums < 0.9 * sums[-1]).sum()) + 1) / len(sums)


@torch.no_grad()
def _directions(hnet: HyperNetwork, task: int, step: float = 0.01) -> float:
    """The number of independent directions in which the weights change near a task.

    This is (Σ s²)² ÷ Σ s⁴ of the singular values s of the derivative of the weights with respect to
    the embedding, taken by central differences.
    """
    z = hnet.embedding(task)
    steps = step * torch.eye(z.numel())
    derivative = (hnet.theta(z + steps) - hnet.theta(z - steps)).double() / (2 * step)
    squares = torch.linalg.eigvalsh(derivative @ derivative.T).clamp_min(0)
    return float(squares.sum().square() / squares.square().sum())


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences over seeds, of accuracies on the tasks in between."""
    by_method = {row["method"]: row for row in rows}
    pairs = {}
    for method, row in by_method.items():
        for other in ("neighbour", "fitted"):
            pairs[method, f"half-way − {other}"] = (row["half-way"], row[other])
    for method in INTERPOLATED_METHODS:
        if method != _REFERENCE:
            ours, theirs = (by_method[name]["half-way"] for name in (_REFERENCE, method))
            pairs["half-way", f"{_REFERENCE} − {method}"] = (ours, theirs)
    return [claim_of(*place, *values) for place, values in pairs.items()]


def _inside(planes: list[dict[str, Any]]) -> str:
    """Accuracy at the point nearest to the centre of the three tasks, as the mean over them."""
    found = []
    for over in planes:
        x, y = (statistics.fmean(corner[i] for corner in over["corners"]) for i in (0, 1))
        column = min(range(len(over["x"])), key=lambda i: abs(over["x"][i] - x))
        row = min(range(len(over["y"])), key=lambda i: abs(over["y"][i] - y))
        found.append(over["values"][row][column])
    return percent(found)
