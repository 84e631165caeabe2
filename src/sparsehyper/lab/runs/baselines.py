"""Baselines without a hypernetwork, called in the same way: ``model(x, task=task)``.

`Experts` share nothing between tasks. `SharedTrunk` shares all but the last layer: hard parameter
sharing, as in R. Caruana, "Multitask learning" (Machine Learning 28, 1997).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from os import PathLike

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper import saving
from sparsehyper._util.last_layer import linear_layer
from sparsehyper._util.tasks import task_index
from sparsehyper.layout import count_numbers, plan_layout
from sparsehyper.target.adapters import merge


class _Baseline(nn.Module):
    kind: str
    task_names: tuple[str, ...]

    def save(self, directory: str | PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` to a new directory."""
        saving.save(directory, {"kind": self.kind, "tasks": list(self.task_names)}, self)

    def materialize(self, task: int | str) -> nn.Module:
        """An ordinary module for one task, given by number or name; it shares no memory."""
        rows = {name: i for i, name in enumerate(self.task_names)}
        return merge(self._model(task_index(task, rows)))

    def _model(self, task: int) -> nn.Module:
        raise NotImplementedError


class Experts(_Baseline):
    """A separate target for every task, each with its own initial weights.

    A batch gives no gradient to the experts of other tasks.

    Args:
        build: returns a freshly initialised target; called once for each task.
        tasks: task names, in order.

    Attributes:
        target_numel: number of parameters of one target.

    >>> model = Experts(lambda: nn.Linear(5, 2), ["shoes", "bags"])
    >>> model(torch.randn(3, 5), task=torch.tensor([0, 1, 0])).shape
    torch.Size([3, 2])
    """

    kind = "experts"

    def __init__(self, build: Callable[[], nn.Module], tasks: Sequence[str]) -> None:
        super().__init__()
        self.task_names = tuple(tasks)
        self.experts = nn.ModuleList(build() for _ in self.task_names)
        self.target_numel = count_numbers(plan_layout(self.experts[0]))

    def forward(self, x: Tensor, *, task: int | Tensor) -> Tensor:
        """Logits ``[batch, outputs]``.

        Args:
            x: ``[batch, …]``.
            task: one task for the batch, or int64 ``[batch]``.

        Raises:
            IndexError: a task is out of range.
        """
        _check_tasks(task, len(self.experts))
        if isinstance(task, int):
            return self.experts[task](x)
        order = task.argsort(stable=True)
        tasks, counts = task[order].unique_consecutive(return_counts=True)
        parts = x[order].split(counts.tolist())
        outputs = [self.experts[t](part) for t, part in zip(tasks.tolist(), parts, strict=True)]
        return torch.cat(outputs)[order.argsort()]

    def _model(self, task: int) -> nn.Module:
        return copy.deepcopy(self.experts[task])


class SharedTrunk(_Baseline):
    """One target for all tasks, with a separate last linear layer for each task.

    Args:
        target: a module that ends in an ``nn.Linear``, which the heads replace. It is changed in
            place.
        tasks: task names, in order.

    Attributes:
        target_numel: number of parameters of one target.

    Raises:
        ValueError: the target has no ``nn.Linear``; on a call, that layer is not its last.

    >>> model = SharedTrunk(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), ["shoes", "bags"])
    >>> model(torch.randn(3, 5), task=1).shape
    torch.Size([3, 2])
    """

    kind = "shared_trunk"

    def __init__(self, target: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.task_names = tuple(tasks)
        self.target_numel = count_numbers(plan_layout(target))
        self._head, last = last_linear(target)
        n_in, n_out = last.in_features, last.out_features
        heads = [nn.Linear(n_in, n_out) for _ in self.task_names]
        self.weight = nn.Parameter(torch.stack([head.weight.detach() for head in heads]))
        self.bias = nn.Parameter(torch.stack([head.bias.detach() for head in heads]))
        if last is target:
            target = nn.Identity()
        else:
            target.set_submodule(self._head, nn.Identity())
        self.trunk = target

    def forward(self, x: Tensor, *, task: int | Tensor) -> Tensor:
        """Logits ``[batch, outputs]``; arguments as for `Experts`."""
        _check_tasks(task, len(self.weight))
        features = self.trunk(x)
        if features.shape != (len(x), self.weight.shape[2]):
            raise ValueError(
                "`target` must end in an nn.Linear, which every task replaces by its own; the rest "
                f"returns shape {list(features.shape)}, but that layer takes "
                f"{self.weight.shape[2]} features"
            )
        if isinstance(task, int):
            return F.linear(features, self.weight[task], self.bias[task])
        return torch.einsum("bi,boi->bo", features, self.weight[task]) + self.bias[task]

    @torch.no_grad()
    def _model(self, task: int) -> nn.Module:
        head = linear_layer(self.weight[task], self.bias[task])
        if not self._head:
            return head
        module = copy.deepcopy(self.trunk)
        module.set_submodule(self._head, head)
        return module


BASELINES = (Experts.kind, SharedTrunk.kind)


def last_linear(module: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the last linear layer; raises ``ValueError`` if there is none."""
    found = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    if not found:
        raise ValueError(f"`target` must end in an nn.Linear, got {module!r}")
    return found[-1]


def _check_tasks(task: int | Tensor, count: int) -> None:
    for number in [task] if isinstance(task, int) else task.unique().tolist():
        if not 0 <= number < count:
            raise IndexError(f"`task` must be in [0, {count}), got {number}")
