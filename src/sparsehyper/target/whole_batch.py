"""Run the target once for a batch of many tasks, every sample under its own task's tensors.

What tasks have of their own is then small beside what they share: the changes of low rank that
`adapters` puts beside layers, and linear layers such as heads. The shared part runs once, on the
whole batch, as an ordinary model does, so that the output may be anything, the loss of the batch
too. Each sample's own part is a batched product. This is done if

- every generated tensor is a factor of a change beside a layer, or of a Linear layer;
- tasks share at least four times as many parameters as are generated;
- no batch norm mixes samples;
- the tensors of all samples do not take too much memory;
- a trial with a few samples, in the mode that the target is in, gave what each sample gives alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sparsehyper.layout import owner_of
from sparsehyper.target.adapters.low_rank import ASKED, changes
from sparsehyper.target.copying import copy_module
from sparsehyper.target.kinds import Kinds
from sparsehyper.target.sharing import is_batched, is_transformed
from sparsehyper.target.target import Target
from sparsehyper.target.trial import EvenDraws, other_generators

_LEAST_SHARED = 4  # shared parameters for each generated number
_MOST_NUMBERS = 1 << 26  # in the generated tensors of all samples, or as many as the target has
_TRIED = (2, 3)  # numbers of samples; no dimension of another meaning equals both


@dataclass
class _Plan:
    """What is known of a target.

    Attributes:
        linear: Whether each generated tensor is one of a linear layer, not a factor; None if there
            are others.
        most: The largest number of generated numbers for all samples.
        kinds: For kinds of batches, whether they may be run once.
    """

    linear: tuple[bool, ...] | None
    most: int
    kinds: Kinds = field(default_factory=Kinds)


_plans: WeakKeyDictionary[Target, _Plan] = WeakKeyDictionary()


def fits(target: Target, raw: Tensor, inputs: Any, samples: int) -> bool:
    """Whether the target can be run once for these inputs.

    Args:
        target: the target.
        raw: the generator's output ``[tasks, numel]``.
        inputs: positional and keyword arguments of the target.
        samples: number of samples.
    """
    if torch.compiler.is_compiling():
        return False
    plan = _plan_of(target)
    if plan.linear is None or not 0 < samples * target.numel <= plan.most:
        return False
    leaves, structure = pytree.tree_flatten(inputs)
    if any(is_batched(leaf) and len(leaf) != samples for leaf in leaves):
        return False
    modes = tuple(part.training for part in target.module.modules())
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    types = tuple((leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else None for leaf in leaves)
    # Sizes, such as the lengths of sequences, may be others in every batch, as numbers may.
    values = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    values += [size for tensor in tensors for size in tensor.shape[1:]]
    try:
        known = plan.kinds.of((structure, modes, types), values)
    except TypeError:  # an argument that cannot be compared with the next batch's
        return False
    if "once" not in known:
        if is_transformed():
            return False
        known["once"] = _agrees(target, raw, leaves, structure)
    return bool(known["once"])


def run_once(
    target: Target,
    tensors: Sequence[Tensor],
    task: Tensor,
    inputs: Any,
    module: nn.Module | None = None,
) -> Any:
    """The target's output for the whole batch.

    Args:
        target: the target.
        tensors: the tasks' tensors ``[tasks, *shape]``, as ``target.unpack`` returns them.
        task: the row of the tensors for each sample, ``[batch]``.
        inputs: positional and keyword arguments of the target.
        module: a copy of the target's module to run instead; None for its own.
    """
    linear = _plan_of(target).linear
    assert linear is not None
    own = [tensor.index_select(0, task) for tensor in tensors]
    own = [t.as_subclass(_OfSamples) if of else t for t, of in zip(own, linear, strict=True)]
    args, kwargs = inputs
    return target.run(own, [], args, kwargs, module)[0]


def _plan_of(target: Target) -> _Plan:
    if target not in _plans:
        module = target.module
        beside = {change.part for change in changes(module) if change.beside}
        owners = [owner_of(module, spec.name) for spec in target.layout]
        linear = tuple(type(owner) is nn.Linear for owner, _ in owners)
        known = all(
            not spec.aliases and (is_linear or (owner in beside and name in ("A", "B")))
            for spec, (owner, name), is_linear in zip(target.layout, owners, linear, strict=True)
        )
        mixing = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        shared = sum(p.numel() for p in module.parameters())
        separable = known and not mixing and not target.statistics.names
        small = shared >= _LEAST_SHARED * target.numel
        _plans[target] = _Plan(linear if separable and small else None, max(_MOST_NUMBERS, shared))
    return _plans[target]


class _OfSamples(Tensor):
    """The weight or bias of a linear layer for each sample, ``[batch, out, in]``.

    It has the dtype, device and shape of one sample's. Anything else computed from it, such as a
    penalty, would be that of all samples.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        like = func in _LIKE and not isinstance(args[0], _OfSamples)
        if func not in _ASKED and not like:
            raise ValueError(
                "every sample has a weight of its own here, so that there is no one weight; only "
                "the layer's own forward can be called"
            )

        def of_one(value: Any) -> Any:
            return value.as_subclass(Tensor)[0] if isinstance(value, _OfSamples) else value

        return func(*map(of_one, args), **{k: of_one(v) for k, v in (kwargs or {}).items()})


_ASKED = {*ASKED, Tensor.requires_grad.__get__, Tensor.stride}  # type: ignore[attr-defined]
_LIKE = {Tensor.to, Tensor.type_as}  # another tensor is made like it


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer whose weight, bias or both are `_OfSamples`."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    of_samples = isinstance(weight, _OfSamples)
    out = rows @ weight.as_subclass(Tensor).mT if of_samples else F.linear(rows, weight)
    if isinstance(bias, _OfSamples):
        bias = bias.as_subclass(Tensor)[:, None]
    if bias is not None:
        out = out + bias.to(out.dtype)  # autocast gives the product another
    return out.view(*x.shape[:-1], -1)


@torch.no_grad()
def _agrees(target: Target, raw: Tensor, leaves: list[Any], structure: pytree.TreeSpec) -> bool:
    """Whether a few samples give together what each gives alone, but for what is drawn."""
    module = copy_module(target.module, target.module.parameters())

    def run(samples: Tensor) -> list[Tensor]:
        own = [leaf[samples % len(leaf)] if is_batched(leaf) else leaf for leaf in leaves]
        inputs = pytree.tree_unflatten(own, structure)
        with EvenDraws():
            out = run_once(target, tensors, samples, inputs, module)
        return [leaf.to(torch.complex128) for leaf in pytree.tree_leaves(out) if is_batched(leaf)]

    with (
        torch.random.fork_rng([raw.device] if raw.is_cuda else []),
        warnings.catch_warnings(),
        other_generators() as were_used,
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        # A task for each sample, far from the others.
        tensors = target.unpack(10 * torch.randn(max(_TRIED), target.numel).to(raw))
        tolerance = torch.finfo(raw.dtype).eps ** 0.5
        for count in _TRIED:
            samples = torch.arange(count, device=raw.device)
            try:
                alone = [run(sample[None]) for sample in samples]
                pairs = zip(run(samples), map(torch.cat, zip(*alone, strict=True)), strict=True)
                # False for NaN
                close = [(a - b).abs().max() <= tolerance * b.abs().max() for a, b in pairs]
            except Exception:  # whatever the target's own code raises
                return False
            if not all(close):
                return False
    return not were_used()
