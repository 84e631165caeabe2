"""A batch of many tasks: every sample under its own task's parameters, in few runs of the target.

Where tasks change little of the target, such as by adapters, one run serves them all
(`whole_batch`). Otherwise:

Tasks with equally many samples can share one run: ``torch.func.vmap`` maps the target over their
parameters, batch-norm statistics and samples. All other tasks have a run each. The results are the
same up to rounding and the random numbers of dropout. Fixed rules decide between the two
(`sharing`), and never a measured time, so that equal seeds give equal numbers.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsehyper._util.devices import to_device
from sparsehyper._util.inputs import as_tensor
from sparsehyper.target.sharing import Group, is_batched
from sparsehyper.target.target import Target
from sparsehyper.target.whole_batch import fits, run_once

_NO_LOSS = (
    "the loss of a batch is not the mean of its tasks' losses if it counts other items than "
    "samples: leave out the labels and compute it from the outputs (Hugging Face's Trainer does "
    "with `compute_loss_func`), or let the target return one loss for each sample"
)
_NO_OTHER = (
    "have the target leave out other outputs (a cache of transformers: `use_cache=False`), or put "
    "the batch first (the state of a recurrent layer: `state.transpose(0, 1)`)"
)

_PLAIN = (Number, str, bytes, type(None))
_LONGEST_SIZE = 3  # entries of a tuple that is the size of something


class Grouping(NamedTuple):
    """Which samples of a batch belong to which task.

    Attributes:
        tasks: The distinct tasks, integers ``[tasks]``.
        counts: Number of samples of each task; equal counts are neighbours.
        order: The indices ``[batch]`` that sort the samples by task; None if they are sorted.
    """

    tasks: Tensor
    counts: tuple[int, ...]
    order: Tensor | None

    def of_samples(self) -> Tensor:
        """The task of each sample, ``[batch]``."""
        # Nothing comes from the CPU, so that a CUDA graph can capture this.
        each = zip(self.tasks.unbind(), self.counts, strict=True)
        sorted_tasks = torch.cat([task.expand(count) for task, count in each])
        if self.order is None:
            return sorted_tasks
        return torch.empty_like(sorted_tasks).index_copy_(0, self.order, sorted_tasks)

    def to(self, device: torch.device) -> Grouping:
        """The same on a device, by one copy from the CPU, for which nothing waits."""
        if device.type == self.tasks.device.type:
            return self
        if self.order is None:
            return self._replace(tasks=to_device(self.tasks, device))
        tasks, order = to_device(torch.cat([self.tasks, self.order]), device).split(
            [len(self.tasks), len(self.order)]
        )
        return self._replace(tasks=tasks, order=order)


def group_samples(task: Tensor) -> Grouping:
    """Sort the samples of a batch by task; tasks with equally many samples become neighbours.

    Args:
        task: integers ``[batch]``, on the CPU: how many runs there are depends on them.

    Returns:
        The grouping. An empty batch has one task, 0, with no samples.
    """
    distinct, inverse, counts = torch.unique(task.long(), return_inverse=True, return_counts=True)
    if len(task) == 0:
        distinct = counts = torch.zeros(1, dtype=torch.int64)
    counts, position = counts.sort(stable=True)
    order = position.argsort()[inverse].argsort(stable=True)
    return Grouping(distinct[position], tuple(counts.tolist()), order)


def run_tasks(
    target: Target,
    raw: Tensor,
    statistics: Sequence[Tensor],
    counts: Sequence[int],
    order: Tensor | None,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
) -> tuple[Any, list[Tensor] | None]:
    """The target's output for a batch of many tasks.

    Args:
        target: the target.
        raw: the generator's output ``[tasks, numel]``.
        statistics: batch-norm statistics of the tasks ``[tasks, *shape]``, as
            `NormStatistics.rows` returns them.
        counts: number of samples of each task; equal counts must be neighbours.
        order: indices ``[batch]`` that sort the samples by task; None if they are sorted.
        inputs: positional and keyword arguments of the target; the first dimension of every tensor
            and array is the batch. The target gets arrays as tensors.

    Returns:
        The output, and the statistics afterwards; None if they did not change.

    Raises:
        ValueError: a tensor in ``inputs`` whose first dimension is not the batch, or, with more
            than one task, such an output or a list with an entry for each sample; one sample of a
            task for a batch norm in training.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        leaves = [_of_array(leaf, raw.device) for leaf in leaves]
        inputs = pytree.tree_unflatten(leaves, structure)
    if len(counts) > 1 and fits(target, raw, inputs, sum(counts)):
        numbers = torch.arange(len(counts), device=raw.device)
        task = Grouping(numbers, tuple(counts), order).of_samples()
        return run_once(target, target.unpack(raw), task, inputs), None
    if len(counts) > 1 and type(target.module) in (nn.RNN, nn.LSTM, nn.GRU):
        raise ValueError(
            f"an nn.{type(target.module).__name__} as the target returns its state with the layers "
            "first, so it takes no batch of several tasks; wrap it in a module that returns the "
            "output alone, or give one task at a time"
        )
    if len(counts) > 1:
        _check_lists(target.module, inputs, sum(counts))
    leaves = [_reordered(leaf, sum(counts), order) for leaf in leaves]
    groups = [(count, len(list(same))) for count, same in itertools.groupby(counts)]
    # A single group needs no split, whose gradient would be a copy.
    parts = raw.split([n for _, n in groups]) if len(groups) > 1 else [raw]
    outputs, sizes, changed, first, start = [], [], [], 0, 0
    for (count, n), part in zip(groups, parts, strict=True):
        end = start + n * count
        own = [leaf[start:end] if is_batched(leaf) else leaf for leaf in leaves]
        before = [values[first : first + n] for values in statistics]
        runs, after = Group(target, part, before, count, own, structure).run()
        outputs += runs
        sizes += [n * count // len(runs)] * len(runs)
        changed.append((before, after))
        first, start = first + n, end
    if len(counts) == 1:  # an ordinary run, whose output may be anything
        out = outputs[0]
    else:
        out = _join_outputs(
            target.module, outputs, None if order is None else order.argsort(), sizes
        )
    if sum(counts) == 0 or all(after is None for _, after in changed):
        return out, None  # a batch without samples is none of any task
    rows = zip(*[before if after is None else after for before, after in changed], strict=True)
    return out, [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in rows]


def _of_array(leaf: Any, device: torch.device) -> Any:
    """An array of numbers as a tensor; one without dimensions is no samples and stays as it is."""
    if not isinstance(leaf, np.ndarray) or leaf.ndim == 0 or leaf.dtype.kind not in "biufc":
        return leaf
    return to_device(as_tensor(leaf), device)


def _check_lists(
    module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], count: int
) -> None:
    """Raise ``ValueError`` for a list with an entry for each sample, of which no task gets its own.

    One with equal entries may be meant for all samples, and a short tuple is a size. What the
    target only takes among others, by ``**kwargs``, it may well ignore.
    """
    args, kwargs = inputs
    for place, given in (*enumerate(args), *kwargs.items()):
        for value in _lists(given):
            if len(value) == count and any(entry != value[0] for entry in value):
                names = [*inspect.signature(module.forward).parameters]  # slow, so only here
                if isinstance(place, str) and place not in names:
                    continue
                name = dict(enumerate(names)).get(place, place)  # type: ignore[call-overload]
                raise ValueError(
                    f"`{name}` has a {type(value).__name__} of {count} entries, as many as there "
                    "are samples, and every task would get all of them; give a tensor or an array "
                    "of numbers, of which a task gets its own rows, or make it an attribute of the "
                    "target if it is for all samples"
                )


def _lists(value: Any) -> Iterator[Sequence[Any]]:
    """The lists in an argument, at any depth, that hold no tensors or objects."""
    if isinstance(value, np.ndarray):
        if value.ndim:
            yield value.tolist()
        return
    if isinstance(value, Mapping):
        value = [*value.values()]
    elif type(value) not in (list, tuple):
        return
    elif (type(value) is list or len(value) > _LONGEST_SIZE) and all(
        isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves(value)
    ):
        yield value
    for each in value:
        yield from _lists(each)


def _reordered(leaf: Any, count: int, order: Tensor | None) -> Any:
    if not is_batched(leaf):
        return leaf
    if len(leaf) != count:
        raise ValueError(
            f"`task` names {count} samples, so every tensor or array given to the target must "
            f"have {count} as its first size, got shape {list(leaf.shape)}"
        )
    return leaf if order is None else leaf[order]


def _join_outputs(
    module: nn.Module, outputs: list[Any], order: Tensor | None, sizes: list[int]
) -> Any:
    """Outputs of consecutive runs as one batch, in the order of the samples."""
    several = len(pytree.tree_leaves(outputs[0])) > 1  # a lone output is no state

    def join(*leaves: Any) -> Any:
        if all(leaf is None for leaf in leaves):
            return None
        for leaf, size in zip(leaves, sizes, strict=True):
            state = several and isinstance(leaf, Tensor) and _is_state(module, leaf)
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (size,) or state:
                found = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                raise ValueError(
                    "with samples of several tasks every output of the target must be a tensor "
                    f"with the batch as its first dimension, got {found} for {size} samples; "
                    + (_NO_LOSS if isinstance(leaf, Tensor) and leaf.ndim == 0 else _NO_OTHER)
                )
        joined = torch.cat(leaves) if len(leaves) > 1 else leaves[0]
        return joined if order is None else joined[order]

    return pytree.tree_map(join, *outputs)


def _is_state(module: nn.Module, out: Tensor) -> bool:
    """Whether an output is a recurrent layer's state for as many samples as there are layers.

    A state ``[layers, samples, size]`` that is transposed, or an output ``[samples, steps, size]``
    of such a layer, is not contiguous. With a single sample nothing tells them apart.
    """
    if out.ndim != 3 or not 1 < out.shape[0] == out.shape[1] or not out.is_contiguous():
        return False
    return any(
        part.num_layers * (1 + part.bidirectional) == out.shape[0]
        and out.shape[2] in (part.hidden_size, part.proj_size)
        for part in module.modules()
        if isinstance(part, nn.RNNBase)
    )
