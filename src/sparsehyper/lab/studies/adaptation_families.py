"""The families of tasks of the study of adaptation: known tasks, and new ones of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch

from sparsehyper._util.random import seeded, spawn_seeds
from sparsehyper.lab.data import TaskSet
from sparsehyper.lab.runs.config import DataConfig
from sparsehyper.lab.studies.few_shot import EXPERTS, LEARNERS
from sparsehyper.lab.studies.trainings import CNN, drawn


@dataclass(frozen=True)
class Family:
    """Related tasks, of which some are held out.

    Args:
        source: as in `DataConfig`.
        tasks: all tasks, as `drawn` takes them.
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
        augment: as in `Experiment`, for pretraining.
        most: tasks to learn, at most; others that are held out are not used.
    """

    source: str
    tasks: str
    held_out: int | tuple[int, ...] | None = 2
    learners: tuple[str, ...] = tuple(name for name in LEARNERS if name != EXPERTS)
    target: str = "mlp:100-100"
    steps: int = 1000
    tasks_per_batch: int = 4
    shots: tuple[int | None, ...] = (1, 5, 20, 100, None)
    trial_shots: tuple[int | None, ...] = (5,)
    val_fraction: float = 0.1
    augment: tuple[str, ...] = ()
    most: int = 2

    def data(self, seed: int) -> DataConfig:
        """The images and tasks of a seed."""
        tasks = drawn(self.tasks, seed)
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
DEFAULT_CNN = "cnn:16-32-64,norm=batch,pool=max"
CHARACTERS = "characters of a new alphabet"
CPU_FAMILIES = {
    CHARACTERS: Family(
        "omniglot_small1",
        "alphabets:25,ways=10,seed={seed}",
        None,
        tuple(LEARNERS),
        DEFAULT_CNN,
        1000,
        shots=(1, 5, None),
        val_fraction=0.25,
        augment=("affine",),
    ),
    "rotated MNIST": Family("mnist", "rotated:24"),
    "permuted Fashion-MNIST": Family("fashion_mnist", _PERMUTED.format(count=25)),
    "MNIST pairs": Family("mnist", _PAIRS),
    "two pairs, then re-paired": Family("fashion_mnist", _REPAIRED, (2, 3), tasks_per_batch=2),
    "CIFAR-10 pairs": Family("cifar10", _PAIRS, target=CNN, most=1),
    "nine permutations, then the tenth": Family("fashion_mnist", _PERMUTED.format(count=10), 1),
    "Fashion-MNIST pairs": Family("fashion_mnist", _PAIRS),
    "CIFAR-10 pairs in 8 hues": Family("cifar10", "split:2/hue:8", target=CNN, most=1),
    "pairs of three data sets": Family(_THREE, _EACH_PAIR, target=CNN, most=1),
}
