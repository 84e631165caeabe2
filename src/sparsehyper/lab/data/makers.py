"""Task makers: descriptions of the tasks to make of a source's images.

`Split` makes tasks of a few classes each, `Alphabets` of characters of one alphabet each.
`Permuted`, `Rotated` and `Hue` make variants of tasks: of a `Split`, else of the tasks that the
source itself defines, else of one task with all classes.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from sparsehyper._util.checks import MOST_TASKS, check_integer, check_number, check_size, check_type
from sparsehyper._util.random import seeded, spawn_seeds
from sparsehyper.lab.data.source import Source, Task
from sparsehyper.lab.data.transforms import Permute, Rotate, ShiftHue, Transform

_FEWEST_WAYS, _MOST_WAYS = 5, 12  # characters of a task of one alphabet


class TaskMaker(ABC):
    """A frozen dataclass that describes tasks."""

    kind: ClassVar[str]

    @abstractmethod
    def tasks(self, source: Source) -> tuple[Task, ...]:
        """The tasks, with unique names.

        Raises:
            ValueError: the source does not have the classes or channels that they need.
        """

    def transform(self, source: Source) -> Transform | None:  # noqa: ARG002
        """The transform that alters images by their task's ``variant``; None if nothing does."""
        return None

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict of the settings, with the kind under ``"kind"``."""
        config: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            config[field.name] = value.to_config() if isinstance(value, TaskMaker) else value
        return config


@dataclass(frozen=True)
class Split(TaskMaker):
    """Tasks of a few classes each.

    Args:
        classes: a number k, for tasks of k classes; or the class numbers of each task.
        combinations: number k: make a task of every choice of k classes, rather than use
            each class once: 45 tasks for pairs out of 10 classes.

    Raises:
        TypeError: ``classes`` is neither a number nor tuples of numbers.
        ValueError: fewer than 2 classes per task, or one class twice in a task.

    >>> from sparsehyper.lab.data import load_source
    >>> [task.name for task in Split([(0, 1), (0, 2)]).tasks(load_source("digits"))]
    ['0-1', '0-2']
    """

    classes: int | Sequence[Sequence[int]] = 2
    combinations: bool = False

    kind = "split"

    def __post_init__(self) -> None:
        check_type("combinations", self.combinations, bool, "true or false")
        if isinstance(self.classes, int):
            check_integer("classes", self.classes, minimum=2, context=" classes a task")
            return
        if not isinstance(self.classes, Iterable) or isinstance(self.classes, str):
            raise TypeError(
                f"`classes` must be a number or tuples of class indices such as [(0, 1), (2, 3)], "
                f"got {self.classes!r}"
            )
        if self.combinations:
            raise ValueError(f"`combinations` needs a number of classes, got {self.classes!r}")
        groups = []
        for group in self.classes:
            if not isinstance(group, Iterable):
                raise TypeError(f"`classes` must hold tuples of class indices, got {group!r}")
            group = tuple(group)
            for index in group:
                check_integer("classes", index, minimum=0, context=f" in {group}")
            if len(group) < 2 or len(set(group)) < len(group):
                raise ValueError(
                    f"`classes` must give each task at least 2 different classes, got {group}"
                )
            groups.append(group)
        if not groups:
            raise ValueError("`classes` must give at least one task, got none")
        object.__setattr__(self, "classes", tuple(groups))

    def tasks(self, source: Source) -> tuple[Task, ...]:
        """The tasks."""
        names = [[source.classes[c] for c in group] for group in self._groups(source)]
        return tuple(
            Task(name, group, tuple(classes))
            for name, group, classes in zip(
                _unique("-".join(n) for n in names), self._groups(source), names, strict=True
            )
        )

    def _groups(self, source: Source) -> list[tuple[int, ...]]:
        n = len(source.classes)
        if not isinstance(self.classes, int):
            groups = [tuple(group) for group in self.classes]
            highest = max(itertools.chain(*groups))
            if highest >= n:
                raise ValueError(
                    f"`classes` must be in 0..{n - 1} for source {source.name!r}, got {highest}"
                )
            return groups
        if self.combinations:
            if self.classes > n:
                raise ValueError(
                    f"`classes` must be at most {n} for source {source.name!r}, got {self.classes}"
                )
            _check_count(f"{self.classes} of {n} classes", math.comb(n, self.classes))
            return list(itertools.combinations(range(n), self.classes))
        if n % self.classes:
            divisors = [str(k) for k in range(2, n + 1) if n % k == 0]
            raise ValueError(
                f"`classes` must divide the {n} classes of source {source.name!r} "
                f"({', '.join(divisors)}), got {self.classes}; or take all combinations, or give "
                f"each task's classes"
            )
        return [tuple(range(i, i + self.classes)) for i in range(0, n, self.classes)]


@dataclass(frozen=True)
class Alphabets(TaskMaker):
    """Tasks that each have some characters of one alphabet, in an order of their own.

    An alphabet is all classes whose names agree up to the last underscore. The alphabets take
    turns. Tasks may share characters; an image is in the same split for all of them.

    Args:
        n_tasks: number of tasks.
        seed: at least 0; a task depends on the seed and its number, not on ``n_tasks``.
        ways: characters of each task; None draws 5 to 12 for each.

    >>> from sparsehyper.lab.data import Images, Source
    >>> images = Images(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), torch.arange(12))
    >>> names = tuple(f"{a}_{i}" for a in ("Greek", "Latin") for i in range(6))
    >>> tasks = Alphabets(3, ways=5).tasks(Source("letters", names, images, images))
    >>> [task.name for task in tasks], tasks[0].class_names[0].split("_")[0]
    (['Greek-0', 'Latin-0', 'Greek-1'], 'Greek')
    """

    n_tasks: int = 20
    seed: int = 0
    ways: int | None = None

    kind = "alphabets"

    def __post_init__(self) -> None:
        check_integer("n_tasks", self.n_tasks, minimum=1, maximum=MOST_TASKS)
        check_integer("seed", self.seed, minimum=0)
        if self.ways is not None:
            check_integer("ways", self.ways, minimum=2)

    def tasks(self, source: Source) -> tuple[Task, ...]:
        """The tasks, with the alphabet's name and a number."""
        alphabets: dict[str, list[int]] = {}
        for number, name in enumerate(source.classes):
            alphabet, underscore, _ = name.rpartition("_")
            if not underscore:
                raise ValueError(
                    "`alphabets` tasks need classes named ALPHABET_CHARACTER, got "
                    f"{name!r} in source {source.name!r}"
                )
            alphabets.setdefault(alphabet, []).append(number)
        fewest = self.ways or _FEWEST_WAYS
        for alphabet, classes in alphabets.items():
            if len(classes) < fewest:
                raise ValueError(
                    f"`ways` must be at most {len(classes)}, the number of characters of "
                    f"{alphabet!r} in source {source.name!r}, got {fewest}"
                )
        turns = list(alphabets.items())
        tasks = []
        for i, seed in enumerate(spawn_seeds(self.seed, self.n_tasks)):
            alphabet, classes = turns[i % len(turns)]
            rng = seeded(seed)
            order = torch.randperm(len(classes), generator=rng).tolist()
            most = min(_MOST_WAYS, len(classes)) + 1
            ways = self.ways or int(torch.randint(_FEWEST_WAYS, most, (), generator=rng))
            chosen = tuple(classes[place] for place in order[:ways])
            names = tuple(source.classes[c] for c in chosen)
            tasks.append(Task(f"{alphabet}-{i // len(turns)}", chosen, names))
        return tuple(tasks)


@dataclass(frozen=True)
class Permuted(TaskMaker):
    """Tasks that each see the pixels in another order, the same in all channels.

    As is usual for permuted MNIST (I. Goodfellow et al., "An empirical investigation of
    catastrophic forgetting in gradient-based neural networks", 2014), every permutation is random:
    no task sees the original images.

    Args:
        n_tasks: number of permutations.
        seed: at least 0; a permutation depends on the seed and its number, not on ``n_tasks``.
        of: the tasks to permute; None for the source's own tasks, or one task with all classes.

    >>> from sparsehyper.lab.data import load_source
    >>> [task.name for task in Permuted(2).tasks(load_source("digits"))]
    ['permutation-0', 'permutation-1']
    """

    n_tasks: int = 10
    seed: int = 0
    of: Split | None = None

    kind = "permuted"

    def __post_init__(self) -> None:
        check_integer("n_tasks", self.n_tasks, minimum=1, maximum=MOST_TASKS)
        check_integer("seed", self.seed, minimum=0)
        _check_base(self.of)

    def tasks(self, source: Source) -> tuple[Task, ...]:
        """The tasks, permutation by permutation."""
        return _variants(self.of, source, [f"permutation-{i}" for i in range(self.n_tasks)])

    def transform(self, source: Source) -> Transform:
        """The permutations."""
        _, height, width = source.image_shape
        check_size(f"`n_tasks` orders of {height * width} pixels", self.n_tasks * height * width)
        seeds = spawn_seeds(self.seed, self.n_tasks)
        rows = [torch.randperm(height * width, generator=seeded(s)) for s in seeds]
        return Permute(torch.stack(rows))


@dataclass(frozen=True)
class Rotated(TaskMaker):
    """Tasks that each see the images rotated by another angle.

    Args:
        angles: angles in degrees, anticlockwise; or a number n, for the n angles i · 360 / n.
        of: the tasks to rotate; None for the source's own tasks, or one task with all classes.

    >>> Rotated(4).angles
    (0.0, 90.0, 180.0, 270.0)
    """

    angles: int | Sequence[float] = 8
    of: Split | None = None

    kind = "rotated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "angles", _settings("angles", self.angles, 360))
        _check_base(self.of)

    def tasks(self, source: Source) -> tuple[Task, ...]:
        """The tasks, angle by angle."""
        return _variants(self.of, source, [f"rotated{a:+g}" for a in _floats(self.angles)])

    def transform(self, source: Source) -> Transform:  # noqa: ARG002
        """The rotations."""
        return Rotate(torch.tensor(_floats(self.angles), dtype=torch.float64))


@dataclass(frozen=True)
class Hue(TaskMaker):
    """Tasks that each see the images with another shift of hue.

    Args:
        shifts: shifts in turns, each in [-0.5, 0.5]; or a number n, for n equally spaced shifts
            around the circle, starting at 0.
        of: the tasks to recolour; None for the source's own tasks, or one task with all classes.

    >>> Hue(4).shifts
    (0.0, 0.25, 0.5, -0.25)
    """

    shifts: int | Sequence[float] = 5
    of: Split | None = None

    kind = "hue"

    def __post_init__(self) -> None:
        shifts = _settings("shifts", self.shifts, 1)
        if isinstance(self.shifts, int):
            shifts = tuple(s - 1 if s > 0.5 else s for s in shifts)
        for shift in shifts:
            if abs(shift) > 0.5:
                raise ValueError(f"`shifts` must be in [-0.5, 0.5] turns, got {shift}")
        object.__setattr__(self, "shifts", shifts)
        _check_base(self.of)

    def tasks(self, source: Source) -> tuple[Task, ...]:
        """The tasks, shift by shift."""
        if source.image_shape[0] != 3:
            raise ValueError(
                f"`hue` tasks need colour images, got source {source.name!r} with "
                f"{source.image_shape[0]} channel(s)"
            )
        return _variants(self.of, source, [f"hue{s:+g}" for s in _floats(self.shifts)])

    def transform(self, source: Source) -> Transform:  # noqa: ARG002
        """The shifts of hue."""
        return ShiftHue(torch.tensor(_floats(self.shifts), dtype=torch.float64))


def _variants(of: Split | None, source: Source, names: Sequence[str]) -> tuple[Task, ...]:
    """Every base task in every variant; an unnamed base task adds nothing to the name."""
    if of is not None:
        base = of.tasks(source)
    elif source.tasks:
        base = source.tasks
    else:
        base = (Task("", tuple(range(len(source.classes))), source.classes),)
    _check_count(f"{len(base):,} tasks in {len(names):,} variants", len(base) * len(names))
    unique = iter(_unique(f"{task.name} {name}".strip() for name in names for task in base))
    return tuple(
        Task(next(unique), task.classes, task.class_names, variant)
        for variant in range(len(names))
        for task in base
    )


def _unique(names: Iterable[str]) -> list[str]:
    """Make names unique: a repeated name gets the next free number."""
    names = list(names)
    taken = set(names)
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        candidate = name
        while seen[name] > 1 and candidate in taken:
            candidate = f"{name} ({seen[name]})"
            if candidate in taken:
                seen[name] += 1
        taken.add(candidate)
        result.append(candidate)
    return result


def _check_count(what: str, count: int) -> None:
    if count > MOST_TASKS:
        raise ValueError(f"at most {MOST_TASKS:,} tasks are allowed, {what} would be {count:,}")


def _settings(argument: str, value: int | Sequence[float], turn: float) -> tuple[float, ...]:
    if isinstance(value, int):
        check_integer(argument, value, minimum=1, maximum=MOST_TASKS)
        return tuple(i * turn / value for i in range(value))
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise TypeError(
            f"`{argument}` must be a number of tasks or a list of numbers, got {value!r}"
        )
    settings = tuple(value)
    for setting in settings:
        check_number(argument, setting)
    if not settings:
        raise ValueError(f"`{argument}` must have at least one number, got none")
    return tuple(float(setting) for setting in settings)


def _floats(settings: int | Sequence[float]) -> tuple[float, ...]:
    assert not isinstance(settings, int)  # replaced at construction
    return tuple(settings)


def _check_base(of: Split | None) -> None:
    if of is not None and not isinstance(of, Split):
        raise TypeError(f"`of` must be a Split or None, got {of!r}")
