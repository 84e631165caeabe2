"""A batch of many tasks: every sample under its own task's parameters, in few runs of the target.

Tasks with equally many samples can share one run, by ``torch.func.vmap`` over their parameters,
batch-norm statistics and samples; otherwise each task has a run of its own. The results are the
same but for rounding and for what dropout draws, so which it is goes by a rule and never by a
clock: equal seeds give equal numbers.

- Up to three tasks gain nothing.
- With convolutions, whose vmapped form is one convolution in groups, the run is shared at up to
  two samples a task: with more it is faster or slower by the shapes.
- Under autocast, which reaches only some operations within vmap, and in compiled code every task
  has its own run.
- A target that vmap cannot run, or only operation by operation in a loop of its own (attention
  on the CPU), and one that changes buffers other than batch-norm statistics or attributes of its
  modules, has a run for each task.

Which of these a target is, one trial on the first batch of a kind finds out.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparsehyper.target import Target

_FEWEST_TASKS = 4
_MOST_CONVOLVED = 2
_MOST_KINDS = 64  # of batches that are remembered

_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten._convolution}


def run_tasks(
    target: Target,
    generated: Tensor,
    tasks: list[int],
    counts: list[int],
    order: Tensor,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
) -> Any:
    """The target's output for a batch of many tasks.

    Args:
        target: the target.
        generated: the generator's output ``[tasks, numel]``.
        tasks: the rows of their statistics.
        counts: samples of each task; tasks with the same stand together.
        order: ``[batch]`` indices that put the samples task after task.
        inputs: positional and keyword arguments of the target, every tensor with the batch first.

    Raises:
        ValueError: a tensor in ``inputs`` or in the output that has not the batch first.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    leaves = [_reordered(leaf, order) for leaf in leaves]
    groups = [(count, len(list(same))) for count, same in itertools.groupby(counts)]
    # The gradient of a part of a tensor is a copy, which one group does without.
    parts = generated.split([n for _, n in groups]) if len(groups) > 1 else [generated]
    outputs, sizes, first, start = [], [], 0, 0
    for (count, n), part in zip(groups, parts, strict=True):
        end = start + n * count
        own = [leaf[start:end] if _is_batched(leaf) else leaf for leaf in leaves]
        group = _Group(target, part, tasks[first : first + n], count, own, structure)
        runs = group.run()
        outputs += runs
        sizes += [n * count // len(runs)] * len(runs)
        first, start = first + n, end
    return _join(outputs, order.argsort(), sizes)


@dataclass
class _Group:
    """Tasks with equally many samples."""

    target: Target
    generated: Tensor  # [tasks, numel]
    tasks: list[int]
    count: int
    leaves: list[Any]  # the target's arguments; tensors [tasks · count, …]
    structure: pytree.TreeSpec

    def run(self) -> list[Any]:
        """Outputs, of all tasks as one or of each."""
        if self._most_shared() >= self.count:
            return [self._run_once(self.generated)]
        return self._run_each()

    def _run_each(self) -> list[Any]:
        pieces = [
            leaf.split(self.count) if _is_batched(leaf) else [leaf] * len(self.tasks)
            for leaf in self.leaves
        ]
        return [
            self.target(
                self.target.tensors_at(generated),
                task,
                *pytree.tree_unflatten([piece[i] for piece in pieces], self.structure),
            )
            for i, (generated, task) in enumerate(
                zip(self.generated.unbind(), self.tasks, strict=True)
            )
        ]

    def _run_once(self, generated: Tensor, *, keep_statistics: bool = True) -> Any:
        target, shape = self.target, (len(self.tasks), self.count)
        rows = torch.tensor(self.tasks, device=target.statistics.device)
        kept = target.split_statistics(target.statistics, target.counts)
        # Gathered, for vmap's batch norm leaves statistics with gaps between the tasks as they are.
        statistics = [values[rows] for values in kept]
        leaves = [leaf.unflatten(0, shape) if _is_batched(leaf) else leaf for leaf in self.leaves]
        in_dims = [0 if _is_batched(leaf) else None for leaf in leaves]
        structure: pytree.TreeSpec | None = None
        given: list[bool] = []

        def run(tensors: Any, statistics: Any, *leaves: Any) -> list[Tensor]:
            nonlocal structure
            args, kwargs = pytree.tree_unflatten(leaves, self.structure)
            out = target.run(tensors, statistics, args, kwargs)
            found, structure = pytree.tree_flatten(out)
            given[:] = [leaf is not None for leaf in found]
            return [leaf for leaf in found if leaf is not None]

        found = vmap(run, (0, 0, *in_dims), randomness="different")(
            target.tensors_at(generated), statistics, *leaves
        )
        if any(leaf.shape[:2] != shape for leaf in found):
            raise ValueError("an output has not the batch first")
        # Batch norm counts its batches openly, but changes its statistics behind autograd's back.
        changed = target.training or any(v.is_inference() or v._version for v in statistics)
        if keep_statistics and changed:
            for values, value in zip(kept, statistics, strict=True):
                values[rows] = value
        flat = iter([leaf.flatten(0, 1) for leaf in found])
        assert structure is not None
        return pytree.tree_unflatten([next(flat) if there else None for there in given], structure)

    def _most_shared(self) -> int:
        """The most samples a task with which these tasks should share a run."""
        autocast = torch.is_autocast_enabled(self.generated.device.type)
        if len(self.tasks) < _FEWEST_TASKS or autocast or torch.compiler.is_compiling():
            return -1
        try:
            kind = (
                self.structure,
                tuple(_kind(leaf) for leaf in self.leaves),
                self.target.training,
                torch.is_grad_enabled(),
            )
            known = self.target.shared_runs.get(kind, {})
        except TypeError:  # an argument that cannot be compared with the next batch's
            return -1
        if any(limit == _MOST_CONVOLVED for limit in known.values()):
            return _MOST_CONVOLVED
        if self.count not in known:
            if len(self.target.shared_runs) >= _MOST_KINDS:
                self.target.shared_runs.clear()
            known = self.target.shared_runs.setdefault(kind, {})
            known[self.count] = self._try()
        return known[self.count]

    def _try(self) -> int:
        """Run once, forward and backward, and undo what that changes."""
        kept = [
            (m, dict(vars(m)), dict(m._buffers))
            for m in self.target.module.modules()
            if not _is_recurrent(m)
        ]
        buffers = [(buffer, buffer.clone()) for buffer in self.target.module.buffers()]
        operations = _Operations()
        generated = self.generated.detach().requires_grad_(torch.is_grad_enabled())
        devices = [generated.device] if generated.device.type == "cuda" else []
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")
            # What vmap says before it loops over single operations.
            warnings.filterwarnings("error", message=".*performance drop")
            try:
                with operations:
                    out = self._run_once(generated, keep_statistics=False)
                    wanted = [leaf.sum() for leaf in pytree.tree_leaves(out) if _has_grad(leaf)]
                    if wanted:
                        torch.autograd.grad(torch.stack(wanted).sum(), generated)
            except Exception:
                return -1
            finally:
                dense = [(b, v) for b, v in buffers if b.layout is torch.strided]
                changed = [(b, value) for b, value in dense if not torch.equal(b, value)]
                for buffer, value in changed:
                    buffer.copy_(value)
                differing = [module for module, *before in kept if _differ(module, *before)]
        if changed or differing:
            return -1
        return _MOST_CONVOLVED if operations.seen & _CONVOLUTIONS else sys.maxsize


class _Operations(TorchDispatchMode):
    """Notes which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket)
        return func(*args, **(kwargs or {}))


def _differ(module: nn.Module, *before: dict[str, Any]) -> bool:
    """Whether a module has other attributes or buffers than before, which it then has again."""
    different = False
    for was, now in zip(before, (vars(module), module._buffers), strict=True):
        if now.keys() != was.keys() or any(now[name] is not was[name] for name in now):
            now.clear()
            now.update(was)
            different = True
    return different


def _is_recurrent(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase)  # whose weight lists the target looks after


def _is_batched(leaf: Any) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _has_grad(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.shape[1:]
    hash(leaf)
    return type(leaf), leaf


def _reordered(leaf: Any, order: Tensor) -> Any:
    if not _is_batched(leaf):
        return leaf
    if len(leaf) != len(order):
        raise ValueError(
            f"`task` names {len(order)} samples, so every tensor given to the target must "
            f"have {len(order)} as its first size, got a tensor of shape {list(leaf.shape)}"
        )
    return leaf[order]


def _join(outputs: list[Any], order: Tensor, sizes: list[int]) -> Any:
    """Outputs of consecutive runs as one batch in the order of the samples."""

    def join(*leaves: Any) -> Any:
        if all(leaf is None for leaf in leaves):
            return None
        for leaf, size in zip(leaves, sizes, strict=True):
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (size,):
                found = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                raise ValueError(
                    "with one `task` per sample every output of the target must be a tensor with "
                    f"the batch first, got {found} for {size} samples"
                )
        return torch.cat(leaves)[order]

    return pytree.tree_map(join, *outputs)
