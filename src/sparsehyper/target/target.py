"""Any module as a function of generated parameters θ.

``Target`` plans once which tensors of a module are generated and where each lies in θ. A call runs
the module with given tensors in their places. They are set in shallow copies of the modules that
hold them (`replicas`), so a call's tensors are its own. ``Target`` copies the module that it is
given, and never changes the original; what is frozen need not be copied.

- A tied parameter has one place in θ. A parameter with ``requires_grad=False`` is left as it is.
- Batch-norm statistics follow ``norm_stats``. Buffers that follow a generated weight belong to the
  task (`norm_statistics`). All other buffers are shared.
- ``train()`` and ``eval()`` reach the module, as it is a submodule.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice
from sparsehyper._util.fingerprints import fingerprints
from sparsehyper._util.memory import shared_memory
from sparsehyper.layout import Select, owner_of, plan_layout
from sparsehyper.target.copying import check_reachable, copy_module
from sparsehyper.target.initialisation import INIT_RULES, initial_moments, padding_row
from sparsehyper.target.norm_statistics import (
    NormStatistics,
    drop_statistics,
    is_statistic,
    statistics_of,
)
from sparsehyper.target.replica_plan import ReplicaPlan
from sparsehyper.target.replicas import Replica, run_in_place
from sparsehyper.target.unpacking import UnpackPlan, unpack

BASES = ("zeros", "learned", "residual", "pretrained")
TRAINED_BASES = ("learned", "residual")
STATISTICS_MODES = ("per_task", "shared", "batch")
OTHERS = ("shared", "frozen")


class Target(nn.Module):
    """A module as a function of θ.

    Args:
        module: any module; copied.
        generate: parameters that θ holds: a glob, several, or a predicate of name and parameter.
        others: trainable parameters that are not generated are trained and shared by all tasks
            (``"shared"``), or kept as they are (``"frozen"``).
        base: vector that θ is added to: ``"zeros"`` (norm scales and other constants start at
            their own constant, see ``initialisation``), ``"learned"`` (as zeros, but trained),
            ``"pretrained"`` (the module's values) or ``"residual"`` (the module's values,
            trained).
        init: the rule for the standard deviations of tensors, one of ``INIT_RULES``.
        scale: factor of every tensor's standard deviation.
        norm_stats: batch-norm statistics are kept ``"per_task"``, ``"shared"`` by all tasks, or
            always taken from the ``"batch"``.
        tasks: number of tasks to keep statistics for.
        copy: copy what is frozen too, instead of sharing its memory with ``module``.

    Attributes:
        layout: The generated tensors, in order.
        numel: Length of θ.
        moments: Mean and standard deviation of each generated tensor, ``[2, tensors]``.
        base: A learned or pretrained base ``[numel]``; None if the means are the base.
        module: The module, with tables in the places of buffers that belong to a task.
        statistics: The buffers that belong to a task.
        given: Fingerprints of what is neither generated nor trained, by name in the state dict:
            frozen parameters and a pretrained base.
        given_statistics: Fingerprints of the module's norm statistics, by name in the module.

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
        copy: bool = True,
    ) -> None:
        super().__init__()
        check_choice("others", others, OTHERS)
        check_choice("base", base, BASES)
        check_choice("init", init, INIT_RULES)
        check_choice("norm_stats", norm_stats, STATISTICS_MODES)
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
            (index, row)
            for index, spec in enumerate(self.layout)
            if (row := padding_row(*owner_of(module, spec.name))) is not None and not spec.aliases
        ]
        self._unpack_plan = self._plan_unpacking()
        if base == "learned":
            sizes = torch.tensor(self._unpack_plan.sizes, device=means.device)
            self.base = nn.Parameter(means.repeat_interleave(sizes))
        elif base == "zeros":
            self.register_buffer("base", None)
        else:
            flat = torch.cat([value.reshape(-1) for value in values])
            if base == "residual":
                self.base = nn.Parameter(flat)
            else:
                self.register_buffer("base", flat)

        shared: list[Tensor] = [module.get_parameter(spec.name) for spec in self.layout]  # not kept
        if not copy:
            shared += _frozen(module, shared, everything=others == "frozen")
        self.module = copy_module(module, shared)
        # Index in the layout and name of each place; a tied tensor has several places.
        self._places = [
            (index, name)
            for index, spec in enumerate(self.layout)
            for name in (spec.name, *spec.aliases)
        ]
        self.given_statistics = fingerprints(statistics_of(self.module))
        if norm_stats == "batch":
            drop_statistics(self.module)
        self.statistics = NormStatistics(self.module, names, norms=norm_stats == "per_task")
        self.statistics.make_tables(self.module, tasks)
        self._replica_plan = self._plan_replicas()
        for _, name in self._places:
            owner, attribute = owner_of(self.module, name)
            owner._parameters[attribute] = None
        _renew_weight_lists(self.module)
        if others == "frozen":
            self.module.requires_grad_(False)
        given: dict[str, Tensor] = {
            f"module.{n}": p for n, p in self.module.named_parameters() if not p.requires_grad
        }
        if base == "pretrained":
            assert self.base is not None
            given["base"] = self.base
        self.given = fingerprints(given)
        self._memory = shared_memory()  # hold a reference: the pool is freed with its last holder
        # Whether the base gets its gradient by `base_gradient`, and not from `unpack`.
        self.base_apart = False
        self._checked_buffers = False  # True after the first run in training, see `run`
        self.register_load_state_dict_post_hook(_follow_state)

    @property
    def device(self) -> torch.device:
        """Where the target is."""
        return self.moments.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers that are generated."""
        return self.moments.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Convert all tensors, as PyTorch's ``to`` and the like do."""
        super()._apply(fn, recurse)
        if not self.moments.is_meta:
            self._unpack_plan = self._plan_unpacking()  # of the moments in their new precision
            self.statistics.to(self.moments.device)
        return self

    def unpack(self, raw: Tensor) -> tuple[Tensor, ...]:
        """The parameters θ = base + scale ⊙ raw, as tensors in the order of ``layout``.

        Args:
            raw: the generator's output ``[…, numel]``.

        Returns:
            New tensors ``[…, *shape]``.
        """
        base = self.base.detach() if self.base_apart and self.base is not None else self.base
        return unpack(raw.to(self.moments.dtype), self._unpack_plan, base)

    def base_gradient(self, of_raw: Tensor) -> Tensor:
        """The gradient of the base ``[numel]`` that follows from that of the generator's output.

        Args:
            of_raw: ``[tasks, numel]``.
        """
        flat = of_raw.sum(0)
        plan = self._unpack_plan
        torch._foreach_div_(list(flat.split(plan.sizes)), plan.stds)  # none of them is 0
        return flat

    def forward(
        self, tensors: Iterable[Tensor], task: int | None, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """The module's output at the parameters ``tensors``, with the statistics of ``task``.

        Args:
            tensors: the generated parameters, in the order of ``layout``.
            task: the task whose batch-norm statistics are used and updated; None uses the mean of
                all tasks and updates nothing.
            args, kwargs: arguments of the module.
        """
        statistics = self.statistics.row(self.module, task)
        out, changed = self.run(tuple(tensors), statistics, args, kwargs)
        if changed is not None and task is not None:
            self.statistics.collect(self.module, [task], [value[None] for value in changed])
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
            statistics: one task's rows, as `NormStatistics.row` returns them; the run may change
                them in place.
            args, kwargs: arguments of the module.
            module: a module of the same structure to run instead; None for the target's own.

        Returns:
            The output, and the statistics afterwards; None if they did not change.
        """
        parameters = [tensors[index] for index, _ in self._places]
        buffers = self.statistics.spread(statistics)
        check_buffers = self.training and not self._checked_buffers and module is None
        shared = self._shared_buffers() if check_buffers else {}
        module = self.module if module is None else module
        if torch.compiler.is_compiling():
            plan = self._replica_plan
            out, buffers = run_in_place(plan, module, parameters, buffers, args, kwargs)
        else:
            replica = self._replica(module, parameters, buffers)
            if self.statistics.following:
                self.statistics.settle(replica.module)
            try:
                out = replica.module(*args, **kwargs)
                buffers = replica.buffers()
            finally:
                replica.close()
        if check_buffers:
            self._warn_of_changes(shared)
        after = self.statistics.gathered(buffers)
        changed = self.collects or any(
            now is not before for now, before in zip(after, statistics, strict=True)
        )
        return out, after if changed and after else None

    @property
    def collects(self) -> bool:
        """Whether a run may change statistics: a module that has some is in training mode."""
        if self.training or not self.statistics.names:
            return self.training
        originals = self._replica_plan.originals(self.module)
        return any(originals[node].training for node, _ in self._replica_plan.buffers)

    def materialize(self, tensors: Sequence[Tensor], statistics: Sequence[Tensor]) -> nn.Module:
        """An ordinary module with copies of the given parameters and statistics.

        Args:
            tensors: the generated parameters, in the order of ``layout``.
            statistics: those of one task, or their mean, as `NormStatistics.row` gives them.
        """
        module = copy_module(self.module)
        parameters = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        for index, name in self._places:
            owner, attribute = owner_of(module, name)
            owner._parameters[attribute] = parameters[index]
        self.statistics.set_tables(module, [table.detach().clone() for table in statistics])
        self.statistics.settle(module)
        _renew_weight_lists(module)
        return module

    def printed(self) -> str:
        """The module as ``print`` shows it, with what is generated in its places."""
        tensors = [torch.empty(spec.shape, device="meta") for spec in self.layout]
        buffers = self.statistics.spread(self.statistics.row(self.module, None))
        replica = self._replica(self.module, [tensors[index] for index, _ in self._places], buffers)
        text = repr(replica.module)
        replica.close()
        return text

    def __repr__(self) -> str:
        return f"Target(\n  (module): {textwrap.indent(self.printed(), '  ').lstrip()}\n)"

    def _replica(
        self, module: nn.Module, parameters: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> Replica:
        """Copies for one call, by a new plan if the present one no longer fits."""
        plan, own = self._replica_plan, module is self.module
        originals = plan.originals(module)
        attributes = None if plan.stale else plan.attributes(originals, own=own)
        if attributes is None:
            plan = self._replica_plan = self._plan_replicas()
            originals = plan.originals(module)
            attributes = plan.attributes(originals, own=own)
        assert attributes is not None
        return Replica(plan, originals, attributes, parameters, buffers)

    def _plan_replicas(self) -> ReplicaPlan:
        owners = [owner_of(self.module, name) for _, name in self._places]
        return ReplicaPlan(self.module, owners, self.statistics.owners(self.module))

    def _plan_unpacking(self) -> UnpackPlan:
        means, stds = self.moments.tolist()
        sizes, shapes = [spec.numel for spec in self.layout], [spec.shape for spec in self.layout]
        return UnpackPlan(sizes, shapes, stds, means, self._padding)

    def _shared_buffers(self) -> dict[str, tuple[Tensor, int]]:
        """The floating-point buffers that all tasks share, with their versions."""
        tables = {id(table) for table in self.statistics.tables(self.module)}
        return {
            name: (buffer, buffer._version)
            for name, buffer in self.module.named_buffers()
            if (buffer.is_floating_point() or buffer.is_complex())
            and id(buffer) not in tables
            and not buffer.is_inference()
        }

    def _warn_of_changes(self, before: dict[str, tuple[Tensor, int]]) -> None:
        """Warn, after the first run in training, about buffers that it changed for all tasks."""
        self._checked_buffers = True
        now = dict(self.module.named_buffers())
        for name, (buffer, version) in before.items():
            statistic = is_statistic(name.rpartition(".")[2])
            if not statistic and (now.get(name) is not buffer or buffer._version != version):
                warnings.warn(
                    f"buffer {name!r} of the target changes in training, and all tasks share it; "
                    "if each task should have its own, give it a name that begins with 'running_'",
                    stacklevel=2,
                )


def _frozen(module: nn.Module, generated: list[Tensor], *, everything: bool) -> list[Tensor]:
    """The large tensors that no training changes: parameters, and integers of quantised layers."""
    ids = set(map(id, generated))
    parameters = [p for p in module.parameters() if everything or not p.requires_grad]
    buffers = [b for b in module.buffers() if b.ndim and not b.is_complex()]
    integers = [b for b in buffers if not b.is_floating_point()]
    return [tensor for tensor in (*parameters, *integers) if id(tensor) not in ids]


def _check_values(module: nn.Module) -> None:
    """Raise ``ValueError`` if a module has tensors without values."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of `target` is on the meta device, without values; load them, or call "
                "`target.to_empty(device=…)`, before giving it to a hypernetwork"
            )


def _renew_weight_lists(module: nn.Module) -> None:
    """Renew the lists of weights that recurrent layers keep beside their parameters."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer._init_flat_weights()


def _follow_state(target: Target, _: Any) -> None:
    """Bring what follows from the tensors up to date with a state that was loaded."""
    target._unpack_plan = target._plan_unpacking()
    target.statistics.mark_synchronised(target.module)


def _bias_of(name: str) -> str:
    prefix, dot, _ = name.rpartition(".")
    return f"{prefix}{dot}bias"
