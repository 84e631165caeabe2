"""Buffers that belong to a task: batch-norm statistics, and buffers that follow a weight.

Statistics are the buffers, of any module, named ``running_…`` or ``num_batches_tracked``. Buffers
that follow a generated weight are, for example, the vectors of a spectral norm's power iteration.
Each of these buffers is replaced by a table ``[tasks, *shape]``. A call gets copies of its task's
rows, and the changed copies are written back to the tables.

A batch norm's running averages start at mean 0 and variance 1, and of many tasks each is seen
rarely. So the first 1 / momentum batches of a task count alike, as in a plain mean, and the start
counts for nothing; from then on the averages are PyTorch's own (`NormStatistics.collect`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from sparsehyper._util.devices import copies, copy_all
from sparsehyper.layout import slots

_SETTLING_STEPS = 30  # steps of a power iteration; PyTorch's own modules start with 15


class NormStatistics:
    """The buffers of a module that belong to a task: where they stand, and how to use them.

    It knows names only and holds no module, so all methods take the module, or one of the same
    structure.

    Args:
        module: the module.
        generated: names of its generated parameters.
        norms: whether batch-norm statistics are kept for each task.

    Attributes:
        names: Names of the buffers. A buffer that several modules share has its first name.
        places: Places of each buffer: names of modules, and names of the buffer there.
        following: Names of the modules with buffers that follow a weight.
    """

    def __init__(self, module: nn.Module, generated: Collection[str], *, norms: bool) -> None:
        following: set[str] = set()
        self.following: list[str] = []
        for part, buffers in _following_weights(module, generated):
            following.update(buffers)
            self.following.append(part)
        names: dict[int, str] = {}
        places: dict[int, list[tuple[str, str]]] = {}
        self._averaged: list[bool] = []
        found = list(slots(module, "_buffers"))
        for name, _, attribute, buffer in found:
            is_norm = norms and is_statistic(attribute)
            if id(buffer) not in names and (is_norm or name in following):
                names[id(buffer)] = name
                self._averaged.append(is_norm)
        for name, _, attribute, buffer in found:
            if id(buffer) in names:
                places.setdefault(id(buffer), []).append((name.rpartition(".")[0], attribute))
        self.names = tuple(names.values())
        self.places = tuple(tuple(places[key]) for key in names)
        self._paths = [
            (tuple(filter(None, owner.split("."))), attribute)
            for (owner, attribute), *_ in self.places
        ]
        # Each task's batches since the last synchronisation, and the tables of integers then.
        self._batches = torch.zeros(0, dtype=torch.int64)
        self._synchronised: list[Tensor] = []
        # Of each batch norm whose statistics are its own alone: its name, the index of its count
        # of batches, and those of its averages.
        index = {of[0]: i for i, of in enumerate(self.places) if len(of) == 1}
        kinds = ("num_batches_tracked", "running_mean", "running_var")
        self._running: list[tuple[str, int, list[int]]] = []
        for owner in dict.fromkeys(owner for owner, _ in index):
            counted = all((owner, kind) in index for kind in kinds)
            if counted and isinstance(module.get_submodule(owner), nn.modules.batchnorm._BatchNorm):
                count, *averages = (index[owner, kind] for kind in kinds)
                self._running.append((owner, count, averages))

    def owners(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Modules and buffer names of all places, buffer by buffer."""
        return [
            (module.get_submodule(owner), attribute)
            for of in self.places
            for owner, attribute in of
        ]

    def spread(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values of the places, given one value per buffer."""
        return [value for value, of in zip(values, self.places, strict=True) for _ in of]

    def gathered(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values of the buffers, given one per place; the last place of a shared buffer counts."""
        places = iter(values)
        return [[next(places) for _ in of][-1] for of in self.places]

    def tables(self, module: nn.Module) -> list[Tensor]:
        """The tables ``[tasks, *shape]``, buffer by buffer."""
        tables = []
        for path, attribute in self._paths:
            owner = module
            for name in path:
                owner = owner._modules[name]  # type: ignore[assignment]
            tables.append(owner._buffers[attribute])
        return tables  # type: ignore[return-value]

    def set_tables(self, module: nn.Module, tables: Sequence[Tensor]) -> None:
        """Put tables, or buffers of one task, in their places."""
        for of, table in zip(self.places, tables, strict=True):
            for owner, attribute in of:
                module.get_submodule(owner)._buffers[attribute] = table

    def make_tables(self, module: nn.Module, tasks: int) -> None:
        """Replace each buffer by a table in which every task's row equals the buffer."""
        buffers = [buffer.detach() for buffer in self.tables(module)]
        self.set_tables(module, [b.expand(tasks, *b.shape).clone() for b in buffers])
        self.mark_synchronised(module)

    def mark_synchronised(self, module: nn.Module) -> None:
        """Take the present statistics as those of the last synchronisation."""
        tables = self.tables(module)
        with torch.inference_mode(False):  # training after it changes them in place
            if tables:
                first = tables[0]
                self._batches = torch.zeros(len(first), dtype=torch.int64, device=first.device)
            self._synchronised = [tables[i].clone() for i in self._counts(tables)]

    def _counts(self, tables: Sequence[Tensor]) -> list[int]:
        """Indices of the statistics that are integers, such as counts of batches."""
        return [
            i
            for i, (table, averaged) in enumerate(zip(tables, self._averaged, strict=True))
            if averaged and not _is_real_or_complex(table)
        ]

    def to(self, device: torch.device) -> None:
        """Move what is counted to the device of the tables."""
        self._batches = self._batches.to(device)

    def row(
        self, module: nn.Module, task: int | None, among: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Copies of one task's rows; for None, initial rows for a new task.

        Initial rows are the mean over tasks, the largest count of batches, and the first task's
        buffers that follow weights. ``among`` are the tasks that count, all by default.
        """
        if task is not None:
            return copies([table.select(0, task) for table in self.tables(module)])
        tables = self.tables(module) if among is None else self.rows(module, among)
        return [
            table[0].clone()
            if not averaged
            else table.mean(0)
            if _is_real_or_complex(table)
            else table.amax(0)
            for table, averaged in zip(tables, self._averaged, strict=True)
        ]

    def rows(self, module: nn.Module, tasks: Sequence[int] | Tensor) -> list[Tensor]:
        """Copies of several tasks' rows, ``[len(tasks), *shape]`` each."""
        if not self.names:
            return []
        return [table[_index(tasks)] for table in self.tables(module)]

    @torch.no_grad()
    def set_row(self, module: nn.Module, task: int, values: Sequence[Tensor]) -> None:
        """Replace one task's rows."""
        rows = [table.select(0, task) for table in self.tables(module)]
        copy_all(rows, values)
        self._batches.select(0, task).add_(1)

    @torch.no_grad()
    def set_rows(
        self, module: nn.Module, tasks: Sequence[int] | Tensor, values: Sequence[Tensor]
    ) -> None:
        """Replace several tasks' rows by ``values`` ``[len(tasks), *shape]``."""
        if not self.names:
            return
        index = _index(tasks)
        for table, value in zip(self.tables(module), values, strict=True):
            table[index] = value.to(table.dtype)
        if isinstance(index, Tensor):  # replicas of other devices count together
            index = index.to(self._batches.device)
        self._batches[index] += 1

    @torch.no_grad()
    def collect(
        self, module: nn.Module, tasks: Sequence[int] | Tensor, values: Sequence[Tensor]
    ) -> None:
        """Replace several tasks' rows by ``values`` ``[len(tasks), *shape]``, one batch later.

        A batch weighs 1 / (number of the task's batches) if that is more than the momentum.
        """
        if not self.names:
            return
        # Reading counts would wait for a device, and break a graph of the compiler.
        known = not torch.compiler.is_compiling() and values[0].is_cpu
        if known and isinstance(tasks, Tensor):
            tasks = tasks.tolist()
        if not (known and self._are_past_early(module, values)):
            values = self._unbiased(module, tasks, values)
        if len(tasks) == 1 and not isinstance(tasks, Tensor):
            self.set_row(module, tasks[0], [value[0] for value in values])
        else:
            self.set_rows(module, tasks, values)

    def _are_past_early(self, module: nn.Module, values: Sequence[Tensor]) -> bool:
        """Whether the batches of these rows are so many that the momentum weighs each of them."""
        for owner, count, _ in self._running:
            momentum: Any = module.get_submodule(owner).momentum
            if momentum and bool((values[count] * momentum < 1).any()):
                return False
        return True

    def _unbiased(
        self, module: nn.Module, tasks: Sequence[int] | Tensor, values: Sequence[Tensor]
    ) -> list[Tensor]:
        """The rows with their early batches weighed alike."""
        if len(tasks) == 1 and not isinstance(tasks, Tensor):
            # a list as an index would be compiled anew for each task
            before = [table.select(0, tasks[0])[None] for table in self.tables(module)]
        else:
            before = self.rows(module, tasks)
        after = list(values)
        alike: dict[float, list[tuple[int, list[int]]]] = {}
        for owner, count, averages in self._running:
            momentum: Any = module.get_submodule(owner).momentum
            if momentum:  # None is a plain mean already
                alike.setdefault(momentum, []).append((count, averages))
        for momentum, norms in alike.items():  # all norms at once: a launch each would cost
            seen = torch.stack([after[count] for count, _ in norms])
            # more than 1 if one call uses a norm several times
            new = seen - torch.stack([before[count] for count, _ in norms])
            weight = 1 - (1 - momentum) ** new
            factors = (new / seen / weight).nan_to_num(1).clamp(min=1)
            for factor, (_, averages) in zip(factors, norms, strict=True):
                for i in averages:
                    shaped = factor.view(-1, *[1] * (after[i].ndim - 1)).to(after[i].dtype)
                    after[i] = torch.lerp(before[i], after[i], shaped)
        return after

    def add_row(self, module: nn.Module) -> None:
        """Add rows for one more task, as `row` gives them for None."""
        new = self.row(module, None)
        pairs = zip(self.tables(module), new, strict=True)
        self.set_tables(module, [torch.cat([table, row[None]]) for table, row in pairs])
        self._batches = torch.cat([self._batches, self._batches.new_zeros(1)])
        self._synchronised = [
            torch.cat([table, new[i][None].to(table)])
            for table, i in zip(self._synchronised, self._counts(new), strict=True)
        ]

    def remove_row(self, module: nn.Module, task: int) -> None:
        """Remove a task's rows."""

        def without(table: Tensor) -> Tensor:
            return torch.cat([table[:task], table[task + 1 :]])

        self.set_tables(module, [without(table) for table in self.tables(module)])
        self._batches = without(self._batches)
        self._synchronised = [without(table) for table in self._synchronised]

    @torch.no_grad()
    def settle(self, module: nn.Module) -> None:
        """Bring buffers that follow weights up to date with weights that were just generated.

        Parts in training mode update theirs step by step themselves.
        """
        for name in self.following:
            part = module.get_submodule(name)
            if part.training:
                continue
            if isinstance(part, ParametrizationList):
                part.train()
                for _ in range(_SETTLING_STEPS):
                    part()
                part.eval()
                continue
            for hook in part._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    for _ in range(_SETTLING_STEPS):
                        hook.compute_weight(part, do_power_iteration=True)

    @contextmanager
    def from_batches(self, module: nn.Module) -> Iterator[None]:
        """Context in which norms use and collect the statistics of their batch, as in training.

        All other parts of the module stay in their mode.
        """
        with batch_statistics(owner for owner, _ in self.owners(module)):
            yield

    def start_mean(self, buffers: Sequence[Tensor]) -> None:
        """Set the counts of batches to 0, before `average`, in one task's buffers."""
        for name, buffer in zip(self.names, buffers, strict=True):
            if name.endswith("num_batches_tracked"):
                buffer.zero_()

    def average(self, module: nn.Module, batches: int) -> None:
        """In `from_batches`, let the next batch join the mean over ``batches`` earlier ones."""
        average((owner for owner, _ in self.owners(module)), batches)

    @torch.no_grad()
    def synchronise(self, module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        """Combine the statistics that the processes of a group collected since the last call.

        A task's statistics become the mean over processes, weighted by the number of the task's
        batches that each process saw since. Counts of batches add up. Buffers that follow weights
        are taken from the first process. All processes must call this.
        """
        tables = [torch.view_as_real(t) if t.is_complex() else t for t in self.tables(module)]
        if not tables:
            return
        # The library's own count: norms may be frozen, and PyTorch's instance norms count nothing.
        new = self._batches.to(tables[0].device).double()  # [tasks]
        before = iter(self._synchronised)
        parts = []
        for table, averaged in zip(tables, self._averaged, strict=True):
            if not averaged:
                part = table.double() * (dist.get_rank(group) == 0)
            elif table.is_floating_point():
                part = new.view(-1, *[1] * (table.ndim - 1)) * table.double()
            else:
                part = (table.double() - next(before).to(table.device)).clamp(min=0)
            parts.append(part)
        summed = torch.cat([new, *(part.flatten() for part in parts)])
        dist.all_reduce(summed, group=group)
        total, *sums = summed.split([len(new), *(part.numel() for part in parts)])
        seen = total > 0
        for table, averaged, own, values in zip(tables, self._averaged, parts, sums, strict=True):
            values = values.view(table.shape)
            if not averaged:
                table.copy_(values)
            elif table.is_floating_point():
                weights = total.view(-1, *[1] * (table.ndim - 1))
                table[seen] = (values / weights)[seen].to(table.dtype)
            else:
                table += (values - own).round().to(table.dtype)
        self.mark_synchronised(module)


def _is_real_or_complex(table: Tensor) -> bool:
    """Whether a table has no integers or bools."""
    return table.is_floating_point() or table.is_complex()


def _index(tasks: Sequence[int] | Tensor) -> Any:
    """Rows as an index; a tensor is one on any device, without waiting for it."""
    return tasks if isinstance(tasks, Tensor) else list(tasks)


@contextmanager
def batch_statistics(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which norms use and collect the statistics of their batch, as in training.

    Their mode and momentum are restored in the end; other modules stay in their mode.
    """
    kept = [(norm, norm.training, vars(norm).get("momentum")) for norm in dict.fromkeys(norms)]
    try:
        for norm, *_ in kept:
            norm.training = True
        yield
    finally:
        for norm, training, momentum in kept:
            norm.training = training
            if "momentum" in vars(norm):
                vars(norm)["momentum"] = momentum


def average(norms: Iterable[nn.Module], batches: int) -> None:
    """In `batch_statistics`, let the next batch join the mean over ``batches`` earlier ones.

    A norm that counts its batches, from 0, weighs each of its uses alike, also those within one
    forward pass. PyTorch's instance norms do not count.
    """
    for norm in norms:
        counts = isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if counts and norm.num_batches_tracked is not None:
            vars(norm)["momentum"] = None
        elif isinstance(vars(norm).get("momentum"), float):
            vars(norm)["momentum"] = 1 / (batches + 1)


def has_one_value(error: ValueError) -> bool:
    """Whether an error is that a batch norm got one value a channel, too few for statistics."""
    return str(error.__cause__ or error).startswith("Expected more than 1 value per channel")


def is_statistic(attribute: str) -> bool:
    """Whether a buffer of this name counts as a batch-norm statistic."""
    return attribute.startswith("running_") or attribute == "num_batches_tracked"


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """The norm statistics in a module's buffers, by name."""
    return {n: b for n, b in module.named_buffers() if is_statistic(n.rpartition(".")[2])}


def drop_statistics(module: nn.Module) -> None:
    """Make norms use the statistics of their batch always, in evaluation too.

    Raises:
        ValueError: a statistic of a module that is not one of PyTorch's batch norms.
    """
    for name, owner, attribute, _ in list(slots(module, "_buffers")):
        if not is_statistic(attribute):
            continue
        if not isinstance(owner, nn.modules.batchnorm._NormBase):
            raise ValueError(
                f"`norm_stats` 'batch' is for PyTorch's own batch norms; the target's {name!r} "
                f"belongs to a {type(owner).__name__}"
            )
        owner._buffers[attribute] = None
        owner.track_running_stats = False


def _following_weights(
    module: nn.Module, generated: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """Names of modules, each with names of its buffers that follow a generated weight."""
    for prefix, part in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        if (
            isinstance(part, ParametrizationList)
            and any(f"{dot}{name}" in generated for name, _ in part.named_parameters())
            and (changed := _changed_in_training(part))
        ):
            yield prefix, [f"{dot}{name}" for name in changed]
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and f"{dot}{hook.name}_orig" in generated:
                yield prefix, [f"{dot}{hook.name}_u", f"{dot}{hook.name}_v"]


def _changed_in_training(parametrization: nn.Module) -> list[str]:
    """Names of the buffers that change when the tensor is computed; a copy is tried."""
    trial = copy.deepcopy(parametrization).train()
    before = {name: (buffer, buffer._version) for name, buffer in trial.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trial()
    now = dict(trial.named_buffers())
    return [
        name
        for name, (buffer, version) in before.items()
        if now.get(name) is not buffer or buffer._version != version
    ]
