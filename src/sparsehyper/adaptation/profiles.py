"""What the samples of known tasks look like, and how sure one can be of a task.

A hypernetwork has a model for each task, but does not know which inputs belong to it. A profile
does: it has the mean of every class of the task, in a space that all tasks share (`space`).

    score of task t:  log p(x | t) = log mean_c N(x; class c of t)
    of n samples:     temperature · m · mean_i log p(x_i | t),   m = n / (1 + (n - 1) / most)

A profile's errors are shared by all samples, so evidence must not grow linearly with n: m is at
most `most`. `temperature` and `most` maximise the likelihood of the true task of held-out samples.

Whether samples are typical of a task is tested by two numbers: how much likelier each sample is in
the task than in a class of which nothing is known, and how likely it is in that. Both are compared
with those of held-out samples that are likeliest in the same class. Where labels are known, a
sample is in the class of its label instead of the whole task, and so are the held-out samples that
it is compared with.

Source: the ratio of likelihoods to that of an unknown class, as in speaker verification: S. Prince
and J. Elder, "Probabilistic linear discriminant analysis for inferences about identity" (ICCV
2007); temperature as in C. Guo et al., "On calibration of modern neural networks" (ICML 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sparsehyper._util.checks import check_type, class_numbers
from sparsehyper._util.inputs import Inputs
from sparsehyper._util.text import listed
from sparsehyper.adaptation.samples import Samples, joined, shuffled
from sparsehyper.adaptation.space import Located, Space, class_means, fit_space
from sparsehyper.hypernetwork import HyperNetwork

_FEWEST = 10  # validation samples that are of use
_PSEUDO = 5.0  # samples' weight of a task's mean in those of its classes
_LEVELS = 256  # quantiles that are kept
_TEMPERATURES = torch.logspace(-3, 0.5, 71)
_SETS = (5, 20, 100)  # samples in the sets that `most` is chosen by
_MOST = torch.tensor([300.0, 100.0, 30.0, 10.0, 3.0])

Part = TypeVar("Part", Space, "Calibration", "Profile")


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What makes the scores of all tasks comparable.

    The first dimension is without and with labels; those of older files have the former only.

    Attributes:
        temperature: factor of log-densities, ``[2]``.
        most: upper limit of the effective sample size, ``[2]``: n samples count as
            ``n / (1 + (n - 1) / most)``.
        quantiles: quantiles of the two standardised scores of held-out samples,
            ``[2, 2, levels]``.
    """

    temperature: Tensor
    most: Tensor
    quantiles: Tensor

    def factor(self, count: int, kind: int) -> Tensor:
        """Factor of the mean log-density of some samples; ``kind`` is 1 if labels are known."""
        return _factor(self.temperature[kind], count, self.most[kind])


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """The samples of one task.

    Attributes:
        counts: number of samples of each class, ``[classes]``.
        means: mean of each class, ``[classes, D]``.
        score_means: mean scores of held-out samples by the class that they are likeliest in,
            ``[2, 2, classes]``; the first dimension is as in `Calibration`.
        score_stds: standard deviations of both scores, ``[2, 2]``.
        held: number of held-out samples, ``[2]``.
    """

    counts: Tensor
    means: Tensor
    score_means: Tensor
    score_stds: Tensor
    held: Tensor

    def log_densities(self, space: Space, z: Tensor) -> Tensor:
        """Log-densities ``[n, classes]`` of samples in classes; -inf in one without samples."""
        found = space.log_density(z, self.counts, self.means)
        return found.masked_fill(self.counts == 0, -torch.inf)

    def mixed(self, log_densities: Tensor) -> Tensor:
        """Log-density ``[n]`` of samples in the task; its classes are equally frequent."""
        return log_densities.logsumexp(1) - (self.counts > 0).sum().log()

    def standardised(self, space: Space, z: Tensor, log_densities: Tensor, kind: int) -> Tensor:
        """The two scores ``[2, n]`` of samples, in standard deviations from typical ones."""
        likeliest = log_densities.argmax(1)
        scores = self._scores(space, z, log_densities)
        return (scores - self.score_means[kind][:, likeliest]) / self.score_stds[kind][:, None]

    def _scores(self, space: Space, z: Tensor, log_densities: Tensor) -> Tensor:
        unknown = space.log_density_unknown(z)
        return torch.stack([self.mixed(log_densities) - unknown, unknown])

    def scored(self, space: Space, z: Tensor, tables: Sequence[Tensor]) -> Self:
        """A copy with the scores of held-out samples; their log-densities are of each kind."""
        each = zip(*[self._typical(space, z, table) for table in tables], strict=True)
        means, stds, held = map(torch.stack, each)
        return replace(self, score_means=means, score_stds=stds, held=held)

    def of_kinds(self, count: int) -> Self:
        """A copy with the scores of so many kinds; older profiles have those without labels."""
        return replace(
            self,
            score_means=self.score_means[:count],
            score_stds=self.score_stds[:count],
            held=self.held[:count],
        )

    def _typical(
        self, space: Space, z: Tensor, log_densities: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores, likeliest = self._scores(space, z, log_densities), log_densities.argmax(1)
        number = torch.bincount(likeliest, minlength=len(self.counts)).to(scores)
        sums = scores.new_zeros(2, len(number)).index_add_(1, likeliest, scores)
        means = (sums + _PSEUDO * scores.mean(1, keepdim=True)) / (number + _PSEUDO)
        stds = (scores - means[:, likeliest]).square().mean(1).sqrt().clamp(min=1e-3)
        return means, stds, number.sum()


@dataclass(frozen=True, eq=False, repr=False)
class TaskProfiles:
    """What the samples of known tasks look like; made by `task_profiles`.

    Attributes:
        space: the common space.
        calibration: what makes the scores of all tasks comparable.
        tasks: profile of each task, by name; some kilobytes each.
    """

    space: Space
    calibration: Calibration
    tasks: dict[str, Profile]

    @torch.no_grad()
    def add(self, hnet: HyperNetwork, tasks: Mapping[str, Samples]) -> Self:
        """A copy with more tasks; one that has the name of another replaces it.

        Args:
            hnet: the hypernetwork that the profiles were made with; its tasks may be others now.
            tasks: samples of each task, by name.
        """
        added = {}
        for name, (x, y) in _gathered(hnet, tasks).items():
            train = Located(self.space.locate(hnet, x), y)
            found, _ = _profile(self.space, x, train, train)
            added[name] = found.of_kinds(len(self.calibration.temperature))
        return replace(self, tasks={**self.tasks, **added})

    def remove(self, name: str) -> Self:
        """A copy without a task."""
        self.check_known(name)
        return replace(self, tasks={n: p for n, p in self.tasks.items() if n != name})

    def rename(self, name: str, new_name: str) -> Self:
        """A copy with another name for a task.

        Raises:
            KeyError: an unknown task.
            ValueError: another task has the new name.
        """
        self.check_known(name)
        if new_name in self.tasks and new_name != name:
            raise ValueError(f"`new_name` is {new_name!r}, which is the name of another task")
        tasks = {new_name if n == name else n: p for n, p in self.tasks.items()}
        return replace(self, tasks=tasks)

    def to(self, device: torch.device | str) -> Self:
        """A copy on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.to_tensors().items()}
        return self.from_tensors(self.tasks, moved)

    def to_tensors(self) -> dict[str, Tensor]:
        """All numbers by name, for a file. Tasks are numbered, in their order."""
        parts: dict[str, Any] = {"space": self.space, "calibration": self.calibration}
        parts |= {f"tasks/{i}": profile for i, profile in enumerate(self.tasks.values())}
        tensors: dict[str, Tensor] = {}
        for prefix, part in parts.items():
            for field in fields(part):
                value = getattr(part, field.name)
                several = value if isinstance(value, tuple) else (value,)
                names = [f"{prefix}/{field.name}"]
                if isinstance(value, tuple):
                    names = [f"{names[0]}/{i}" for i in range(len(value))]
                tensors |= dict(zip(names, several, strict=True))
        return tensors

    @classmethod
    def from_tensors(cls, names: Iterable[str], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`.

        Args:
            names: names of the tasks, in order.
            tensors: what `to_tensors` returned.

        Raises:
            KeyError: a tensor is missing.
        """
        if tensors["calibration/temperature"].ndim == 0:  # from before labels were calibrated
            shared = ("space/", "/counts", "/means")
            tensors = {n: t if any(s in n for s in shared) else t[None] for n, t in tensors.items()}

        def read(kind: type[Part], prefix: str, **others: Any) -> Part:
            for field in fields(kind):
                if field.name not in others:
                    others[field.name] = tensors[f"{prefix}/{field.name}"]
            return kind(**others)

        count = sum(name.startswith("space/statistics/") for name in tensors)
        statistics = tuple(tensors[f"space/statistics/{i}"] for i in range(count))
        return cls(
            read(Space, "space", statistics=statistics),
            read(Calibration, "calibration"),
            {name: read(Profile, f"tasks/{i}") for i, name in enumerate(names)},
        )

    def check_known(self, name: str) -> None:
        """Raise ``KeyError`` unless there is a profile of this task."""
        if name not in self.tasks:
            raise KeyError(
                f"no profile of a task {name!r}; there are those of {listed(self.tasks)}"
            )


@torch.no_grad()
def task_profiles(
    hnet: HyperNetwork,
    tasks: Mapping[str, Samples],
    *,
    validation: Mapping[str, Samples] | None = None,
) -> TaskProfiles:
    """Describe what the samples of known tasks look like, for `identify_task`.

    Labels that are class numbers, or booleans, divide the samples of a task into classes; other
    labels are ignored. A thousand samples of a task are plenty.

    Args:
        hnet: hypernetwork with named tasks; used in evaluation mode.
        tasks: samples of each task, by name: inputs, which are whatever the target takes, and
            labels; or batches of them.
        validation: samples of some or all tasks that nothing was trained on, to calibrate by;
            those of classes that ``tasks`` have no sample of are left out. Of a task with fewer
            than 10, its own samples are held out one at a time instead, which is optimistic if the
            hypernetwork was trained on them and they are few.

    Raises:
        TypeError: the hypernetwork knows no tasks by name, or ``tasks`` is not a mapping.
        KeyError: an unknown task.
        ValueError: a task without samples, inputs that are not finite, or nothing that differs
            within classes.

    >>> from sparsehyper import Sparse, TaskEmbedding, identify_task
    >>> hnet = HyperNetwork(torch.nn.Linear(5, 2), Sparse(), TaskEmbedding(["low", "high"], dim=8))
    >>> x, y = torch.randn(40, 5), torch.arange(40) % 2
    >>> profiles = task_profiles(hnet, {"low": (x - 4, y), "high": (x + 4, y)})
    >>> identify_task(hnet, profiles, x[:3] + 4).name
    'high'
    """
    samples = _gathered(hnet, tasks)
    if not samples:
        raise ValueError("`tasks` must name at least one task, got none")
    space, located = fit_space(hnet, list(samples.values()))
    held_out = _gathered(hnet, {} if validation is None else validation)
    profiles, held, own = {}, {}, {}
    for (name, (x, y)), train in zip(samples.items(), located, strict=True):
        held[name] = train
        if name in held_out:
            others, labels = held_out[name]
            known = torch.isin(labels, y)
            if int(known.sum()) >= _FEWEST:
                held[name] = Located(space.locate(hnet, others[known]), labels[known])
        profiles[name], own[name] = _profile(space, x, train, held[name])
    return TaskProfiles(space, _calibrate(space, profiles, held, own), profiles)


def _gathered(hnet: HyperNetwork, tasks: Mapping[str, Samples]) -> dict[str, tuple[Inputs, Tensor]]:
    """Inputs and class numbers of each task, shuffled."""
    check_type("tasks", tasks, Mapping, 'samples by name, as in {"hats": (x, y)}')
    device, gathered = hnet.device, {}
    for name, samples in tasks.items():
        hnet.tasks.index(name)
        x, y = joined(name, samples, device)
        x.check_finite(f"inputs of task {name!r}")
        x, y = shuffled(x, y)
        try:
            y = class_numbers("labels", y, len(x))
        except ValueError:
            y = torch.zeros(len(x), dtype=torch.long, device=device)
        gathered[name] = x, y
    return gathered


def _copies(x: Inputs, y: Tensor) -> Tensor:
    """Number of samples that equal each one in inputs and class, with itself, ``[n]``."""
    pairs = torch.stack([x.first_equal, y], 1)
    _, places, counts = pairs.unique(dim=0, return_inverse=True, return_counts=True)
    return counts[places]


def _profile(
    space: Space, x: Inputs, train: Located, held: Located
) -> tuple[Profile, list[Tensor]]:
    """The profile of a task, and log-densities ``[n, classes]`` of held-out samples in its classes.

    Args:
        space: the space.
        x: inputs of samples of the task.
        train: these samples.
        held: held-out samples; ``train`` itself to hold out one at a time, with its copies.

    Returns:
        The log-densities without labels, and with them.
    """
    counts, means = class_means(*train)
    nothing = means.new_zeros(2, 2, len(counts))
    profile = Profile(counts, means, nothing, nothing[..., 0], nothing[:, 0, 0])
    own = profile.log_densities(space, held.z)
    if held is train:
        alone = space.log_density_alone(train, counts, means, _copies(x, train.y))
        own = own.scatter(1, train.y[:, None], alone[:, None])
    tables = [own, in_own_classes(own, held.y)]
    return profile.scored(space, held.z, tables), tables


def _calibrate(
    space: Space,
    profiles: Mapping[str, Profile],
    held: Mapping[str, Located],
    own: Mapping[str, Sequence[Tensor]],
) -> Calibration:
    """The calibration that fits held-out samples.

    Args:
        space: the space.
        profiles: the profiles.
        held: held-out samples of each task.
        own: their log-densities in the classes of their own task, of each kind.
    """
    # All classes of all tasks at once; tasks with fewer have some without samples.
    counts, means = (
        pad_sequence([getattr(profile, name) for profile in profiles.values()], batch_first=True)
        for name in ("counts", "means")
    )
    every = Profile(counts.flatten(), means.flatten(0, 1), *(counts.new_empty(0),) * 3)
    classes = (counts > 0).sum(1).log()  # of each task
    scores: list[list[Tensor]] = [[], []]  # by kind
    tables: list[list[Tensor]] = [[], []]
    for number, (task, profile) in enumerate(profiles.items()):
        z, y = held[task]
        found = every.log_densities(space, z).unflatten(1, counts.shape)
        for kind, densities in enumerate((found, in_own_classes(found, y[:, None]))):
            mixed = densities.logsumexp(2) - classes
            mixed[:, number] = profile.mixed(own[task][kind])
            tables[kind].append(mixed)
            scores[kind].append(profile.standardised(space, z, own[task][kind], kind))
    each = [_calibrated(scores.pop(0), tables.pop(0)) for _ in range(2)]  # and free the tables
    return Calibration(*map(torch.stack, zip(*each, strict=True)))


def _calibrated(scores: list[Tensor], tables: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `Calibration` of one kind.

    Args:
        scores: standardised scores ``[2, n]`` of held-out samples of each task.
        tables: their log-densities ``[n, tasks]`` in all tasks.
    """
    together = torch.cat(scores, 1).sort(1)[0]
    levels = torch.linspace(0, together.shape[1] - 1, _LEVELS, dtype=torch.float64).long()
    single = _sets(tables, 1)
    temperature = min(_TEMPERATURES.to(together), key=lambda t: _loss(*single, t))
    sets = {size: _sets(tables, size) for size in _SETS if size <= max(map(len, tables))}
    most = min(
        _MOST.to(together),
        key=lambda m: sum(_loss(*sets[n], _factor(temperature, n, m)) for n in sets),
    )
    return temperature, most, together[:, levels.to(together.device)]


def in_own_classes(log_densities: Tensor, y: Tensor) -> Tensor:
    """Log-densities ``[…, classes]``, -inf in all classes but that of the label ``[…]``."""
    other = torch.arange(log_densities.shape[-1], device=y.device) != y[..., None]
    return log_densities.masked_fill(other, -torch.inf)


def _factor(temperature: Tensor, count: int, most: Tensor) -> Tensor:
    return temperature * count / (1 + (count - 1) / most)


def _sets(tables: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Mean log-densities ``[sets, tasks]`` of sets of samples, and the sets' tasks ``[sets]``.

    Args:
        tables: log-densities ``[n, tasks]`` of samples of each task in all tasks.
        size: number of samples of a set.
    """
    means = [
        table[: len(table) // size * size].unflatten(0, (-1, size)).mean(1) for table in tables
    ]
    counts = torch.tensor([len(some) for some in means])
    owners = torch.arange(len(means)).repeat_interleave(counts)
    return torch.cat(means), owners.to(means[0].device)


def _loss(sets: Tensor, owners: Tensor, factor: Tensor) -> float:
    """Mean cross entropy of the tasks of sets, whose log-densities have a factor."""
    return float(F.cross_entropy(factor * sets, owners))
