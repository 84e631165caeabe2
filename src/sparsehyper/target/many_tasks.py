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
  on the CPU), has a run for each task. So has one that keeps something of a run (buffers other
  than batch-norm statistics, attributes, what is in a list or dict of its), that draws from
  another random source than PyTorch's own, or that has hooks.

Which of these a target is, one trial on the first batch of a kind finds out, on a copy of it.
"""

from __future__ import annotations

import gc
import itertools
import random
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparsehyper.target.copying import copy_module
from sparsehyper.target.target import Target

_FEWEST_TASKS = 4
_MOST_CONVOLVED = 2
_MOST_KINDS = 64  # of batches that are remembered

# The most samples a task with which tasks share a run, by target, kind of batch and samples a task.
_found: WeakKeyDictionary[Target, dict[Any, dict[int, int]]] = WeakKeyDictionary()
_trying = threading.RLock()

_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten._convolution}


def run_tasks(
    target: Target,
    generated: Tensor,
    statistics: Sequence[Tensor],
    counts: list[int],
    order: Tensor,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
) -> tuple[Any, list[Tensor] | None]:
    """The target's output for a batch of many tasks.

    Args:
        target: the target.
        generated: the generator's output ``[tasks, numel]``.
        statistics: batch-norm statistics of the tasks, ``[tasks, *shape]``, as
            `NormStatistics.rows` gives them.
        counts: samples of each task; tasks with the same stand together.
        order: ``[batch]`` indices that put the samples task after task.
        inputs: positional and keyword arguments of the target, every tensor with the batch first.

    Returns:
        The output, and the statistics afterwards; None where they are the same as before.

    Raises:
        ValueError: a tensor in ``inputs`` or in the output whose first dimension is not the batch.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    leaves = [_reordered(leaf, order) for leaf in leaves]
    groups = [(count, len(list(same))) for count, same in itertools.groupby(counts)]
    # The gradient of a part of a tensor is a copy, which one group does without.
    parts = generated.split([n for _, n in groups]) if len(groups) > 1 else [generated]
    outputs, sizes, changed, first, start = [], [], [], 0, 0
    for (count, n), part in zip(groups, parts, strict=True):
        end = start + n * count
        own = [leaf[start:end] if _is_batched(leaf) else leaf for leaf in leaves]
        of_tasks = [values[first : first + n] for values in statistics]
        runs, after = _Group(target, part, of_tasks, count, own, structure).run()
        outputs += runs
        sizes += [n * count // len(runs)] * len(runs)
        changed.append((of_tasks, after))
        first, start = first + n, end
    out = _join(outputs, order.argsort(), sizes)
    if all(after is None for _, after in changed):
        return out, None
    rows = zip(*[before if after is None else after for before, after in changed], strict=True)
    return out, [torch.cat(parts) for parts in rows]


@dataclass
class _Group:
    """Tasks with equally many samples."""

    target: Target
    generated: Tensor  # [tasks, numel]
    statistics: list[Tensor]  # [tasks, …]
    count: int
    leaves: list[Any]  # the target's arguments; tensors [tasks · count, …]
    structure: pytree.TreeSpec

    def run(self) -> tuple[list[Any], list[Tensor] | None]:
        """Outputs, of all tasks as one or of each, and statistics afterwards, if they changed."""
        if self._most_shared() >= self.count:
            module = self.target.module
            before = [(m, dict(vars(m)), dict(m._buffers)) for m in module.modules()]
            out, after = self._run_once(self.generated, module)
            if not [m for m, *contents in before if _restored(m, *contents)]:
                return [out], after
            # It kept something of this run only, which is no good outside of it.
            self._known()[self.count] = -1
        return self._run_each()

    def _run_each(self) -> tuple[list[Any], list[Tensor] | None]:
        tasks = len(self.generated)
        pieces = [
            leaf.split(self.count) if _is_batched(leaf) else [leaf] * tasks for leaf in self.leaves
        ]
        outputs, statistics, changed = [], [], False
        for i, generated in enumerate(self.generated.unbind()):
            before = [values[i].clone() for values in self.statistics]
            args, kwargs = pytree.tree_unflatten([piece[i] for piece in pieces], self.structure)
            tensors = self.target.tensors_at(generated)
            out, after = self.target.run(tensors, before, args, kwargs)
            outputs.append(out)
            statistics.append(before if after is None else after)
            changed |= after is not None
        if not changed:
            return outputs, None
        return outputs, [torch.stack(rows).detach() for rows in zip(*statistics, strict=True)]

    def _run_once(self, generated: Tensor, module: nn.Module) -> tuple[Any, list[Tensor] | None]:
        target, shape = self.target, (len(generated), self.count)
        # Contiguous, for vmap's batch norm leaves statistics with gaps between the tasks as they
        # are.
        statistics = [values.clone() for values in self.statistics]
        leaves = [leaf.unflatten(0, shape) if _is_batched(leaf) else leaf for leaf in self.leaves]
        in_dims = [0 if _is_batched(leaf) else None for leaf in leaves]
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
            target.tensors_at(generated), statistics, *leaves
        )
        if any(leaf.shape[:2] != shape for leaf in found):
            raise ValueError("an output's first dimension is not the batch")
        flat = iter([leaf.flatten(0, 1) for leaf in found])
        assert structure is not None
        out = pytree.tree_unflatten([next(flat) if there else None for there in given], structure)
        return out, after if changed else None

    def _most_shared(self) -> int:
        """The most samples a task with which these tasks should share a run."""
        if torch.compiler.is_compiling() or len(self.generated) < _FEWEST_TASKS:
            return -1
        if torch.is_autocast_enabled(self.generated.device.type) or _has_hooks(self.target.module):
            return -1
        try:
            known = self._known()
        except TypeError:  # an argument that cannot be compared with the next batch's
            return -1
        if any(limit == _MOST_CONVOLVED for limit in known.values()):
            return _MOST_CONVOLVED
        if self.count not in known:
            with _trying:
                known[self.count] = self._try()
        return known[self.count]

    def _known(self) -> dict[int, int]:
        """What has been found out about batches of this kind, by samples a task.

        Raises:
            TypeError: an argument of the target that has no hash.
        """
        kind = (
            self.structure,
            tuple(_kind(leaf) for leaf in self.leaves),
            (self.target.training, self.target.collects),
            torch.is_grad_enabled(),
        )
        kinds = _found.setdefault(self.target, {})
        if kind not in kinds and len(kinds) >= _MOST_KINDS:
            kinds.clear()
        return kinds.setdefault(kind, {})

    def _try(self) -> int:
        """Run a copy of the module once, forward and backward."""
        module = copy_module(self.target.module)
        before = _contents(module)
        operations = _Operations()
        generated = self.generated.detach().requires_grad_(torch.is_grad_enabled())
        devices = [generated.device] if generated.device.type == "cuda" else []
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices),
            _other_sources() as drawn_from,
            _uncollected(),
        ):
            warnings.simplefilter("ignore")
            # What vmap says before it loops over single operations.
            warnings.filterwarnings("error", message=".*performance drop")
            try:
                with operations:
                    out, _ = self._run_once(generated, module)
                    wanted = [leaf.sum() for leaf in pytree.tree_leaves(out) if _has_grad(leaf)]
                    if wanted:
                        torch.autograd.grad(torch.stack(wanted).sum(), generated)
                    del out, wanted
            except Exception:
                _take_back()
                return -1
            kept = _take_back()
        if kept or drawn_from() or _contents(module) != before:
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within, Python's collector waits, so that what is made stays in its youngest generation."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _take_back() -> bool:
    """Whether vmap's tensors are kept somewhere after a run; lists and dicts then lose them."""
    kept = [
        each
        for each in gc.get_objects(generation=0)
        if type(each) is Tensor and torch._C._functorch.is_functorch_wrapped_tensor(each)
    ]
    for tensor in kept:
        for holder in gc.get_referrers(tensor):
            if isinstance(holder, list) and holder is not kept:
                holder[:] = [each for each in holder if each is not tensor]
            elif isinstance(holder, dict):
                for key in [key for key, each in holder.items() if each is tensor]:
                    del holder[key]
    return bool(kept)


@contextmanager
def _other_sources() -> Iterator[Any]:
    """Yields a function that tells, afterwards, whether Python's or NumPy's generator was used.

    Both are then as they were before.
    """
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    used = False
    try:
        yield lambda: used
    finally:
        numpy_state = np.random.get_state()  # noqa: NPY002
        used = random.getstate() != before[0] or not all(
            np.array_equal(now, was) for now, was in zip(numpy_state, before[1], strict=True)
        )
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _has_hooks(module: nn.Module) -> bool:
    """Whether something is called with what layers are given or return, or with its gradients."""
    return _has_any_global_hook() or any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in module.modules()
    )


def _contents(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """What a module and all that it holds consist of; equal if nothing has changed.

    Tensors count as changed when they are written to, other things when they are others or, as far
    as that can be told, compare unequal.
    """
    seen = {} if seen is None else seen
    if id(value) in seen:
        return id(value)
    seen[id(value)] = value
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version, value.grad is None
    if isinstance(value, np.ndarray):
        return id(value), value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, nn.RNNBase):  # whose weight lists are made anew for every run
        held = {k: v for k, v in vars(value).items() if not k.startswith("_flat_weight")}
        return [(name, _contents(each, seen)) for name, each in held.items()]
    if isinstance(value, Mapping):
        return [(id(k), _contents(v, seen)) for k, v in list(value.items())]
    if isinstance(value, list | tuple | deque):
        return [_contents(each, seen) for each in value]
    if isinstance(value, set | frozenset):
        return frozenset(map(id, value))
    if isinstance(value, int | float | complex | str | bytes | type(None) | type):
        return value
    return id(value), [
        (name, _contents(each, seen)) for name, each in getattr(value, "__dict__", {}).items()
    ]


def _restored(module: nn.Module, *before: dict[str, Any]) -> bool:
    """Whether a module has other attributes or buffers than before, which it then has again."""
    different = False
    for was, now in zip(before, (vars(module), module._buffers), strict=True):
        if now.keys() != was.keys() or any(now[name] is not was[name] for name in now):
            now.clear()
            now.update(was)
            different = True
    return different


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
                    f"the batch as its first dimension, got {found} for {size} samples"
                )
        return torch.cat(leaves)[order]

    return pytree.tree_map(join, *outputs)
