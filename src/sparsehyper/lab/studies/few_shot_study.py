"""Studies in which methods are pretrained on known tasks and then learn new ones from few images.

Each family of tasks has learners. A learner has equally many trials, on tasks of a seed of their
own, and is then pretrained and judged with the best of them, on fresh tasks for every seed.
"""

from __future__ import annotations

import statistics
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, ClassVar

import torch

from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.random import seeded
from sparsehyper.adaptation.samples import Unsuitable
from sparsehyper.lab.data import SharedTasks, TaskSplit, images_of, shots_of
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.studies.adaptation_families import Family
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.few_shot import Learner
from sparsehyper.lab.studies.few_shot_fits import LEARNING
from sparsehyper.lab.studies.few_shot_results import FinalCells, Trials, best_trials
from sparsehyper.lab.studies.learners import Shots
from sparsehyper.lab.studies.pages import shots_lines, shots_panels
from sparsehyper.lab.studies.search import SEARCH_SEED, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import training

_IMAGES_A_TASK = 25  # in a batch


@dataclass(frozen=True)
class FewShotStudy(Study):
    """A study of learners.

    Args:
        families: families of tasks, by name.
        seeds: number of seeds.
        trials: number of trials of each learner, at most four.
        seconds: time for `adapt_task`, and for each of its ways alone.
        updates: numbers of updates that baselines choose from where they train further.
        test_images: images of each new task to test on, at most.
        device: pretraining device; new tasks are learned on the CPU.

    Attributes:
        learners: what the families name.
        lines: colour, marker and style of methods in the picture, in the order of its legend.
    """

    families: dict[str, Family]
    seeds: int = 5
    trials: int = 2
    seconds: float = 10.0
    updates: tuple[int, ...] = (50, 200, 800)
    test_images: int = 1000
    device: str = "cpu"

    learners: ClassVar[Mapping[str, type[Learner]]]
    lines: ClassVar[Mapping[str, tuple[str, str, str]]]

    def task_sets(self) -> list[DataConfig]:
        seeds = (*range(self.seeds), SEARCH_SEED)
        return [family.data(seed) for family in self.families.values() for seed in seeds]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        trials: dict[tuple[str, str], list[dict[str, Any]]] = {}
        final: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for name, family in self.families.items():
            tried = {
                learner: [
                    self._cell(workspace, name, learner, number, SEARCH_SEED)
                    for number in range(self.trials)
                ]
                for learner in family.learners
            }
            found = workspace.run(
                [cell for some in tried.values() for cell in some], learn_cell, self.learners
            )
            own = {
                (name, learner): [found[cell.name] for cell in some]
                for learner, some in tried.items()
            }
            cells = {
                (name, learner, seed): [
                    self._cell(workspace, name, learner, number, seed, ways)
                    for number, ways in best_trials(self.learners[learner], results).items()
                ]
                for (_, learner), results in own.items()
                for seed in range(self.seeds)
            }
            done = workspace.run(
                [cell for some in cells.values() for cell in some], learn_cell, self.learners
            )
            trials |= own
            final |= {key: [done[cell.name] for cell in some] for key, some in cells.items()}
        return self.conclude(trials, final)

    @abstractmethod
    def conclude(self, trials: Trials, final: FinalCells) -> dict[str, Any]:
        """What the results hold."""

    @classmethod
    def draw(cls, results: Results, path: str | PathLike[str]) -> None:
        shots_panels(results, cls.lines, path)

    @classmethod
    def by_shots(cls, results: Results) -> dict[str, Any]:
        return shots_lines(results, cls.lines)

    def experiment(self, name: str, seed: int) -> Experiment:
        """How the learners of a family are pretrained, but for what is searched and their own."""
        family = self.families[name]
        return Experiment(
            family.data(seed),
            training(family.steps, seed, device=self.device),
            target=family.target,
            batch_size=_IMAGES_A_TASK * family.tasks_per_batch,
            tasks_per_batch=family.tasks_per_batch,
            augment=family.augment,
        )

    def _cell(
        self,
        workspace: Workspace,
        name: str,
        learner: str,
        number: int,
        seed: int,
        ways: Sequence[str] | None = None,
    ) -> Cell:
        """A cell with the settings of one trial.

        With ``ways`` it measures these on test images; without, it is the trial itself, which is
        judged on validation images.
        """
        family, kind = self.families[name], self.learners[learner]
        trial, experiment = kind.trials[number], self.experiment(name, seed)
        of_experiment = {path: value for path, value in trial.items() if "." in path}
        judged = kind.ways if kind.judged is None else (kind.judged,)
        words = [slug(name), slug(learner), str(seed), str(number)]
        return Cell(
            "--".join(words if ways is not None else ["trial", *words[:2], words[3]]),
            {
                # not the learners, so that others can be added
                "family": {**asdict(family), "learners": [learner]},
                "fingerprint": workspace.files[experiment.data].fingerprint,
                "learner": learner,
                "trial": trial,
                "learning": LEARNING,
                "experiment": with_settings(experiment, of_experiment).to_dict(),
                "ways": list(judged if ways is None else ways),
                "shots": list(family.trial_shots if ways is None else family.shots),
                "judged_by": "val" if ways is None else "test",
                "seconds_a_task": self.seconds,
                "updates": list(self.updates),
                "test_images": self.test_images,
            },
        )


def learn_cell(
    settings: dict[str, Any],
    files: Mapping[DataConfig, SharedTasks],
    learners: Mapping[str, type[Learner]],
) -> dict[str, Any]:
    """Pretrain a learner, and learn the new tasks."""
    family = Family(**{**settings["family"], "held_out": _hashable(settings["family"]["held_out"])})
    experiment = Experiment.from_dict(settings["experiment"])
    known, new = family.split(files[experiment.data].load(), experiment.seed)
    trial = {name: value for name, value in settings["trial"].items() if "." not in name}
    how = trial, settings["seconds_a_task"], settings["updates"]
    learner = learners[settings["learner"]](experiment, known, *how)
    began = time.perf_counter()
    trained = learner.pretrain()
    result: dict[str, Any] = {
        "new": list(new.names),
        "validation": trained and trained["validation"],
        "trained": trained and trained["accuracy"],
        "pretrain_seconds": time.perf_counter() - began,
        "accuracies": {way: [] for way in settings["ways"]},
        "fit_seconds": {way: [] for way in settings["ways"]},
        "stated": [],
    }
    judging = getattr(new, settings["judged_by"])
    test = [images_of(judging, i, settings["test_images"]) for i in range(len(new.names))]
    for shots in settings["shots"]:
        splits = [new.train]
        if shots is None and settings["judged_by"] == "test":
            splits.append(new.val)
        samples = [_examples(splits, i, shots, experiment.seed) for i in range(len(new.names))]
        for way in settings["ways"]:
            found, seconds, stated = {}, [], {}
            for i, name in enumerate(new.names):
                started = time.perf_counter()
                found[name], said = _learn(learner, way, samples[i], test[i], new.n_classes[i])
                seconds.append(time.perf_counter() - started)
                if said is not None:
                    stated[name] = said
            result["accuracies"][way].append(found)
            result["fit_seconds"][way].append(statistics.fmean(seconds))
            if stated:
                result["stated"].append(stated)
    return result


def _learn(
    learner: Learner, way: str, samples: Shots, test: Shots, n_classes: int
) -> tuple[float, dict[str, Any] | None]:
    """The accuracy on a new task, and what `adapt_task` says of it."""
    try:
        model, adapted = learner.learn(way, samples, n_classes)
    except Unsuitable:
        return 1 / n_classes, None  # what does not apply guesses
    measured = accuracy(model, *test, n_classes)
    if adapted is None:
        return measured, None
    return measured, {
        "measured": measured,
        "accuracy": adapted.accuracy,
        "interval": adapted.interval,
        "weights": {name: judged.weight for name, judged in adapted.ways.items()},
    }


def _examples(splits: Sequence[TaskSplit], task: int, shots: int | None, seed: int) -> Shots:
    """Images of a new task, in random order."""
    parts = [shots_of(split, task, shots, seed) for split in splits]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    order = torch.randperm(len(y), generator=seeded(seed))
    return x[order], y[order]


def _hashable(held_out: Any) -> int | tuple[int, ...] | None:
    return tuple(held_out) if isinstance(held_out, (list, tuple)) else held_out
