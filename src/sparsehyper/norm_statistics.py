"""Buffers of a target that belong to a task: batch-norm statistics, and what follows the weights.

These are buffers whose names begin with ``running_`` and ``num_batches_tracked``, in any module,
and those that follow a generated weight, such as the vectors of a spectral norm's power iteration.
Each becomes a table ``[tasks, *shape]`` in the place of the buffer. A call gets copies
of its task's rows, and what it makes of them is put back into the tables.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from sparsehyper.layout import slots


class NormStatistics:
    """Which buffers of a module belong to a task; it holds no module and no tensor.

    All methods take the module itself, or one of the same structure.

    Args:
        module: the target's module.
        generated: names of its generated parameters.
        norms: whether batch-norm statistics belong to a task.

    Attributes:
        names: of the buffers. One that several modules share has its first name.
        places: where each buffer stands, as names of modules and of their buffers.
    """

    def __init__(self, module: nn.Module, generated: Collection[str], *, norms: bool) -> None:
        following = set(_following_weights(module, generated))
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
        # Batches of each task that other processes have not heard of.
        self._news: Counter[int] = Counter()

    def owners(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """The modules and names of all places, buffer by buffer."""
        return [
            (module.get_submodule(owner), attribute)
            for of in self.places
            for owner, attribute in of
        ]

    def spread(self, values: Sequence[Tensor]) -> list[Tensor]:
        """One value a buffer, as one a place."""
        return [value for value, of in zip(values, self.places, strict=True) for _ in of]

    def gathered(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of `spread`; of a shared buffer the value of its last place."""
        places = iter(values)
        return [[next(places) for _ in of][-1] for of in self.places]

    def tables(self, module: nn.Module) -> list[Tensor]:
        """The tables ``[tasks, *shape]``."""
        tables = []
        for path, attribute in self._paths:
            owner = module
            for name in path:
                owner = owner._modules[name]  # type: ignore[assignment]
            tables.append(owner._buffers[attribute])
        return tables  # type: ignore[return-value]

    def set_tables(self, module: nn.Module, tables: Sequence[Tensor]) -> None:
        """Put tables, or single buffers, in their places."""
        for of, table in zip(self.places, tables, strict=True):
            for owner, attribute in of:
                module.get_submodule(owner)._buffers[attribute] = table

    def make_tables(self, module: nn.Module, tasks: int) -> None:
        """Give every task a row that equals the buffer."""
        buffers = [buffer.detach() for buffer in self.tables(module)]
        self.set_tables(module, [b.expand(tasks, *b.shape).clone() for b in buffers])

    def row(self, module: nn.Module, task: int | None) -> list[Tensor]:
        """Copies of one task's statistics, or what stands for a task that has none yet.

        That is the mean of all tasks, the largest count of batches, and of what follows the
        weights the first task's.
        """
        if task is not None:
            return [table.select(0, task).clone() for table in self.tables(module)]
        return [
            table[0].clone()
            if not averaged
            else table.mean(0)
            if table.is_floating_point()
            else table.amax(0)
            for table, averaged in zip(self.tables(module), self._averaged, strict=True)
        ]

    def rows(self, module: nn.Module, tasks: Sequence[int]) -> list[Tensor]:
        """Copies of several tasks' statistics, ``[len(tasks), *shape]`` each."""
        if not self.names:
            return []
        return [table[list(tasks)] for table in self.tables(module)]

    @torch.no_grad()
    def keep(self, module: nn.Module, task: int, values: Sequence[Tensor]) -> None:
        """Replace a task's row by what one of its batches has made of it."""
        if not torch.compiler.is_compiling():  # to which every new count is another program
            self._news[task] += 1
        rows = [table.select(0, task) for table in self.tables(module)]
        torch._foreach_copy_(rows, list(values))

    def keep_all(self, module: nn.Module, tasks: Sequence[int], values: Sequence[Tensor]) -> None:
        """The same for several tasks; ``values`` are ``[len(tasks), *shape]``."""
        if not torch.compiler.is_compiling():
            self._news.update(tasks)
        self.put(module, tasks, values)

    @torch.no_grad()
    def put(self, module: nn.Module, tasks: Sequence[int], values: Sequence[Tensor]) -> None:
        """Replace rows by ``values`` ``[len(tasks), *shape]``."""
        if not self.names:
            return
        for table, value in zip(self.tables(module), values, strict=True):
            table[list(tasks)] = value.to(table.dtype)

    def add_row(self, module: nn.Module) -> None:
        """Make room for one more task."""
        new = self.row(module, None)
        pairs = zip(self.tables(module), new, strict=True)
        self.set_tables(module, [torch.cat([table, row[None]]) for table, row in pairs])

    def remove_row(self, module: nn.Module, task: int) -> None:
        """Forget a task."""
        self.set_tables(
            module, [torch.cat([table[:task], table[task + 1 :]]) for table in self.tables(module)]
        )

    @contextmanager
    def from_batches(self, module: nn.Module) -> Iterator[None]:
        """Within, norms use the statistics of their batch, and keep them, as in training.

        The rest of the module stays in the mode it is in.
        """
        owners = {owner: None for owner, _ in self.owners(module)}
        kept = [(owner, owner.training, getattr(owner, "momentum", None)) for owner in owners]
        try:
            for owner in owners:
                owner.training = True
            yield
        finally:
            for owner, training, momentum in kept:
                owner.training = training
                if hasattr(owner, "momentum"):
                    owner.momentum = momentum  # type: ignore[assignment]

    def set_momentum(self, module: nn.Module, momentum: float) -> None:
        """Set the weight of the next batch, within `from_batches`."""
        for owner, _ in self.owners(module):
            owner.momentum = momentum  # type: ignore[assignment]

    @torch.no_grad()
    def synchronise(self, module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        """Bring together what the processes of a group have seen since they last did.

        A task's statistics become the mean over processes, weighted by the batches that each has
        seen of it; numbers of batches add up. All processes must call it.
        """
        tables = self.tables(module)
        if not tables:
            return
        counts = torch.zeros(len(tables[0]), dtype=torch.float64, device=tables[0].device)
        for task, batches in self._news.items():
            counts[task] = batches
        self._news.clear()
        flat = [counts]
        for table in tables:
            own = counts.view(-1, *[1] * (table.ndim - 1))
            # Of a count of batches, what it was before is the same everywhere.
            flat.append((own * table if table.is_floating_point() else table - own).flatten())
        summed = torch.cat(flat)
        dist.all_reduce(summed, group=group)
        total, *sums = summed.split([len(part) for part in flat])
        seen = total > 0
        processes = dist.get_world_size(group)
        for table, own in zip(tables, sums, strict=True):
            values = own.view(table.shape)
            weights = total.view(-1, *[1] * (table.ndim - 1))
            if table.is_floating_point():
                table[seen] = (values / weights)[seen].to(table.dtype)
            else:
                table[seen] = (values / processes + weights)[seen].round().to(table.dtype)


def is_statistic(attribute: str) -> bool:
    """Whether a buffer of this name is taken for a batch-norm statistic."""
    return attribute.startswith("running_") or attribute == "num_batches_tracked"


def _following_weights(module: nn.Module, generated: Collection[str]) -> Iterator[str]:
    """Names of buffers that change as a generated weight does."""
    for prefix, part in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(part, ParametrizationList) and any(
            f"{dot}{name}" in generated for name, _ in part.named_parameters()
        ):
            yield from (f"{dot}{name}" for name in _changed_in_training(part))
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and f"{dot}{hook.name}_orig" in generated:
                yield from (f"{dot}{hook.name}_u", f"{dot}{hook.name}_v")


def _changed_in_training(parametrization: nn.Module) -> list[str]:
    """Names of the buffers that computing a parametrized tensor changes, by a trial on a copy."""
    trial = copy.deepcopy(parametrization).train()
    before = {name: (buffer, buffer._version) for name, buffer in trial.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng():
        trial()
    now = dict(trial.named_buffers())
    return [
        name
        for name, (buffer, version) in before.items()
        if now.get(name) is not buffer or buffer._version != version
    ]
