"""Any module as a function of generated parameters θ.

``Target`` plans once which tensors of a module are generated and where each lies in θ. A call runs
the module with the tensors it is given in their places: in shallow copies of the modules that hold
them (`replicas`), so that a call's tensors are its own. The module that ``Target`` was given is
copied, and never changed.

- A tied parameter has one place in θ. A parameter with ``requires_grad=False`` is left as it is.
- Batch-norm statistics follow ``norm_stats``, and what follows generated weights is a task's own
  (`norm_statistics`); all other buffers are shared.
- ``train()`` and ``eval()`` reach the module, as it is a submodule.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice
from sparsehyper._util.memory import shared_memory
from sparsehyper.layout import Select, owner_of, plan_layout, slots
from sparsehyper.target.copying import (
    check_reachable,
    copy_module,
    padding_row,
    renew_weight_lists,
)
from sparsehyper.target.initialisation import INITS, initial_moments
from sparsehyper.target.norm_statistics import NormStatistics, is_statistic
from sparsehyper.target.replicas import Replica, ReplicaPlan
from sparsehyper.target.unpacking import Plan, unpack

BASES = ("zeros", "learned", "residual", "pretrained")
TRAINED_BASES = ("learned", "residual")
NORM_STATS = ("per_task", "shared", "batch")
OTHERS = ("shared", "frozen")


class Target(nn.Module):
    """A module as a function of θ.

    Args:
        module: any module; copied.
        generate: which parameters θ holds: a glob, several, or a predicate of name and parameter.
        others: the parameters that are neither generated nor frozen already are trained and
            shared by all tasks (``"shared"``) or kept as they are (``"frozen"``).
        base: what θ is added to: ``"zeros"`` (norm scales and other constants start at their own
            constant, see ``initialisation``), ``"learned"`` (that, trained), ``"pretrained"`` (the
            module's values) or ``"residual"`` (those, trained).
        init: by which rule tensors get their standard deviation, as ``initialisation`` has it.
        scale: multiplies every tensor's standard deviation.
        norm_stats: batch-norm statistics ``"per_task"``, ``"shared"`` by all, or always those of
            the ``"batch"``.
        tasks: how many tasks to keep statistics for.

    Attributes:
        layout: the generated tensors, in order.
        numel: length of θ.
        moments: mean and standard deviation of each generated tensor, ``[2, tensors]``.
        base: a learned or pretrained base, ``[numel]``; None where the means are all there is.
        statistics: which buffers belong to a task; they are tables in ``module``.

    Raises:
        ValueError: nothing to generate, a pattern that matches nothing, an unknown choice, or
            parameters that cannot be generated.
    """

    base: Tensor | None
    moments: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        generate: Select = "*",
        others: str = "shared",
        base: str = "learned",
        init: str = "torch",
        scale: float = 1.0,
        norm_stats: str = "per_task",
        tasks: int = 1,
    ) -> None:
        super().__init__()
        check_choice("others", others, OTHERS)
        check_choice("base", base, BASES)
        check_choice("init", init, INITS)
        check_choice("norm_stats", norm_stats, NORM_STATS)
        self.norm_stats = norm_stats
        self.layout = plan_layout(module, generate)
        _check_values(module)
        self.numel = sum(spec.numel for spec in self.layout)
        check_reachable(module, self.layout)
        names = {spec.name for spec in self.layout}
        values = [module.get_parameter(spec.name).detach() for spec in self.layout]
        moments = [
            initial_moments(
                *owner_of(module, spec.name), value, init, with_bias=_bias_of(spec.name) in names
            )
            for spec, value in zip(self.layout, values, strict=True)
        ]
        means, stds = torch.tensor(moments, dtype=values[0].dtype, device=values[0].device).T
        self.register_buffer("moments", torch.stack([means, stds * scale]))
        self._padding = [
            (place, row)
            for place, spec in enumerate(self.layout)
            if (row := padding_row(*owner_of(module, spec.name))) is not None and not spec.aliases
        ]
        self._plan = self._make_plan()
        if base == "learned":
            sizes = torch.tensor(self._plan.sizes, device=means.device)
            self.base = nn.Parameter(means.repeat_interleave(sizes))
        elif base == "zeros":
            self.register_buffer("base", None)
        else:
            flat = torch.cat([value.reshape(-1) for value in values])
            if base == "residual":
                self.base = nn.Parameter(flat)
            else:
                self.register_buffer("base", flat)

        self.module = copy_module(module)
        # Where each generated tensor goes, a tied one into several places.
        self._slots = [
            (place, name)
            for place, spec in enumerate(self.layout)
            for name in (spec.name, *spec.aliases)
        ]
        if norm_stats == "batch":
            _use_batches(self.module)
        self.statistics = NormStatistics(self.module, names, norms=norm_stats == "per_task")
        self.statistics.make_tables(self.module, tasks)
        self._replicas = self._plan_replicas()
        for _, name in self._slots:
            owner, attribute = owner_of(self.module, name)
            owner._parameters[attribute] = None
        renew_weight_lists(self.module)
        if others == "frozen":
            self.module.requires_grad_(False)
        self._memory = shared_memory()  # keeps it
        self._told = False  # which buffers change in training
        self.register_load_state_dict_post_hook(_renew_plan)

    def forward(
        self, tensors: Iterable[Tensor], task: int | None, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """The module's output at the parameters ``tensors``, with the statistics of ``task``.

        Args:
            tensors: the generated parameters, in the order of ``layout``.
            task: whose batch-norm statistics; None uses, and leaves alone, the mean of all tasks.
            args, kwargs: what the module takes.
        """
        statistics = self.statistics.row(self.module, task)
        out, changed = self.run(tuple(tensors), statistics, args, kwargs)
        if changed is not None and task is not None:
            self.statistics.keep(self.module, task, changed)
        return out

    def run(
        self,
        tensors: Sequence[Tensor],
        statistics: Sequence[Tensor],
        args: Any,
        kwargs: Any,
        module: nn.Module | None = None,
    ) -> tuple[Any, list[Tensor] | None]:
        """The module's output with these parameters and statistics in their places.

        Args:
            tensors: the generated parameters, in the order of ``layout``.
            statistics: as `NormStatistics.row` gives them; may be changed.
            args, kwargs: what the module takes.
            module: run in the place of the target's own; of the same structure.

        Returns:
            The output, and the statistics afterwards; None where they are the same as before.
        """
        parameters = [tensors[place] for place, _ in self._slots]
        buffers = self.statistics.spread(statistics)
        untold = self.training and not self._told and module is None
        shared = self._shared_buffers() if untold else {}
        module = self.module if module is None else module
        if torch.compiler.is_compiling():
            out, buffers = _run_in_place(module, self._replicas, parameters, buffers, args, kwargs)
        else:
            own = module is self.module
            plan = self._replicas
            originals = plan.originals(module)
            attributes = None if plan.stale else plan.look(originals, own=own)
            if attributes is None:
                plan = self._replicas = self._plan_replicas()
                originals = plan.originals(module)
                attributes = plan.look(originals, own=own)
            assert attributes is not None
            replica = Replica(plan, originals, attributes, parameters, buffers)
            if self.statistics.following:
                self.statistics.settle(replica.module)
            try:
                out = replica.module(*args, **kwargs)
                buffers = replica.buffers()
            finally:
                replica.close()
        if untold:
            self._tell_of_changes(shared)
        after = self.statistics.gathered(buffers)
        changed = self.collects or any(
            now is not before for now, before in zip(after, statistics, strict=True)
        )
        return out, after if changed and after else None

    @property
    def collects(self) -> bool:
        """Whether a run may change statistics: a norm that has some is in training."""
        if self.training or not self.statistics.names:
            return self.training
        originals = self._replicas.originals(self.module)
        return any(originals[node].training for node, _ in self._replicas.buffers)

    def _shared_buffers(self) -> dict[str, tuple[Tensor, int]]:
        """The real-valued buffers that all tasks share, and how often each was written to."""
        tables = {id(table) for table in self.statistics.tables(self.module)}
        return {
            name: (buffer, buffer._version)
            for name, buffer in self.module.named_buffers()
            if buffer.is_floating_point() and id(buffer) not in tables and not buffer.is_inference()
        }

    def _tell_of_changes(self, before: dict[str, tuple[Tensor, int]]) -> None:
        """Warn, after the first run in training, of buffers that it changed for all tasks."""
        self._told = True
        now = dict(self.module.named_buffers())
        for name, (buffer, version) in before.items():
            statistic = is_statistic(name.rpartition(".")[2])
            if not statistic and (now.get(name) is not buffer or buffer._version != version):
                warnings.warn(
                    f"buffer {name!r} of the target changes in training, and all tasks share it; "
                    "if it should be each task's own, give it a name that begins with 'running_'",
                    stacklevel=2,
                )

    def tensors_at(self, generated: Tensor) -> tuple[Tensor, ...]:
        """The parameters base + scale ⊙ generated, in the order of ``layout``.

        Args:
            generated: ``[…, numel]``; the tensors are ``[…, *shape]``.
        """
        tensors = unpack(generated.to(self.moments.dtype), self._plan, self.base)
        if self._padding:
            with torch.no_grad():
                for place, row in self._padding:
                    tensors[place][..., row, :] = 0
        return tensors

    def parameters_at(self, generated: Tensor) -> Tensor:
        """θ = base + scale ⊙ generated, for ``generated`` of shape ``[…, numel]``."""
        lead, tensors = generated.shape[:-1], self.tensors_at(generated)
        rows = zip(tensors, self._plan.sizes, strict=True)
        return torch.cat([tensor.reshape(*lead, size) for tensor, size in rows], -1)

    def materialize(self, tensors: Sequence[Tensor], task: int | None) -> nn.Module:
        """An ordinary module with copies of the parameters ``tensors`` and the statistics of
        ``task``.
        """
        module = copy_module(self.module)
        parameters = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        for place, name in self._slots:
            owner, attribute = owner_of(module, name)
            owner._parameters[attribute] = parameters[place]
        self.statistics.set_tables(module, self.statistics.row(self.module, task))
        self.statistics.settle(module)
        renew_weight_lists(module)
        return module

    def add_task(self) -> None:
        """Make room for the statistics of one more task; they start as the mean of the others."""
        self.statistics.add_row(self.module)

    def remove_task(self, row: int) -> None:
        """Drop the statistics of a task."""
        self.statistics.remove_row(self.module, row)

    def _plan_replicas(self) -> ReplicaPlan:
        owners = [owner_of(self.module, name) for _, name in self._slots]
        return ReplicaPlan(self.module, owners, self.statistics.owners(self.module))

    def _make_plan(self) -> Plan:
        means, stds = self.moments.tolist()
        return Plan(
            [spec.numel for spec in self.layout], [spec.shape for spec in self.layout], stds, means
        )


def _check_values(module: nn.Module) -> None:
    """Raise ``ValueError`` where a module has tensors without values."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of `target` is on the meta device, without values; load them, or call "
                "`target.to_empty(device=…)`, before giving it to a hypernetwork"
            )


def _use_batches(module: nn.Module) -> None:
    """Let norms use the statistics of their batch, always."""
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


def _run_in_place(
    module: nn.Module,
    plan: ReplicaPlan,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    args: Any,
    kwargs: Any,
) -> tuple[Any, list[Tensor]]:
    """The output and the buffers afterwards; for the compiler, in whose graph no module changes."""
    originals = plan.originals(module)
    tables = [originals[node]._buffers[name] for node, name in plan.buffers]
    try:
        for (node, name), tensor in zip(plan.parameters, parameters, strict=True):
            originals[node]._parameters[name] = tensor
        for (node, name), tensor in zip(plan.buffers, buffers, strict=True):
            originals[node]._buffers[name] = tensor
        for node in plan.recurrent:
            originals[node]._init_flat_weights()
        out = module(*args, **kwargs)
        return out, [originals[node]._buffers[name] for node, name in plan.buffers]
    finally:
        for node, name in plan.parameters:
            originals[node]._parameters[name] = None
        for (node, name), table in zip(plan.buffers, tables, strict=True):
            originals[node]._buffers[name] = table
        for node in plan.recurrent:
            originals[node]._init_flat_weights()


def _renew_plan(target: Target, _: Any) -> None:
    target._plan = target._make_plan()


def _bias_of(name: str) -> str:
    prefix, dot, _ = name.rpartition(".")
    return f"{prefix}{dot}bias"
