"""Any module as a function of one flat parameter vector θ.

``Target`` plans once which tensors of a module are generated and where each lies in θ, then runs
the module with views of a given θ in their place (``torch.func.functional_call``). It works on a
copy: the module that it was given is never changed, and an exception in its forward leaves nothing
behind.

- A tied parameter has one place in θ. A parameter with ``requires_grad=False`` is left as it is.
- Batch-norm statistics (buffers named ``running_mean``, ``running_var`` and
  ``num_batches_tracked``, in any module) follow ``norm_stats``; all other buffers are shared.
- ``train()`` and ``eval()`` reach the module, as it is a submodule.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsehyper._checks import check_choice
from sparsehyper.initialisation import initial_moments

BASES = ("zeros", "learned", "pretrained")
NORM_STATS = ("per_task", "shared", "batch")
OTHERS = ("shared", "frozen")

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Select = str | Sequence[str] | Callable[[str, nn.Parameter], bool]


class TensorSpec(NamedTuple):
    """One generated tensor's place in θ."""

    name: str  # as in the target's ``named_parameters()``
    shape: torch.Size
    offset: int
    numel: int
    aliases: tuple[str, ...]  # other names of the same tensor, where it is tied


class Target(nn.Module):
    """A module as a function of θ.

    Args:
        module: any module; copied.
        generate: which parameters θ holds: a glob, several, or a predicate of name and parameter.
        others: the parameters that are neither generated nor frozen already are trained and
            shared by all tasks (``"shared"``) or kept as they are (``"frozen"``).
        base: what θ is added to: ``"zeros"`` (norm scales and other constants start at their own
            constant, see ``initialisation``), ``"learned"`` (the same, trained) or
            ``"pretrained"`` (the module's values).
        scale: multiplies every tensor's standard deviation.
        norm_stats: batch-norm statistics ``"per_task"``, ``"shared"`` by all, or always those of
            the ``"batch"``.
        tasks: how many tasks to keep statistics for.

    Attributes:
        layout: the generated tensors, in order.
        numel: length of θ.

    Raises:
        ValueError: nothing to generate, a pattern that matches nothing, an unknown choice, or
            parameters that cannot be generated.
    """

    base: Tensor
    scale: Tensor
    statistics: Tensor
    counts: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        generate: Select = "*",
        others: str = "shared",
        base: str = "zeros",
        scale: float = 1.0,
        norm_stats: str = "per_task",
        tasks: int = 1,
    ) -> None:
        super().__init__()
        check_choice("others", others, OTHERS)
        check_choice("base", base, BASES)
        check_choice("norm_stats", norm_stats, NORM_STATS)
        self.norm_stats = norm_stats
        self.layout = plan_layout(module, generate)
        self.numel = sum(spec.numel for spec in self.layout)
        parameters = dict(module.named_parameters())
        moments = [
            initial_moments(*_owner(module, spec.name), parameters[spec.name].detach())
            for spec in self.layout
        ]
        sizes = torch.tensor([spec.numel for spec in self.layout])
        means = torch.tensor([mean for mean, _ in moments])
        stds = torch.tensor([std for _, std in moments]) * scale
        self.register_buffer("scale", stds.repeat_interleave(sizes))
        values = means.repeat_interleave(sizes)
        if base == "pretrained":
            values = torch.cat([parameters[s.name].detach().reshape(-1).cpu() for s in self.layout])
        if base == "learned":
            self.base = nn.Parameter(values)
        else:
            self.register_buffer("base", values)

        self.module = copy.deepcopy(module)
        for spec in self.layout:
            for name in (spec.name, *spec.aliases):
                owner, attribute = _owner(self.module, name)
                owner._parameters[attribute] = None
        if others == "frozen":
            self.module.requires_grad_(False)
        self._take_statistics(tasks)
        self.register_load_state_dict_post_hook(_ignore_missing_counts)
        first = parameters[self.layout[0].name]
        self.to(dtype=first.dtype, device=first.device)

    def forward(self, theta: Tensor, task: int | None, args: tuple[Any, ...], kwargs: Any) -> Any:
        """The module's output at parameters θ ``[numel]``, with the statistics of ``task``.

        ``task`` None uses, and leaves alone, the mean statistics of all tasks.
        """
        tensors = {**self.unflatten(theta, aliases=True), **self.task_statistics(task)}
        return functional_call(self.module, tensors, args, kwargs)

    def parameters_at(self, generated: Tensor) -> Tensor:
        """θ = base + scale ⊙ generated, for ``generated`` of shape ``[…, numel]``."""
        return torch.addcmul(self.base, self.scale, generated.to(self.base.dtype))

    def unflatten(self, theta: Tensor, *, aliases: bool = False) -> dict[str, Tensor]:
        """Named views of θ ``[numel]``, in the target's own names."""
        pieces = theta.split([spec.numel for spec in self.layout])
        named = {}
        for spec, piece in zip(self.layout, pieces, strict=True):
            named[spec.name] = piece.view(spec.shape)
            if aliases:
                named.update(dict.fromkeys(spec.aliases, named[spec.name]))
        return named

    def materialize(self, theta: Tensor, task: int | None) -> nn.Module:
        """An ordinary module with parameters θ ``[numel]`` and the statistics of ``task``."""
        module = copy.deepcopy(self.module)
        named = self.unflatten(theta.detach().clone())
        for spec in self.layout:
            parameter = nn.Parameter(named[spec.name].clone())
            for name in (spec.name, *spec.aliases):
                setattr(*_owner(module, name), parameter)
        for name, value in self.task_statistics(task).items():
            setattr(*_owner(module, name), value.clone())
        return module

    def add_task(self) -> None:
        """Make room for the statistics of one more task; they start as the mean of the others."""
        mean, count = self._row(None)
        self.statistics = torch.cat([self.statistics, mean[None]])
        self.counts = torch.cat([self.counts, count[None]])

    def task_statistics(self, task: int | None) -> dict[str, Tensor]:
        """Named batch-norm statistics: views of one task's, or a copy of the mean of all."""
        rows, cursors, named = self._row(task), [0, 0], {}
        for name, shape, is_count in self._statistics:
            size = math.prod(shape)
            named[name] = rows[is_count].narrow(0, cursors[is_count], size).view(shape)
            cursors[is_count] += size
        return named

    def _row(self, task: int | None) -> tuple[Tensor, Tensor]:
        if task is None:
            return self.statistics.mean(0), self.counts.amax(0)
        return self.statistics[task], self.counts[task]

    def _take_statistics(self, tasks: int) -> None:
        """Move the batch-norm statistics out of the module, one row a task."""
        self._statistics: list[tuple[str, torch.Size, bool]] = []
        values: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, owner, attribute, buffer in list(_slots(self.module, "_buffers")):
            if attribute not in _STATISTICS or self.norm_stats == "shared":
                continue
            owner._buffers[attribute] = None
            if self.norm_stats == "batch":
                owner.track_running_stats = False
                continue
            is_count = not buffer.is_floating_point()
            self._statistics.append((name, buffer.shape, is_count))
            values[is_count].append(buffer.detach().reshape(-1).cpu())
        floats = torch.cat([torch.empty(0), *values[0]])
        counts = torch.cat([torch.empty(0, dtype=torch.long), *values[1]])
        self.register_buffer("statistics", floats.repeat(tasks, 1))
        self.register_buffer("counts", counts.repeat(tasks, 1))


def plan_layout(module: nn.Module, generate: Select = "*") -> tuple[TensorSpec, ...]:
    """Names, shapes and offsets in θ of the parameters of ``module`` to generate.

    >>> [tuple(spec[:4]) for spec in plan_layout(nn.Linear(3, 2), "w*")]
    [('weight', torch.Size([2, 3]), 0, 6)]
    """
    names: dict[int, list[str]] = {}
    trainable: dict[int, nn.Parameter] = {}
    for name, _, _, parameter in _slots(module, "_parameters"):
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"parameter {name!r} of `target` has no shape yet; "
                "run the module once on an example before giving it to a hypernetwork"
            )
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
            trainable[id(parameter)] = parameter
    chosen = _select(generate, {names[key][0]: trainable[key] for key in names})
    layout, offset = [], 0
    for key, (name, *aliases) in names.items():
        if name in chosen:
            parameter = trainable[key]
            layout.append(
                TensorSpec(name, parameter.shape, offset, parameter.numel(), tuple(aliases))
            )
            offset += parameter.numel()
    dtypes = {chosen[spec.name].dtype for spec in layout}
    if len(dtypes) != 1 or not dtypes.copy().pop().is_floating_point:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"the generated parameters must share one floating dtype, got {found}")
    return tuple(layout)


def _select(generate: Select, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    known = ", ".join(parameters) or "none"
    if callable(generate):
        chosen = {name: p for name, p in parameters.items() if generate(name, p)}
    else:
        patterns = [generate] if isinstance(generate, str) else list(generate)
        for pattern in patterns:
            if not fnmatch.filter(parameters, pattern):
                raise ValueError(
                    f"`generate` pattern {pattern!r} matches no trainable parameter of the "
                    f"target; it has: {known}"
                )
        chosen = {
            name: p
            for name, p in parameters.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
    if not chosen:
        raise ValueError(f"`generate` selects no parameter of the target; it has: {known}")
    return chosen


def _ignore_missing_counts(target: nn.Module, keys: Any) -> None:
    # Given a state without version numbers, as safetensors files are, a batch norm makes up the
    # `num_batches_tracked` that is kept in `counts` here, and then finds it unexpected.
    keys.unexpected_keys[:] = [
        key for key in keys.unexpected_keys if not key.endswith("num_batches_tracked")
    ]


def _slots(module: nn.Module, kind: str) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Every place that holds a parameter or buffer, once, though its module stand in several."""
    for prefix, owner in module.named_modules():
        for attribute, value in getattr(owner, kind).items():
            if value is not None:
                yield f"{prefix}.{attribute}" if prefix else attribute, owner, attribute, value


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the tensor ``name``, and its name there."""
    prefix, _, attribute = name.rpartition(".")
    return module.get_submodule(prefix), attribute
