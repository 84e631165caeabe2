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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    moments: Tensor
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
        self._sizes = [spec.numel for spec in self.layout]
        self.numel = sum(self._sizes)
        values = [module.get_parameter(spec.name).detach() for spec in self.layout]
        moments = [
            initial_moments(*_owner(module, spec.name), value)
            for spec, value in zip(self.layout, values, strict=True)
        ]
        means, stds = torch.tensor(moments, dtype=values[0].dtype, device=values[0].device).T
        self.register_buffer("moments", torch.stack([means, stds * scale]))
        mean, std = self._expanded_moments()
        self.register_buffer("scale", std, persistent=False)
        if base == "zeros":
            self.register_buffer("base", mean, persistent=False)
        elif base == "learned":
            self.base = nn.Parameter(mean)
        else:
            self.register_buffer("base", torch.cat([value.reshape(-1) for value in values]))

        self.module = copy.deepcopy(module)
        for spec in self.layout:
            for name in (spec.name, *spec.aliases):
                owner, attribute = _owner(self.module, name)
                owner._parameters[attribute] = None
        self._recurrent = _recurrent_layers(self.module)
        _renew_weight_lists(self._recurrent)
        if others == "frozen":
            self.module.requires_grad_(False)
        self._take_statistics(tasks, values[0].device)
        self.register_load_state_dict_post_hook(_complete_loading)

    def forward(self, theta: Tensor, task: int | None, args: tuple[Any, ...], kwargs: Any) -> Any:
        """The module's output at parameters θ ``[numel]``, with the statistics of ``task``.

        ``task`` None uses, and leaves alone, the mean statistics of all tasks.
        """
        tensors = {**self.unflatten(theta, aliases=True), **self.task_statistics(task)}
        for layer in self._recurrent:  # renews its list when a weight is not the one it remembers
            layer._flat_weight_refs = [_nothing] * len(layer._flat_weights_names)
        try:
            return functional_call(self.module, tensors, args, kwargs)
        finally:
            _renew_weight_lists(self._recurrent)

    def parameters_at(self, generated: Tensor) -> Tensor:
        """θ = base + scale ⊙ generated, for ``generated`` of shape ``[…, numel]``."""
        return torch.addcmul(self.base, self.scale, generated.to(self.base.dtype))

    def unflatten(self, theta: Tensor, *, aliases: bool = False) -> dict[str, Tensor]:
        """Named views of θ ``[numel]``, in the target's own names."""
        named = {}
        for spec, piece in zip(self.layout, theta.split(self._sizes), strict=True):
            named[spec.name] = piece.view(spec.shape)
            if aliases:
                named.update(dict.fromkeys(spec.aliases, named[spec.name]))
        return named

    def materialize(self, theta: Tensor, task: int | None) -> nn.Module:
        """An ordinary module with parameters θ ``[numel]`` and the statistics of ``task``."""
        module = copy.deepcopy(self.module)
        named = self.unflatten(theta.detach())
        for spec in self.layout:
            parameter = nn.Parameter(named[spec.name].clone())
            for name in (spec.name, *spec.aliases):
                setattr(*_owner(module, name), parameter)
        for name, value in self.task_statistics(task).items():
            setattr(*_owner(module, name), value.clone())
        _renew_weight_lists(_recurrent_layers(module))
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

    def _expanded_moments(self) -> tuple[Tensor, Tensor]:
        """Each tensor's mean and standard deviation for all its elements: two of ``[numel]``."""
        sizes = torch.tensor(self._sizes, device=self.moments.device)
        mean, std = (row.repeat_interleave(sizes) for row in self.moments)
        return mean, std

    def _take_statistics(self, tasks: int, device: torch.device) -> None:
        """Move the batch-norm statistics out of the module, one row a task."""
        self._statistics: list[tuple[str, torch.Size, bool]] = []
        values: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, owner, attribute, buffer in list(_slots(self.module, "_buffers")):
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
            self._statistics.append((name, buffer.shape, is_count))
            values[is_count].append(buffer.detach().reshape(-1).to(device))
        floats = torch.cat([torch.empty(0, device=device), *values[0]])
        counts = torch.cat([torch.empty(0, dtype=torch.long, device=device), *values[1]])
        self.register_buffer("statistics", floats.repeat(tasks, 1))
        self.register_buffer("counts", counts.repeat(tasks, 1))


def plan_layout(module: nn.Module, generate: Select = "*") -> tuple[TensorSpec, ...]:
    """Names, shapes and offsets in θ of the parameters of ``module`` to generate.

    >>> [tuple(spec[:4]) for spec in plan_layout(nn.Linear(3, 2), "w*")]
    [('weight', torch.Size([2, 3]), 0, 6)]
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, _, _, parameter in _slots(module, "_parameters"):
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"parameter {name!r} of `target` has no shape yet; "
                "run the module once on an example before giving it to a hypernetwork"
            )
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    chosen = _select(generate, {first: parameter for parameter, (first, *_) in names.items()})
    layout, offset = [], 0
    for parameter, (name, *aliases) in names.items():
        if name in chosen:
            layout.append(
                TensorSpec(name, parameter.shape, offset, parameter.numel(), tuple(aliases))
            )
            offset += parameter.numel()
    dtypes = {parameter.dtype for parameter in chosen.values()}
    if len(dtypes) > 1 or any(dtype.is_complex for dtype in dtypes):
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"`generate` must select parameters of one real dtype, got {found}")
    return tuple(layout)


def _select(generate: Select, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    if not parameters:
        raise ValueError("`target` has no trainable parameter to generate")
    known = ", ".join(parameters)
    if callable(generate):
        chosen = {name: p for name, p in parameters.items() if generate(name, p)}
    elif not isinstance(generate, Iterable):
        raise TypeError(f"`generate` must be a glob, several, or a predicate, got {generate!r}")
    else:
        patterns = [generate] if isinstance(generate, str) else list(generate)
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in parameters):
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


def _complete_loading(target: Target, keys: Any) -> None:
    mean, std = target._expanded_moments()
    target.scale.copy_(std)
    if "base" in target._non_persistent_buffers_set:
        target.base.copy_(mean)
    # Given a state without version numbers, as safetensors files are, a batch norm makes up the
    # `num_batches_tracked` that is kept in `counts` here, and then finds it unexpected.
    keys.unexpected_keys[:] = [
        key for key in keys.unexpected_keys if not key.endswith("num_batches_tracked")
    ]


def _recurrent_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, nn.RNNBase)]


def _renew_weight_lists(recurrent: list[Any]) -> None:
    """Recurrent layers keep a list of their weights, besides the weights."""
    for layer in recurrent:
        layer._init_flat_weights()


def _nothing() -> None:
    """Stands for a weak reference to a tensor that is gone."""


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
