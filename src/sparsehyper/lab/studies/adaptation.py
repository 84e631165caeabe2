"""The study of adaptation: is `adapt_task` ahead of anything simpler on new tasks?

It supersedes the study of new tasks (`new_tasks`), which asked which generator infers models from
an embedding alone. This page was written before any result existed; what follows is the plan.

**Question.** Twenty or so tasks are known, and a new one comes with few examples. Is the model of
``adapt_task(hnet, name, samples)`` as good as that of the best single method, which nobody knows
beforehand, and better than what a practitioner would do without a hypernetwork?

**Families.** The nine of the study of new tasks, and hand-written characters: tasks of 10
characters of one of five alphabets, which are learned from tasks of the other four. Every seed has
fresh tasks: permutations, groupings of classes and characters are drawn anew, so are the pairs,
angles and hues that are held out, and each alphabet is left out in turn. Colour images have the
stride network of the earlier study, as it is four times as fast as the default ``cnn``, which the
characters have. Drawings are shifted, turned and scaled at random while learners are pretrained,
all but Reptile, which makes its own batches.

**Methods.** Each learner is pretrained on the same batches and for as many updates, and learns the
same held-out tasks from the same images, in one or several ways:

- the default hypernetwork of the command line (its head follows from the tasks, its base from the
  head): ``auto``, which is `adapt_task`; and each of the ways that it chooses among, alone, with
  all images and as much time;
- a shared trunk: a linear probe, the nearest class mean, and all of it fine-tuned;
- Prototypical Networks and Reptile; the same network from scratch;
- nearest neighbour and logistic regression on pixels;
- experts, one network a known task, for the accuracy on known tasks alone.

Numbers of updates and penalties of baselines are chosen by cross-validation on the new task's
images (`LEARNING`), so that no baseline overfits for want of early stopping.

**Search.** Every learner has two trials: of the learning rate of pretraining; from scratch, of the
learning rate; for Reptile, of the inner learning rate; of the number of neighbours; for
regressions, of the penalty. At the scale ``full`` there are four, with the weight decay, the batch
size, the outer rate, the distance and more penalties. The engine of
`search` judges by known tasks, so trials are cells of this study: each pretrains on the tasks of a
seed of its own and learns held-out ones, and is judged by their validation images. Every way of a
baseline has the best of its own trials; the ways of the hypernetwork have the best of ``auto``.
Five alphabets are too few to keep one for trials: those of characters use the first one.

**Statistics.** Accuracies are means over a seed's held-out tasks, on test images that nothing else
has seen. Differences are paired over seeds, with 95% intervals by Student's t. Seeds, not tasks,
are the pairs, as the tasks of a seed share a pretraining.

**What counts as what.** The *best way* and the *best method* of a family and number of images are
those of the highest mean accuracy over all seeds, among the hypernetwork's ways and among
everything but ``auto``: choices made with hindsight, which bias them upwards. A task's stated
accuracy is right if the measured one lies within its stated 95% interval. The goals are in
`adaptation_results`; they were set before.

**Cost.** One or two new tasks a seed, not nine, two trials and 10 seconds for `adapt_task`, half of
its default, keep the scale ``cpu`` near five hours of one core. Families are run one after another.
`adapt_task` keeps to a time, so its results depend on the machine: run no more processes than there
are cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import torch

from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.random import seeded
from sparsehyper.adaptation.ways import Unsuitable
from sparsehyper.lab import plots
from sparsehyper.lab.data import SharedTasks, TaskSplit, images_of, shots_of
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.studies.adaptation_families import CPU_FAMILIES, DEFAULT_CNN, Family
from sparsehyper.lab.studies.adaptation_results import best_trials, conclusions, tables
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.few_shot import (
    AUTO,
    EXPERTS,
    HYPERNETWORK,
    LEARNERS,
    TRUNK,
    Learner,
)
from sparsehyper.lab.studies.few_shot_fits import LEARNING
from sparsehyper.lab.studies.learners import Shots
from sparsehyper.lab.studies.pages import Table, shots_lines, shots_panels
from sparsehyper.lab.studies.search import SEARCH_SEED, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import CNN, RESNETS, training

_IMAGES_A_TASK = 25  # in a batch

# Lines of the picture, in the order of its legend: colour, marker and style.
_LINES = {
    AUTO: (plots.VERMILION, "o", "-"),
    "linear probe": (plots.SKY, "X", "--"),
    "Prototypical Networks": (plots.BLUE, "s", "--"),
    "fine-tuned trunk": (plots.GREEN, "^", "--"),
    "Reptile": (plots.BROWN, "<", "--"),
    "scratch": (plots.DARK, "D", "--"),
    "nearest neighbour": (plots.ORANGE, "P", ":"),
    "logistic regression": (plots.BLACK, "*", ":"),
}


@dataclass(frozen=True)
class Adaptation(Study):
    """The study of adaptation.

    Results: ``rows``, with ``family``, ``method``, ``shots``, and for each seed the mean
    ``accuracy`` over new tasks and the mean ``fit_seconds`` of one; ``best``, the best way and the
    best method of every family and number of images; ``stated``, what `adapt_task` said and chose;
    ``trained``, the accuracy of learners on known tasks; ``trials``; ``figures``, the goals; and
    ``claims``.

    Args:
        families: families of tasks, by name.
        seeds: number of seeds.
        trials: number of trials of each learner, at most four.
        seconds: time for `adapt_task`, and for each of its ways alone.
        updates: numbers of updates that baselines choose from where they train further.
        test_images: images of each new task to test on, at most.
        device: pretraining device; new tasks are learned on the CPU.
    """

    families: dict[str, Family]
    seeds: int = 5
    trials: int = 2
    seconds: float = 10.0
    updates: tuple[int, ...] = (50, 200, 800)
    test_images: int = 1000
    device: str = "cpu"

    name = "adaptation"
    title = "Adaptation to new tasks"
    question = (
        "Is adapt_task as good on new tasks as the best single method, chosen with hindsight, and "
        "better than a probe on a shared trunk, Prototypical Networks and training from scratch?"
    )
    method = (
        "Every learner has two trials of its settings on tasks of another seed, is trained on the "
        "same known tasks and learns the same new ones from 1, 5, 20, 100 and all images per "
        "class; every seed has fresh tasks. Accuracies are means over new tasks ± standard "
        "deviation over seeds; claims are differences paired over seeds, with Student's t "
        "intervals. The best way is chosen with hindsight, from the same test images. The plan, "
        "written before the results, is in `sparsehyper/lab/studies/adaptation.py`."
    )
    picture = "accuracy_vs_shots.png"

    @classmethod
    def smoke(cls) -> Adaptation:
        pairs = Family(
            *("digits", "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7}", 1),
            target="mlp:32",
            steps=20,
            tasks_per_batch=2,
            shots=(1, 5, None),
        )
        groups = replace(
            pairs,
            tasks="split:{0}-{1},{0}-{2},{3}-{4},{3}-{5}",
            held_out=None,
            learners=(HYPERNETWORK, TRUNK, "Prototypical Networks", "scratch", EXPERTS),
            shots=(5,),
        )
        return cls({"pairs": pairs, "groups": groups}, 2, 2, 0.05, (5, 20))

    @classmethod
    def cpu(cls) -> Adaptation:
        return cls(CPU_FAMILIES)

    @classmethod
    def full(cls) -> Adaptation:
        targets = {
            Family.target: ("mlp:400-400-400", 30_000),
            CNN: (RESNETS["resnet32"], 60_000),
            DEFAULT_CNN: (DEFAULT_CNN, 10_000),
        }
        full = {}
        for name, family in CPU_FAMILIES.items():
            target, steps = targets[family.target]
            held = 5 if family.held_out == 2 else family.held_out
            full[name] = replace(family, target=target, steps=steps, held_out=held, most=5)
        return cls(full, trials=4, seconds=60.0, device="auto")

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
            found = workspace.run([cell for some in tried.values() for cell in some], _cell)
            own = {
                (name, learner): [found[cell.name] for cell in some]
                for learner, some in tried.items()
            }
            cells = {
                (name, learner, seed): [
                    self._cell(workspace, name, learner, number, seed, ways)
                    for number, ways in best_trials(LEARNERS[learner], results).items()
                ]
                for (_, learner), results in own.items()
                for seed in range(self.seeds)
            }
            done = workspace.run([cell for some in cells.values() for cell in some], _cell)
            trials |= own
            final |= {key: [done[cell.name] for cell in some] for key, some in cells.items()}
        return conclusions(self.families, self.seeds, trials, final)

    def _cell(
        self,
        workspace: Workspace,
        name: str,
        learner: str,
        number: int,
        seed: int,
        ways: Sequence[str] | None = None,
    ) -> Cell:
        """The cell of one trial's settings; without ways it is the trial itself."""
        family, kind = self.families[name], LEARNERS[learner]
        trial = kind.trials[number]
        data = family.data(seed)
        experiment = Experiment(
            data,
            training(family.steps, seed, device=self.device),
            target=family.target,
            batch_size=_IMAGES_A_TASK * family.tasks_per_batch,
            tasks_per_batch=family.tasks_per_batch,
            augment=family.augment,
        )
        of_experiment = {path: value for path, value in trial.items() if "." in path}
        judged = kind.ways if kind.judged is None else (kind.judged,)
        words = [slug(name), slug(learner), str(seed), str(number)]
        return Cell(
            "--".join(words if ways is not None else ["trial", *words[:2], words[3]]),
            {
                # not the learners, so that others can be added
                "family": {**asdict(family), "learners": [learner]},
                "fingerprint": workspace.files[data].fingerprint,
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

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return tables(results)

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        shots_panels(results, _LINES, path)

    @staticmethod
    def by_shots(results: Results) -> dict[str, Any]:
        return shots_lines(results, _LINES)


def _cell(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """Pretrain a learner, and learn the new tasks."""
    family = Family(**{**settings["family"], "held_out": _hashable(settings["family"]["held_out"])})
    experiment = Experiment.from_dict(settings["experiment"])
    known, new = family.split(files[experiment.data].load(), experiment.seed)
    trial = {name: value for name, value in settings["trial"].items() if "." not in name}
    how = trial, settings["seconds_a_task"], settings["updates"]
    learner = LEARNERS[settings["learner"]](experiment, known, *how)
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
