"""Buffers of a target that belong to a task: batch-norm statistics, and what follows the weights.

These are buffers whose names begin with ``running_`` and ``num_batches_tracked``, in any module,
and those that follow a generated weight, such as the vectors of a spectral norm's power iteration.
Each becomes a table ``[tasks, *shape]`` in the place of the buffer. A call gets copies
of its task's rows, and what it makes of them is put back into the tables.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from sparsehyper.layout import slots

_STEPS_TO_SETTLE = 30  # of a power iteration; PyTorch's own start with 15


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
        following: names of the modules with buffers that follow a weight.
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
        # What other processes have heard of: batches of each task, by a norm that counts them.
        self._counting = next(
            (i for i, name in enumerate(self.names) if name.endswith("num_batches_tracked")), None
        )
        self._told: Tensor | None = None

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
        if self._counting is not None:
            self._told = self.tables(module)[self._counting].clone()

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
        """Replace a task's row."""
        rows = [table.select(0, task) for table in self.tables(module)]
        torch._foreach_copy_(rows, list(values))

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
        if self._told is not None and self._counting is not None:
            self._told = torch.cat([self._told, new[self._counting][None].to(self._told)])

    def remove_row(self, module: nn.Module, task: int) -> None:
        """Forget a task."""
        self.set_tables(
            module, [torch.cat([table[:task], table[task + 1 :]]) for table in self.tables(module)]
        )
        if self._told is not None:
            self._told = torch.cat([self._told[:task], self._told[task + 1 :]])

    @torch.no_grad()
    def settle(self, module: nn.Module) -> None:
        """Let what follows the weights come up to them, as it must for a task just made.

        Parts that are in training do so step by step themselves.
        """
        for name in self.following:
            part = module.get_submodule(name)
            if part.training:
                continue
            if isinstance(part, ParametrizationList):
                part.train()
                for _ in range(_STEPS_TO_SETTLE):
                    part()
                part.eval()
                continue
            for hook in part._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    for _ in range(_STEPS_TO_SETTLE):
                        hook.compute_weight(part, do_power_iteration=True)

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
        seen of it; numbers of batches add up. What follows the weights is taken from the first
        process. All processes must call it.

        Raises:
            ValueError: no norm counts its batches.
        """
        tables = self.tables(module)
        if not tables:
            return
        if self._counting is None or self._told is None:
            raise ValueError(
                f"the target's {self.names[0]!r} cannot be brought together over processes, as no "
                "norm of the target counts its batches in a buffer `num_batches_tracked`"
            )
        counted = tables[self._counting]
        new = (counted - self._told.to(counted)).clamp(min=0).double()  # [tasks]
        parts = [new]
        for table, averaged in zip(tables, self._averaged, strict=True):
            weights = new.view(-1, *[1] * (table.ndim - 1))
            if not averaged:
                part = table * (dist.get_rank(group) == 0)
            elif table.is_floating_point():
                part = weights * table
            else:
                part = weights * torch.ones_like(table)
            parts.append(part.double().flatten())
        summed = torch.cat(parts)
        dist.all_reduce(summed, group=group)
        total, *sums = summed.split([len(part) for part in parts])
        seen = total > 0
        for table, averaged, values in zip(tables, self._averaged, sums, strict=True):
            values = values.view(table.shape)
            if not averaged:
                table.copy_(values)
            elif table.is_floating_point():
                weights = total.view(-1, *[1] * (table.ndim - 1))
                table[seen] = (values / weights)[seen].to(table.dtype)
            else:
                table += (values - new.view(-1, *[1] * (table.ndim - 1))).round().to(table.dtype)
        self._told = tables[self._counting].clone()


def is_statistic(attribute: str) -> bool:
    """Whether a buffer of this name is taken for a batch-norm statistic."""
    return attribute.startswith("running_") or attribute == "num_batches_tracked"


def _following_weights(
    module: nn.Module, generated: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """Names of modules and of their buffers that change as a generated weight does."""
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
    """Names of the buffers that computing a parametrized tensor changes, by a trial on a copy."""
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
