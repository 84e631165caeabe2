"""The inputs of some samples: whatever a module takes, with the samples along the first dimension.

A tensor is the only argument of a module, a tuple or list are its positional arguments, and a dict
its keyword arguments. They may nest. NumPy arrays become tensors. What is neither a tensor nor an
array is the same for all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsehyper._util.devices import to_device
from sparsehyper._util.text import listed

_PIECE = 1024  # samples at a time

Place = tuple[Any, ...]  # the keys and numbers that lead to a part of nested arguments


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of some samples; made by `Inputs.of`.

    Attributes:
        args, kwargs: arguments of a module.

    >>> batch = Inputs.of({"tokens": torch.zeros(6, 3), "mask": torch.ones(6, 3)})
    >>> len(batch), len(batch[:2]), [len(part) for part in batch.split(4)]
    (6, 2, [4, 2])
    >>> batch.call(lambda tokens, mask: (tokens + mask).sum())
    tensor(18.)
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, value: Any, name: str = "inputs") -> Inputs:
        """The inputs that a caller gave.

        Args:
            value: the inputs.
            name: their name, for the error.

        Raises:
            TypeError: there is no tensor of samples.
            ValueError: tensors are of different numbers of samples.
        """
        if isinstance(value, Inputs):
            return value
        several = isinstance(value, (tuple, list))
        args = () if isinstance(value, Mapping) else tuple(value) if several else (value,)
        kwargs = dict(value) if isinstance(value, Mapping) else {}
        inputs = cls(*pytree.tree_map(as_tensor, (args, kwargs)))
        if not inputs.tensors:
            raise TypeError(
                f"{name} must be a tensor or an array with the samples along its first dimension, "
                f"or a tuple or dict of those, got a {type(value).__name__}"
            )
        if len({len(tensor) for tensor in inputs.tensors}) > 1:
            raise ValueError(
                f"{name} must all have the samples along their first dimension, got shapes "
                f"{', '.join(str(list(tensor.shape)) for tensor in inputs.tensors)}"
            )
        return inputs

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of samples."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if _is_samples(leaf)]

    @property
    def in_fixed_order(self) -> list[Tensor]:
        """The tensors of samples in an order that is not that of the keys of dicts."""
        leaves = _leaves((self.args, self.kwargs))
        found = [(list(map(repr, place)), leaf) for place, leaf in leaves if _is_samples(leaf)]
        return [leaf for _, leaf in sorted(found, key=lambda one: one[0])]

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return self.tensors[0].device

    @property
    def form(self) -> dict[Place, Any]:
        """The shape of a sample of each tensor, a list, and what is the same for all samples.

        The inputs of one form can be joined. The order of the keys of dicts does not matter.
        """
        leaves = _leaves((self.args, self.kwargs))
        return {k: list(v.shape[1:]) if _is_samples(v) else (v,) for k, v in leaves}

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        """Some of the samples, by numbers, a slice or a mask."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Inputs:
        """The same on a device."""
        return self._map(lambda tensor: to_device(tensor, device))

    def split(self, size: int) -> list[Inputs]:
        """Consecutive parts of ``size`` samples, the last of what is left."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def call(self, module: Callable[..., Any], **more: Any) -> Any:
        """What a module returns for the samples, by `logits_of`."""
        return logits_of(module(*self.args, **self.kwargs, **more))

    @property
    def not_finite(self) -> Tensor:
        """The numbers of the samples with NaN or infinity in them, in order."""
        rows = [(~t.isfinite()).nonzero()[:, 0] for t in self.tensors if t.is_floating_point()]
        return torch.cat(rows).unique() if rows else torch.empty(0, dtype=torch.long)

    @property
    def first_equal(self) -> Tensor:
        """The number of the first sample that equals each one, to the bit, ``[n]``."""
        seen: dict[bytes, int] = {}
        found: list[int] = []
        for piece in self.split(_PIECE):  # one piece at a time is copied from a GPU
            rows = [_bytes(tensor) for tensor in piece.tensors]
            for of_sample in zip(*rows, strict=True):
                digest = blake2b(b"".join(of_sample), digest_size=16).digest()
                found.append(seen.setdefault(digest, len(found)))
        return torch.tensor(found, device=self.device)

    def check_finite(self, of: str) -> None:
        """Raise ``ValueError`` if numbers of some samples, which ``of`` names, are not finite."""
        if wrong := self.not_finite.tolist():
            raise ValueError(
                f"{of} must be finite numbers, got others in {len(wrong)} of {len(self)} samples, "
                f"counted from 0: {listed(wrong)}"
            )

    @staticmethod
    def cat(several: Sequence[Inputs]) -> Inputs:
        """The samples of several inputs, in their order.

        Raises:
            ValueError: they have other arguments, or samples of other shapes.
        """
        first = several[0]
        if len(several) == 1:
            return first
        form = first.form
        for other in (one.form for one in several):
            if other != form:
                raise ValueError(_difference(form, other))
        # By their places, as the keys of dicts may come in another order.
        found = [dict(_leaves((one.args, one.kwargs))) for one in several]
        places = [place for place, shape in form.items() if isinstance(shape, list)]
        return first.with_tensors([torch.cat([own[place] for own in found]) for place in places])

    def with_tensors(self, tensors: Sequence[Any]) -> Inputs:
        """The same arguments with other tensors of samples, in the order of `tensors`."""
        others = iter(tensors)
        return self._map(lambda _: next(others))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        def changed(leaf: Any) -> Any:
            return change(leaf) if _is_samples(leaf) else leaf

        return Inputs(*pytree.tree_map(changed, (self.args, self.kwargs)))


def as_tensor(value: Any) -> Any:
    """A NumPy array as a tensor, float64 in PyTorch's default precision; other values unchanged.

    Raises:
        TypeError: an array of something else than numbers.
    """
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biufc":
        raise TypeError(
            f"an array must hold numbers, got dtype {value.dtype}; number classes from 0, as by "
            "`numpy.unique(labels, return_inverse=True)[1]`"
        )
    tensor = torch.from_numpy(np.array(value, order="C"))
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def logits_of(outputs: Any) -> Any:
    """The ``logits`` of outputs that hold some, by name or as an attribute; others unchanged."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    return getattr(outputs, "logits", outputs)


def labelled(of: str, samples: Any) -> Iterator[tuple[Inputs, Tensor]]:
    """The batches of some samples, inputs and labels.

    Args:
        of: name of the samples, for the error.
        samples: a pair of inputs and labels, a dict with ``"labels"``, or batches of either.

    Raises:
        ValueError: they are something else.
    """
    batches = [samples] if isinstance(samples, Mapping) or _pair(samples) else samples
    for batch in batches:
        if not (pair := _pair(batch)):
            found = repr(type(batch).__name__)
            if _is_single(batch):
                found = "single samples; wrap a data set in a DataLoader"
            raise ValueError(
                f"{of} must be a pair of inputs and labels (x, y), a dict with 'labels', or "
                f"batches of them, got {found}"
            )
        yield Inputs.of(pair[0], f"inputs of {of}"), pair[1]


def _pair(value: Any) -> tuple[Any, Tensor] | None:
    """Inputs and labels of a batch; None if it is none."""
    if isinstance(value, Mapping) and "labels" in value:
        value = {k: v for k, v in value.items() if k != "labels"}, value["labels"]
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return None
    x, y = value[0], as_tensor(value[1])
    single = isinstance(x, Tensor) and not x.ndim
    return None if single or not _is_samples(y) else (x, y)


def _leaves(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The parts of nested arguments that hold no others, and their places."""
    parts = pytree.tree_leaves(tree, is_leaf=lambda part: part is not tree)
    if not parts or parts[0] is tree:
        yield place, tree
        return
    keys = tree if isinstance(tree, dict) else range(len(parts))
    for key, part in zip(keys, parts, strict=True):
        yield from _leaves(part, (*place, key))


def _difference(form: dict[Place, Any], other: dict[Place, Any]) -> str:
    """What keeps inputs of two forms apart."""
    a, b = ({k: v for k, v in one.items() if isinstance(v, list)} for one in (form, other))
    if a != b and a.keys() == b.keys():
        return (
            f"inputs must have samples of one shape, got {list(a.values())} and "
            f"{[b[place] for place in a]}; pad sequences to one length"
        )
    return (
        "inputs must have the same arguments in all batches, and those that are no samples must "
        f"be equal, got {_described(form)} and {_described(other)}"
    )


def _described(form: dict[Place, Any]) -> str:
    """The arguments of a form, for an error."""
    return ", ".join(
        ".".join(map(str, place[1:])) + ("" if isinstance(shape, list) else f"={shape[0]!r}")
        for place, shape in form.items()
        if place[1:]
    )


def _bytes(tensor: Tensor) -> list[bytes]:
    """The bytes of each sample."""
    rows = tensor.detach().cpu().resolve_conj().resolve_neg()
    rows = rows[:, None] if rows.ndim == 1 else rows.flatten(1)
    rows = rows.clone(memory_format=torch.contiguous_format)  # a column may keep other strides
    return [row.tobytes() for row in rows.view(torch.uint8).numpy()]


def _is_samples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _is_single(value: Any) -> bool:
    """Whether it is a single sample of a data set, an input and one label."""
    if isinstance(value, Mapping):
        return "labels" in value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    y = value[1]
    return isinstance(y, int) or (isinstance(y, Tensor) and not y.ndim)
