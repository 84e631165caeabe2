"""Studies of trained tasks that are drawn anew for every seed: search, train, and open one half of
the test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, NamedTuple

import torch

from sparsehyper.lab.data import SharedTasks, TaskSet
from sparsehyper.lab.data.splits import digests
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.comparison import Comparison
from sparsehyper.lab.studies.fair_results import accuracy_tables
from sparsehyper.lab.studies.fair_sets import (
    AT_EVERY_BUDGET,
    METHODS,
    UNTIL,
    VARIANTS,
    FreshTasks,
)
from sparsehyper.lab.studies.pages import Table, searches_table
from sparsehyper.lab.studies.search import SEARCH_SEED, Space, run_searches, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import measured
from sparsehyper.training import evaluate

_OF_TRAINING = 10  # every tenth training image measures how well these are learned


class Place(NamedTuple):
    """A method at a budget on a set of tasks."""

    family: str
    method: str
    budget: float | None

    def __str__(self) -> str:
        budget = "" if self.budget is None else f"--{self.budget:g}N"
        return f"{slug(self.family)}--{slug(self.method)}{budget}"


@dataclass(frozen=True)
class FreshStudy(Study):
    """A study of methods on sets of tasks.

    Args:
        sets: sets of tasks, by name.
        budgets: trainable parameters ÷ N of methods that are compared at several.
        trials: number of trials for each setting that is searched.
        seeds: number of seeds.
        stops: stop all trainings as the thesis did, by patience.
        device: training device.
        searched: paths of the settings that are searched, of those of a method; None for all.
    """

    sets: dict[str, FreshTasks]
    budgets: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    trials: int = 3
    seeds: int = 8
    stops: bool = False
    device: str = "cpu"
    searched: tuple[str, ...] | None = None

    picture = Comparison.picture

    def task_sets(self) -> list[DataConfig]:
        seeds = (*range(self.seeds), SEARCH_SEED)
        return [tasks.data(seed) for tasks in self.sets.values() for seed in seeds]

    def measure_all(
        self, workspace: Workspace
    ) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Search and train every method at every budget on every set, one set after another.

        Returns:
            The searches, by name of the cell, and a row for each place.
        """
        searches: dict[str, dict[str, Any]] = {}
        rows: list[dict[str, Any]] = []
        for name in self.sets:
            places = self._places(name)
            searched = {
                f"search--{place}": (self.experiment(place, SEARCH_SEED), self._space(place))
                for place in places
            }
            searches |= run_searches(searched, self.trials, workspace, UNTIL)
            cells = {
                place: [
                    cell_of(
                        workspace,
                        f"{place}--{seed}",
                        self.experiment(place, seed, searches[f"search--{place}"]),
                    )
                    for seed in range(self.seeds)
                ]
                for place in places
            }
            found = workspace.run([cell for some in cells.values() for cell in some], measure)
            rows += [
                row_of(place, [found[cell.name] for cell in some]) for place, some in cells.items()
            ]
        return searches, rows

    def experiment(
        self, place: Place, seed: int, search: Mapping[str, Any] | None = None, **how: Any
    ) -> Experiment:
        """The experiment of a place, with the settings that a search has found."""
        how = {"stops": self.stops, "device": self.device, **how}
        tasks = self.sets[place.family]
        experiment = tasks.experiment(place.method, place.budget, seed, **how)
        return experiment if search is None else with_settings(experiment, search["settings_found"])

    def _space(self, place: Place) -> Space:
        space = METHODS[place.method].space
        searched = space if self.searched is None else self.searched
        return {path: choices for path, choices in space.items() if path in searched}

    def _places(self, name: str) -> list[Place]:
        return [
            Place(name, method, budget)
            for method in self.sets[name].methods
            for budget in (self.budgets if method in AT_EVERY_BUDGET else [METHODS[method].budget])
        ]

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return [*accuracy_tables(results), searches_table(results)]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        Comparison.draw(_without_variants(results), path)

    @staticmethod
    def by_budget(results: Results) -> list[tuple[str, list[Mapping[str, Any]]]]:
        return Comparison.by_budget(_without_variants(results))


def _without_variants(results: Results) -> Results:
    """The results without the variants of sparse, which are for one question on one set alone."""
    return {**results, "rows": [row for row in results["rows"] if row["method"] not in VARIANTS]}


def held_back(tasks: TaskSet) -> TaskSet:
    """Keep the test images whose hash is odd, about half; the same ones whatever the tasks are."""
    chosen = torch.from_numpy(digests(tasks.test.pixels) % 2 == 1)
    return replace(tasks, test=tasks.test.among(chosen))


def cell_of(workspace: Workspace, name: str, experiment: Experiment) -> Cell:
    """The cell of an experiment."""
    fingerprint = workspace.files[experiment.data].fingerprint
    return Cell(name, {"fingerprint": fingerprint, "experiment": experiment.to_dict()})


def row_of(place: Place, cells: list[dict[str, Any]], updates: int | None = None) -> dict[str, Any]:
    """A row of the results, from the cells of all seeds."""
    each = ("accuracy", "trained", "step_ms")
    return {
        **place._asdict(),
        "updates": updates,
        **{key: [cell[key] for cell in cells] for key in each},
        "parameters": cells[0]["parameters"],
        "generator": cells[0]["generator"],
    }


def measure(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Train, and measure on the held-back half of the test images."""
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = held_back(files[experiment.data].load())
    model, values = measured(experiment, tasks)
    some = tasks.train.among(torch.arange(len(tasks.train.pixels)) % _OF_TRAINING == 0)
    learned = evaluate(model, some, names=tasks.names, n_classes=tasks.n_classes)
    return {**values, "trained": learned.accuracy}
