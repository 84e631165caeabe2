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
characters have.

**Methods.** Each learner is pretrained on the same batches and for as many updates, and learns the
same held-out tasks from the same images, in one or several ways:

- the default hypernetwork of the command line (its head follows from the tasks, its base from the
  head): ``auto``, which is `adapt_task` with its default time; and each of the ways that it chooses
  among, alone, with all images and as much time;
- a shared trunk: a linear probe, the nearest class mean, and all of it fine-tuned;
- Prototypical Networks and Reptile; the same network from scratch;
- nearest neighbour and logistic regression on pixels;
- experts, one network a known task, for the accuracy on known tasks alone.

Numbers of updates and penalties of baselines are chosen by cross-validation on the new task's
images (`LEARNING`), so that no baseline overfits for want of early stopping.

**Search.** Every learner has four trials of two settings: the learning rate and the weight decay of
pretraining; from scratch, the learning rate and the batch size; for Reptile, the inner learning
rate and the outer rate; neighbours and distance; for regressions, four penalties. The engine of
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
`figures`; they were set before.

**Cost.** Two or three new tasks a seed, not nine, and four trials keep the scale ``cpu`` near seven
hours of one core that has nothing else to do. `adapt_task` keeps to a time, so its results depend
on the machine: run no more processes than there are cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from os import PathLike
from typing import Any

import torch

from sparsehyper._util.classifiers import accuracy
from sparsehyper._util.random import seeded, spawn_seeds
from sparsehyper.adaptation.ways import WAYS, Unsuitable
from sparsehyper.lab import plots
from sparsehyper.lab.data import SharedTasks, TaskSet, TaskSplit, images_of
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.few_shot import (
    AUTO,
    EXPERTS,
    HYPERNETWORK,
    LEARNERS,
    LEARNING,
    SINGLE,
    TRUNK,
    Learner,
)
from sparsehyper.lab.studies.intervals import claim_of, mean_of
from sparsehyper.lab.studies.learners import Shots, shots_of
from sparsehyper.lab.studies.pages import (
    Table,
    by_method,
    interval_text,
    percent,
    shots_lines,
    shots_panels,
    shots_text,
)
from sparsehyper.lab.studies.search import SEARCH_SEED, with_settings
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import CNN, RESNETS, training

_BEST_WAY = "best way"
_RIVALS = ("linear probe", "scratch", "Prototypical Networks")
_TOLERANCE, _COVERED = -0.005, 0.9  # goals
_EVERYWHERE = "all families"
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
class Family:
    """Related tasks, of which some are held out.

    Args:
        source: as in `DataConfig`.
        tasks: all tasks, as in `DataConfig`, with ``{seed}`` for the seed and ``{0}`` to ``{9}``
            for ten classes in an order that is drawn from it.
        held_out: number of tasks to hold out, drawn from the seed; or the indices of some; or None
            for all of one group, each group in turn. A task's group is its name up to the last
            dash.
        learners: learners to compare, of `LEARNERS`.
        target: as `build_target` takes it.
        steps: number of updates of pretraining.
        tasks_per_batch: tasks in a batch, of 25 images each.
        shots: images per class of a new task; None for all, with those for validation.
        trial_shots: the same in trials.
        val_fraction: as in `DataConfig`.
        most: tasks to learn, at most; others that are held out are not used.
    """

    source: str
    tasks: str
    held_out: int | tuple[int, ...] | None = 2
    learners: tuple[str, ...] = tuple(name for name in LEARNERS if name != EXPERTS)
    target: str = "mlp:100-100"
    steps: int = 1500
    tasks_per_batch: int = 4
    shots: tuple[int | None, ...] = (1, 5, 20, 100, None)
    trial_shots: tuple[int | None, ...] = (5,)
    val_fraction: float = 0.1
    most: int = 3

    def data(self, seed: int) -> DataConfig:
        """The images and tasks of a seed."""
        order = torch.randperm(10, generator=seeded(spawn_seeds(seed, 2)[1])).tolist()
        tasks = self.tasks.format(*order, seed=seed)
        return DataConfig(self.source, tasks, val_fraction=self.val_fraction)

    def split(self, tasks: TaskSet, seed: int) -> tuple[TaskSet, TaskSet]:
        """The known tasks of a seed, and the new ones."""
        names = tasks.names
        if self.held_out is None:
            groups = {name: name.rpartition("-")[0] for name in names}
            turns = list(dict.fromkeys(groups.values()))
            held = {name for name in names if groups[name] == turns[seed % len(turns)]}
        elif isinstance(self.held_out, int):
            order = torch.randperm(len(names), generator=seeded(spawn_seeds(seed, 2)[0])).tolist()
            held = {names[i] for i in order[: self.held_out]}
        else:
            held = {names[i] for i in self.held_out}
        new = [name for name in names if name in held][: self.most]
        return tasks.select([name for name in names if name not in held]), tasks.select(new)


_PAIRS = "split:2,all"
_PERMUTED = "permuted:{count},seed={{seed}}"
_REPAIRED = "split:{0}-{1},{2}-{3},{0}-{2},{1}-{3}"
_THREE = "mnist+fashion_mnist+cifar10"  # with classes 0 to 9, 10 to 19 and 20 to 29
_EACH_PAIR = "split:" + ",".join(
    f"{start + a}-{start + b}" for start in (0, 10, 20) for a, b in combinations(range(10), 2)
)
_DEFAULT_CNN = "cnn:16-32-64,norm=batch,pool=max"
CHARACTERS = "characters of a new alphabet"
_CPU = {
    "permuted Fashion-MNIST": Family("fashion_mnist", _PERMUTED.format(count=25)),
    "Fashion-MNIST pairs": Family("fashion_mnist", _PAIRS),
    "CIFAR-10 pairs": Family("cifar10", _PAIRS, target=CNN),
    "CIFAR-10 pairs in 8 hues": Family("cifar10", "split:2/hue:8", target=CNN),
    "pairs of three data sets": Family(_THREE, _EACH_PAIR, target=CNN),
    "MNIST pairs": Family("mnist", _PAIRS),
    "rotated MNIST": Family("mnist", "rotated:24"),
    "nine permutations, then the tenth": Family("fashion_mnist", _PERMUTED.format(count=10), 1),
    "two pairs, then re-paired": Family("fashion_mnist", _REPAIRED, (2, 3), tasks_per_batch=2),
    CHARACTERS: Family(
        "omniglot_small1",
        "alphabets:25,ways=10,seed={seed}",
        None,
        tuple(LEARNERS),
        _DEFAULT_CNN,
        1000,
        shots=(1, 5, None),
        val_fraction=0.25,
    ),
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
    trials: int = 4
    seconds: float = 20.0
    updates: tuple[int, ...] = (50, 150, 500, 1500)
    test_images: int = 1000
    device: str = "cpu"

    name = "adaptation"
    title = "Adaptation to new tasks"
    question = (
        "Is adapt_task as good on new tasks as the best single method, chosen with hindsight, and "
        "better than a probe on a shared trunk, Prototypical Networks and training from scratch?"
    )
    method = (
        "Every learner has four trials of its settings on tasks of another seed, is trained on the "
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
        return cls(_CPU)

    @classmethod
    def full(cls) -> Adaptation:
        targets = {
            Family.target: ("mlp:400-400-400", 30_000),
            CNN: (RESNETS["resnet32"], 60_000),
            _DEFAULT_CNN: (_DEFAULT_CNN, 10_000),
        }
        full = {}
        for name, family in _CPU.items():
            target, steps = targets[family.target]
            held = 5 if family.held_out == 2 else family.held_out
            full[name] = replace(family, target=target, steps=steps, held_out=held, most=5)
        return cls(full, seconds=60.0, device="auto")

    def task_sets(self) -> list[DataConfig]:
        seeds = (*range(self.seeds), SEARCH_SEED)
        return [family.data(seed) for family in self.families.values() for seed in seeds]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        tried = {
            (name, learner, number): self._cell(workspace, name, learner, number, SEARCH_SEED)
            for name, family in self.families.items()
            for learner in family.learners
            for number in range(self.trials)
        }
        found = workspace.run(list(tried.values()), _cell)
        trials = {key: found[cell.name] for key, cell in tried.items()}
        cells: dict[tuple[str, str, int], list[Cell]] = {}
        searches = []
        for name, family in self.families.items():
            for learner in family.learners:
                own = [trials[name, learner, number] for number in range(self.trials)]
                chosen = _best_trials(LEARNERS[learner], own)
                searches += _searches(name, learner, own, chosen)
                for seed in range(self.seeds):
                    cells[name, learner, seed] = [
                        self._cell(workspace, name, learner, number, seed, ways)
                        for number, ways in chosen.items()
                    ]
        done = workspace.run([cell for some in cells.values() for cell in some], _cell)
        results = {key: [done[cell.name] for cell in some] for key, some in cells.items()}
        rows = list(_rows(self, results))
        best = [_best(rows, name, s) for name, f in self.families.items() for s in f.shots]
        claims = _claims(self, rows, best)
        stated = list(_stated(self, results))
        return {
            "rows": rows,
            "best": best,
            "stated": stated,
            "trained": list(_trained(self, results)),
            "trials": searches,
            "figures": _figures(claims, stated),
            "claims": claims,
        }

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
        return [
            _figures_table(results),
            _best_table(results),
            *_accuracy_tables(results),
            _stated_table(results),
            _trained_table(results),
            _trials_table(results),
        ]

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


def _score(trial: Mapping[str, Any], way: str | None) -> float:
    """Validation accuracy of a trial, by a way or, without one, on known tasks."""
    if way is None:
        return float(trial["validation"])
    return statistics.fmean(a for found in trial["accuracies"][way] for a in found.values())


def _best_trials(kind: type[Learner], trials: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """The numbers of the trials to use, and the ways whose best they are."""

    def best(way: str | None) -> int:
        return max(range(len(trials)), key=lambda number: _score(trials[number], way))

    if kind.judged is not None or not kind.ways:
        return {best(kind.judged): list(kind.ways)}
    chosen: dict[int, list[str]] = {}
    for way in kind.ways:
        chosen.setdefault(best(way), []).append(way)
    return chosen


def _searches(
    family: str,
    learner: str,
    trials: Sequence[Mapping[str, Any]],
    chosen: Mapping[int, Sequence[str]],
) -> list[dict[str, Any]]:
    kind = LEARNERS[learner]
    rows = []
    for number, ways in chosen.items():
        judged = [kind.judged] if kind.judged or not kind.ways else ways
        rows += [
            {
                "family": family,
                "method": way or learner,
                "settings": kind.trials[number],
                "validation": [_score(trial, way) for trial in trials],
            }
            for way in judged
        ]
    return rows


_Results = Mapping[tuple[str, str, int], Sequence[Mapping[str, Any]]]


def _rows(study: Adaptation, results: _Results) -> Iterator[dict[str, Any]]:
    for name, family in study.families.items():
        for learner in family.learners:
            for way in LEARNERS[learner].ways:
                own = [
                    next(cell for cell in results[name, learner, seed] if way in cell["accuracies"])
                    for seed in range(study.seeds)
                ]
                for i, shots in enumerate(family.shots):
                    yield {
                        "family": name,
                        "method": way,
                        "learner": learner,
                        "shots": shots,
                        "accuracy": [
                            statistics.fmean(cell["accuracies"][way][i].values()) for cell in own
                        ],
                        "fit_seconds": [cell["fit_seconds"][way][i] for cell in own],
                    }


def _best(rows: Sequence[Mapping[str, Any]], family: str, shots: int | None) -> dict[str, Any]:
    """The best way and the best method of a family and number of images, with hindsight."""
    own = {
        row["method"]: statistics.fmean(row["accuracy"])
        for row in rows
        if (row["family"], row["shots"]) == (family, shots)
    }
    ours = own.pop(AUTO)
    way, method = (max(some, key=own.__getitem__) for some in (SINGLE, own))
    return {
        "family": family,
        "shots": shots,
        "auto": ours,
        "way": way,
        "way_accuracy": own[way],
        "method": method,
        "method_accuracy": own[method],
    }


def _claims(
    study: Adaptation, rows: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Differences between `adapt_task` and others, paired over seeds; at last those of all."""
    accuracy_of = {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in rows}
    hindsight = {(b["family"], b["shots"]): b["way"] for b in best}
    claims, everywhere = [], []
    for rival in (_BEST_WAY, *_RIVALS):
        pairs = []
        for name, family in study.families.items():
            for shots in family.shots:
                method = hindsight[name, shots] if rival == _BEST_WAY else rival
                pair = accuracy_of[name, AUTO, shots], accuracy_of[name, method, shots]
                claims.append(claim_of(name, f"{AUTO} − {rival}", *pair, shots=shots))
                pairs.append(pair)
        ours, theirs = (mean_of(some) for some in zip(*pairs, strict=True))
        what = f"{AUTO} − {rival}"
        everywhere.append(claim_of(_EVERYWHERE, what, ours, theirs, shots="mean"))
    return [*claims, *everywhere]


def _stated(study: Adaptation, results: _Results) -> Iterator[dict[str, Any]]:
    """What `adapt_task` stated and chose, by family and number of images."""
    for name, family in study.families.items():
        cells = [cell for seed in range(study.seeds) for cell in results[name, HYPERNETWORK, seed]]
        for i, shots in enumerate(family.shots):
            said = [one for cell in cells for one in cell["stated"][i].values()]
            yield {
                "family": name,
                "shots": shots,
                "tasks": len(said),
                "within": sum(
                    one["interval"][0] <= one["measured"] <= one["interval"][1] for one in said
                ),
                **{
                    key: statistics.fmean(one[key] for one in said)
                    for key in ("accuracy", "measured")
                },
                "width": statistics.fmean(one["interval"][1] - one["interval"][0] for one in said),
                "weights": {
                    way: statistics.fmean(one["weights"].get(way, 0.0) for one in said)
                    for way in WAYS
                },
            }


def _trained(study: Adaptation, results: _Results) -> Iterator[dict[str, Any]]:
    """Accuracy on the known tasks; with several pretrainings of a learner, of the best."""
    for name, family in study.families.items():
        for learner in family.learners:
            own = [results[name, learner, seed] for seed in range(study.seeds)]
            if own[0][0]["trained"] is not None:
                best = [max(cells, key=lambda cell: cell["validation"]) for cells in own]
                values = [cell["trained"] for cell in best]
                yield {"family": name, "learner": learner, "accuracy": values}


def _figures(
    claims: Sequence[Mapping[str, Any]], stated: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The goals, what was found, and whether they were reached."""
    figures = []
    for rival in (_BEST_WAY, *_RIVALS):
        own = [claim for claim in claims if claim["claim"] == f"{AUTO} − {rival}"]
        *places, whole = own
        if rival == _BEST_WAY:
            worst = min(places, key=lambda claim: claim["mean"])
            least = f"{100 * worst['mean']:+.2f} ({worst['family']}, {shots_text(worst['shots'])})"
            figures += [
                _figure(
                    f"{AUTO} − {rival}, everywhere", "≥ −0.5", least, worst["mean"] >= _TOLERANCE
                ),
                _figure(f"{AUTO} − {rival}, on average", "> 0", _points(whole), whole["mean"] > 0),
            ]
        else:
            ahead = [c for c in places if c["low"] is not None and c["low"] >= 0]
            behind = [c for c in places if c["high"] is not None and c["high"] < 0]
            text = f"{len(ahead)} of {len(places)}, {len(behind)} behind; mean {_points(whole)}"
            reached = len(ahead) == len(places)
            figures.append(_figure(f"{AUTO} − {rival}, at 95%", "≥ 0 everywhere", text, reached))
    tasks, within = (sum(row[key] for row in stated) for key in ("tasks", "within"))
    goal = f"{_COVERED:.0%} of tasks"
    text = f"{within / tasks:.1%} of {tasks:,}"
    reached = within >= _COVERED * tasks
    figures.append(_figure("stated accuracy within its 95% interval", goal, text, reached))
    return figures


def _figure(figure: str, goal: str, found: str, reached: bool) -> dict[str, Any]:
    return {"figure": figure, "goal": goal, "found": found, "reached": reached}


def _points(claim: Mapping[str, Any]) -> str:
    return f"{100 * claim['mean']:+.2f} ({interval_text(claim)})"


def _figures_table(results: Results) -> Table:
    rows = [
        [f["figure"], f["goal"], f["found"], "yes" if f["reached"] else "no"]
        for f in results["figures"]
    ]
    return Table("Figures to reach, in points", ["figure", "goal", "found", "reached"], rows)


def _best_table(results: Results) -> Table:
    rows = [
        [
            b["family"],
            shots_text(b["shots"]),
            f"{100 * b['auto']:.2f}",
            f"{b['way']} {100 * b['way_accuracy']:.2f}",
            f"{b['method']} {100 * b['method_accuracy']:.2f}",
            f"{100 * (b['auto'] - b['way_accuracy']):+.2f}",
            f"{100 * (b['auto'] - b['method_accuracy']):+.2f}",
        ]
        for b in results["best"]
    ]
    columns = [
        *("family", "images per class", AUTO, _BEST_WAY, "best method"),
        *("− best way", "− best method"),
    ]
    return Table("The best single methods, with hindsight; accuracies in %", columns, rows)


def _accuracy_tables(results: Results) -> Iterator[Table]:
    for name, family in results["study"]["families"].items():
        rows = [
            [method, *(percent(row["accuracy"]) for row in own), _seconds(own)]
            for method, own in by_method(results["rows"], family=name).items()
        ]
        columns = ["method", *map(shots_text, family["shots"]), "seconds"]
        title = f"{name}: accuracy on new tasks, %, by images per class; seconds to learn one"
        yield Table(title, columns, rows)


def _seconds(rows: Sequence[Mapping[str, Any]]) -> str:
    return " / ".join(f"{statistics.fmean(row['fit_seconds']):.1f}" for row in rows)


def _stated_table(results: Results) -> Table:
    rows = [
        [
            row["family"],
            shots_text(row["shots"]),
            f"{row['within']} of {row['tasks']}",
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['measured']:.1f}",
            f"{100 * row['width']:.1f}",
            *(f"{100 * weight:.0f}" for weight in row["weights"].values()),
        ]
        for row in results["stated"]
    ]
    columns = [
        *("family", "images per class", "within", "stated, %", "measured, %", "interval's width"),
        *WAYS,
    ]
    title = "Stated accuracies: tasks within their 95% interval, and mean weights of the ways, %"
    return Table(title, columns, rows)


def _trained_table(results: Results) -> Table:
    rows = [[row["family"], row["learner"], percent(row["accuracy"])] for row in results["trained"]]
    return Table("Accuracy on known tasks, %", ["family", "learner", "accuracy"], rows)


def _trials_table(results: Results) -> Table:
    rows = [
        [
            row["family"],
            row["method"],
            ", ".join(f"{k.rpartition('.')[2]} {v:g}" for k, v in row["settings"].items()),
            " / ".join(f"{100 * value:.1f}" for value in row["validation"]),
        ]
        for row in results["trials"]
    ]
    columns = ["family", "method", "settings found", "validation accuracy of each trial, %"]
    return Table("Settings found", columns, rows)
