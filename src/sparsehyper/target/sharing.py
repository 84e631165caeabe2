"""Run tasks with equally many samples in one shared run of the target, where it allows that.

Every task has its own run in these cases:

- There are fewer than four tasks, or three on a GPU, which would gain nothing.
- On the CPU, the target has convolutions and there are more than two samples per task. vmap makes
  a grouped convolution, and with more samples it depends on the shapes which is faster.
- Under autocast, which reaches only some operations within vmap, and in compiled code.
- vmap cannot run the target, or loops over single operations (attention on the CPU).
- The target keeps something of a run: in buffers other than batch-norm statistics, in attributes,
  or in a list or dict.
- The target draws random numbers from another source than PyTorch, or has hooks.
- A generated tensor is looked up with a ``padding_idx``, and gradients are wanted: vmap gives the
  padding row of all tasks but the first a gradient.

On a GPU a shared run takes as long for ten tasks as for two, since the host is busy launching it.
On an H200 that was as long as two or three runs of one task, with convolutions (28 ms against 10 ms
each, a ResNet) or without (6.9 ms against 3 ms, an MLP). So there three tasks are enough.

A trial on a copy of the target, with the first batch of a kind, finds out what the target does
(`trial`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from sparsehyper._util.devices import copies
from sparsehyper.target.copying import copy_module
from sparsehyper.target.kinds import Kinds
from sparsehyper.target.norm_statistics import has_one_value
from sparsehyper.target.target import Target
from sparsehyper.target.trial import Trial

_MIN_TASKS, _MIN_TASKS_ON_GPU = 4, 3
_MAX_CONVOLVED = 2  # on the CPU: limit for targets with convolutions, in samples per task
_NEVER = -1

# Limits found by trials, by target, kind of batch, and samples per task: the largest number of
# samples per task for which to share a run.
_limits: WeakKeyDictionary[Target, Kinds] = WeakKeyDictionary()
_trial_lock = threading.RLock()

_ONE_SAMPLE = (
    "a batch norm that uses the statistics of its batch, as all do in training and those without "
    "running statistics always, cannot normalise the single sample that a task has in this batch; "
    "give every task at least 2 samples, or leave such tasks out of the batch"
)
_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten._convolution}


@dataclass
class Group:
    """Tasks with equally many samples.

    Attributes:
        target: The target.
        raw: Outputs of the generator ``[tasks, numel]``.
        statistics: Batch-norm statistics ``[tasks, *shape]``.
        count: Number of samples of each task.
        leaves: Arguments of the target, flat; tensors have ``tasks · count`` rows.
        structure: How the arguments nest.
    """

    target: Target
    raw: Tensor
    statistics: list[Tensor]
    count: int
    leaves: list[Any]
    structure: pytree.TreeSpec

    def run(self) -> tuple[list[Any], list[Tensor] | None]:
        """Outputs, one for all tasks or one for each, and the statistics if they changed."""
        if self._limit() >= self.count:
            module = self.target.module
            before = [(m, dict(vars(m)), dict(m._buffers)) for m in module.modules()]
            out, after = self._run_shared(self.raw, module)
            if not [m for m, *contents in before if _restore(m, *contents)]:
                return [out], after
            # The module kept a tensor of the shared run, which is of no use outside of it.
            self._known_limits()[self.count] = _NEVER
        return self._run_each()

    def _run_each(self) -> tuple[list[Any], list[Tensor] | None]:
        tasks = len(self.raw)
        pieces = [
            leaf.split(self.count) if is_batched(leaf) else [leaf] * tasks for leaf in self.leaves
        ]
        outputs, statistics, changed = [], [], False
        raws = self.raw.unbind() if tasks > 1 else [self.raw.squeeze(0)]  # has a free gradient
        for i, raw in enumerate(raws):
            before = copies([values[i] for values in self.statistics])
            args, kwargs = pytree.tree_unflatten([piece[i] for piece in pieces], self.structure)
            try:
                out, after = self.target.run(self.target.unpack(raw), before, args, kwargs)
            except ValueError as error:
                if self.count == 1 and has_one_value(error):
                    raise ValueError(_ONE_SAMPLE) from error
                raise
            outputs.append(out)
            statistics.append(before if after is None else after)
            changed |= after is not None
        if not changed:
            return outputs, None
        join = torch.stack if tasks > 1 else _alone
        return outputs, [join(rows).detach() for rows in zip(*statistics, strict=True)]

    def _run_shared(self, raw: Tensor, module: nn.Module) -> tuple[Any, list[Tensor] | None]:
        target, shape = self.target, (len(raw), self.count)
        # Contiguous copies: vmap's batch norm does not update statistics with gaps between tasks.
        statistics = copies(self.statistics)
        leaves = [leaf.unflatten(0, shape) if is_batched(leaf) else leaf for leaf in self.leaves]
        in_dims = [0 if is_batched(leaf) else None for leaf in leaves]
        structure: pytree.TreeSpec | None = None
        given: list[bool] = []
        changed = False

        def run(tensors: Any, statistics: Any, *leaves: Any) -> tuple[list[Tensor], list[Tensor]]:
            nonlocal structure, changed
            args, kwargs = pytree.tree_unflatten(leaves, self.structure)
            out, after = target.run(tensors, statistics, args, kwargs, module)
            changed = after is not None
            found, structure = pytree.tree_flatten(out)
            given[:] = [leaf is not None for leaf in found]
            return [leaf for leaf in found if leaf is not None], after or list(statistics)

        found, after = vmap(run, (0, 0, *in_dims), randomness="different")(
            target.unpack(raw), statistics, *leaves
        )
        if any(leaf.shape[:2] != shape for leaf in found):
            raise ValueError("the first dimension of an output is not the batch")
        flat = iter([leaf.flatten(0, 1) for leaf in found])
        assert structure is not None
        out = pytree.tree_unflatten([next(flat) if there else None for there in given], structure)
        return out, after if changed else None

    def _limit(self) -> int:
        """The largest number of samples per task for which to share a run."""
        fewest = _MIN_TASKS_ON_GPU if self.raw.is_cuda else _MIN_TASKS
        if torch.compiler.is_compiling() or len(self.raw) < fewest:
            return _NEVER
        if torch.is_autocast_enabled(self.raw.device.type) or _has_hooks(self.target.module):
            return _NEVER
        try:
            known = self._known_limits()
        except TypeError:  # an argument that cannot be compared with the next batch's
            return _NEVER
        if any(limit == _MAX_CONVOLVED for limit in known.values()):
            return _MAX_CONVOLVED
        if self.count not in known:
            if is_transformed():
                return _NEVER
            with _trial_lock:
                known[self.count] = self._try()
        return known[self.count]

    def _known_limits(self) -> dict[int, int]:
        """Limits found so far for batches of this kind, by samples per task.

        Raises:
            TypeError: an argument of the target that cannot be compared with the next batch's.
        """
        fixed = (
            self.structure,
            tuple(
                (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else None
                for leaf in self.leaves
            ),
            (self.raw.device.type, self.target.training, self.target.collects),
            torch.is_grad_enabled(),
        )
        values = [leaf for leaf in self.leaves if not isinstance(leaf, Tensor)]
        return _limits.setdefault(self.target, Kinds()).of(fixed, values)

    def _try(self) -> int:
        """The limit found by trying a shared run, forward and backward, on a copy of the module."""
        frozen = [p for p in self.target.module.parameters() if not p.requires_grad]
        module = copy_module(self.target.module, frozen)
        raw = self.raw[:_MIN_TASKS].detach().requires_grad_(torch.is_grad_enabled())
        trial = Trial(module, [raw.device] if raw.device.type == "cuda" else [])
        few = replace(
            self,  # how many tasks there are does not matter to what the target does
            statistics=[values[:_MIN_TASKS] for values in self.statistics],
            leaves=[
                leaf[: _MIN_TASKS * self.count] if is_batched(leaf) else leaf
                for leaf in self.leaves
            ],
        )

        def run() -> None:
            # Hooks around this call, such as those of checkpointing, do not see what it saves.
            with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
                out, _ = few._run_shared(raw, module)
                wanted = [leaf.sum() for leaf in pytree.tree_leaves(out) if _has_grad(leaf)]
                if wanted:
                    torch.autograd.grad(torch.stack(wanted).sum(), raw)

        if not trial.leaves_no_trace(run):
            return _NEVER
        limited = trial.operations & _CONVOLUTIONS and not self.raw.is_cuda
        return _MAX_CONVOLVED if limited else sys.maxsize


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _alone(tensors: Sequence[Tensor]) -> Tensor:
    """What `torch.stack` returns for one tensor, without a copy."""
    return tensors[0][None]


def is_batched(leaf: Any) -> TypeGuard[Tensor]:
    """Whether an argument's first dimension must be the batch: any tensor but a scalar."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is active, within which there can be no trial."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _has_grad(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _has_hooks(module: nn.Module) -> bool:
    """Whether hooks are called with inputs, outputs or gradients of a layer."""
    return _has_any_global_hook() or any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in module.modules()
    )


def _restore(module: nn.Module, *before: dict[str, Any]) -> bool:
    """Give a module its attributes and buffers back; return whether they had changed."""
    different = False
    for was, now in zip(before, (vars(module), module._buffers), strict=True):
        if now.keys() != was.keys() or not all(map(is_, map(now.get, was), was.values())):
            now.clear()
            now.update(was)
            different = True
    return different
