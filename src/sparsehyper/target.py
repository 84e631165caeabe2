"""Any module as a function of generated parameters θ.

``Target`` plans once which tensors of a module are generated and where each lies in θ, then runs
the module with the tensors it is given in their places, and afterwards takes them out again. It
works on a copy: the module that it was given is never changed, and an exception in its forward
leaves nothing behind.

- A tied parameter has one place in θ. A parameter with ``requires_grad=False`` is left as it is.
- Batch-norm statistics (buffers named ``running_mean``, ``running_var`` and
  ``num_batches_tracked``, in any module) follow ``norm_stats``; all other buffers are shared.
- ``train()`` and ``eval()`` reach the module, as it is a submodule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._checks import check_choice
from sparsehyper.initialisation import INITS, initial_moments
from sparsehyper.layout import Select, owner_of, plan_layout, slots
from sparsehyper.modules import (
    check_reachable,
    copy_module,
    padding_row,
    recurrent_layers,
    renew_weight_lists,
)
from sparsehyper.sparse.memory import shared_memory
from sparsehyper.unpacking import Plan, unpack

BASES = ("zeros", "learned", "residual", "pretrained")
TRAINED_BASES = ("learned", "residual")
NORM_STATS = ("per_task", "shared", "batch")
OTHERS = ("shared", "frozen")

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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

    Raises:
        ValueError: nothing to generate, a pattern that matches nothing, an unknown choice, or
            parameters that cannot be generated.
    """

    base: Tensor | None
    moments: Tensor
    statistics: Tensor
    counts: Tensor

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
            (place, *owner_of(self.module, name))
            for place, spec in enumerate(self.layout)
            for name in (spec.name, *spec.aliases)
        ]
        for _, owner, attribute in self._slots:
            owner._parameters[attribute] = None
        self._recurrent = recurrent_layers(self.module)
        renew_weight_lists(self._recurrent)
        if others == "frozen":
            self.module.requires_grad_(False)
        self._memory = shared_memory()  # keeps it
        self.shared_runs: dict[Any, dict[int, int]] = {}  # what `mixing` found out about the module
        self._take_statistics(tasks, values[0].device)
        self.register_load_state_dict_post_hook(_complete_loading)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shared_runs": {}}

    def forward(
        self, tensors: Iterable[Tensor], task: int | None, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """The module's output at the parameters ``tensors``, with the statistics of ``task``.

        Args:
            tensors: the generated parameters, in the order of ``layout``.
            task: whose batch-norm statistics; None uses, and leaves alone, the mean of all tasks.
            args, kwargs: what the module takes.
        """
        return self.run(tuple(tensors), self.statistics_of(task), args, kwargs)

    def run(
        self, tensors: Sequence[Tensor], statistics: Sequence[Tensor], args: Any, kwargs: Any
    ) -> Any:
        """The module's output with these parameters and statistics in their places."""
        try:
            for place, owner, attribute in self._slots:
                owner._parameters[attribute] = tensors[place]  # type: ignore[assignment]
            for (_, _, _, owner, attribute), value in zip(
                self._statistics, statistics, strict=True
            ):
                owner._buffers[attribute] = value
            renew_weight_lists(self._recurrent)
            return self.module(*args, **kwargs)
        finally:
            for _, owner, attribute in self._slots:
                owner._parameters[attribute] = None
            for *_, owner, attribute in self._statistics:
                owner._buffers[attribute] = None
            renew_weight_lists(self._recurrent)

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

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Named views of θ ``[numel]``, in the target's own names."""
        pieces = theta.split(self._plan.sizes)
        return {
            spec.name: piece.view(spec.shape)
            for spec, piece in zip(self.layout, pieces, strict=True)
        }

    def materialize(self, tensors: Sequence[Tensor], task: int | None) -> nn.Module:
        """An ordinary module with copies of the parameters ``tensors`` and the statistics of
        ``task``.
        """
        module = copy_module(self.module)
        pairs = zip(self.module.modules(), module.modules(), strict=True)
        copies = {id(own): copied for own, copied in pairs}
        parameters = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        for place, owner, attribute in self._slots:
            copies[id(owner)]._parameters[attribute] = parameters[place]
        for (*_, owner, attribute), value in zip(
            self._statistics, self.statistics_of(task), strict=True
        ):
            copies[id(owner)]._buffers[attribute] = value.clone()
        renew_weight_lists(recurrent_layers(module))
        return module

    def add_task(self) -> None:
        """Make room for the statistics of one more task; they start as the mean of the others."""
        mean, count = self._row(None)
        self.statistics = torch.cat([self.statistics, mean[None]])
        self.counts = torch.cat([self.counts, count[None]])

    def remove_task(self, row: int) -> None:
        """Drop the statistics of a task."""
        self.statistics, self.counts = (
            torch.cat([table[:row], table[row + 1 :]]) for table in (self.statistics, self.counts)
        )

    def set_statistics(self, row: int, floats: Tensor, counts: Tensor) -> None:
        """Take over statistics for a task, as they lie in ``statistics`` and ``counts``."""
        self.statistics[row], self.counts[row] = floats, counts

    @contextmanager
    def more_statistics(self, rows: int) -> Iterator[list[int]]:
        """Within, there are more rows of statistics, which start as the mean of the others."""
        kept, known = (self.statistics, self.counts), len(self.statistics)
        try:
            self.statistics, self.counts = (
                torch.cat([table, value.expand(rows, -1)])
                for table, value in zip(kept, self._row(None), strict=True)
            )
            yield list(range(known, known + rows))
        finally:
            self.statistics, self.counts = kept

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Within, norms with statistics per task use those of the batch, and keep them.

        The rest of the module stays in the mode it is in.
        """
        modules = {id(m): m for m in (self, *(owner for *_, owner, _ in self._statistics))}
        kept = [(m, m.training, getattr(m, "momentum", None)) for m in modules.values()]
        try:
            for module in modules.values() if self._statistics else ():
                module.training = True
            yield
        finally:
            for module, training, momentum in kept:
                module.training = training
                if module is not self and hasattr(module, "momentum"):
                    module.momentum = momentum  # type: ignore[assignment]

    @property
    def has_statistics(self) -> bool:
        """Whether there are batch-norm statistics per task."""
        return bool(self._statistics)

    def set_momentum(self, momentum: float) -> None:
        """The weight of the next batch in statistics per task, within `batch_statistics`."""
        for *_, owner, _ in self._statistics:
            owner.momentum = momentum  # type: ignore[assignment]

    def statistics_of(self, task: int | None) -> list[Tensor]:
        """Batch-norm statistics: views of one task's, or a copy of the mean of all."""
        return self.split_statistics(*self._row(task))

    def split_statistics(self, floats: Tensor, counts: Tensor) -> list[Tensor]:
        """The statistics that lie in ``floats`` and ``counts``, each ``[…, all]``; views."""
        named, cursors = [], [0, 0]
        for _, shape, is_count, _, _ in self._statistics:
            values, start = (floats, counts)[is_count], cursors[is_count]
            cursors[is_count] += shape.numel()
            piece = values[..., start : cursors[is_count]]
            named.append(piece.view(piece.shape[:-1] + shape))
        return named

    def _row(self, task: int | None) -> tuple[Tensor, Tensor]:
        if task is None:
            return self.statistics.mean(0), self.counts.amax(0)
        return self.statistics[task], self.counts[task]

    def _make_plan(self) -> Plan:
        means, stds = self.moments.tolist()
        return Plan(
            [spec.numel for spec in self.layout], [spec.shape for spec in self.layout], stds, means
        )

    def _take_statistics(self, tasks: int, device: torch.device) -> None:
        """Move the batch-norm statistics out of the module, one row a task."""
        self._statistics: list[tuple[str, torch.Size, bool, nn.Module, str]] = []
        values: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, owner, attribute, buffer in list(slots(self.module, "_buffers")):
            if attribute not in _STATISTICS or self.norm_stats == "shared":
                continue
            owner._buffers[attribute] = None
            if self.norm_stats == "batch":
                if not isinstance(owner, nn.modules.batchnorm._NormBase):
                    raise ValueError(
                        f"`norm_stats` 'batch' is for PyTorch's own batch norms; the target's "
                        f"{name!r} belongs to a {type(owner).__name__}"
                    )
                owner.track_running_stats = False
                continue
            is_count = not buffer.is_floating_point()
            self._statistics.append((name, buffer.shape, is_count, owner, attribute))
            values[is_count].append(buffer.detach().reshape(-1).to(device))
        floats = torch.cat(values[0]) if values[0] else torch.empty(0, device=device)
        counts = torch.cat([torch.empty(0, dtype=torch.long, device=device), *values[1]])
        self.register_buffer("statistics", floats.repeat(tasks, 1))
        self.register_buffer("counts", counts.repeat(tasks, 1))


def _complete_loading(target: Target, keys: Any) -> None:
    target._plan = target._make_plan()
    # Given a state without version numbers, as safetensors files are, a batch norm makes up the
    # `num_batches_tracked` that is kept in `counts` here, and then finds it unexpected.
    keys.unexpected_keys[:] = [
        key for key in keys.unexpected_keys if not key.endswith("num_batches_tracked")
    ]


def _bias_of(name: str) -> str:
    prefix, dot, _ = name.rpartition(".")
    return f"{prefix}{dot}bias"
