"""The inputs of some samples: whatever a module takes, with the samples along the first dimension.

A tensor is the only argument of a module, a tuple or list are its positional arguments, and a dict
its keyword arguments. They may nest. NumPy arrays become tensors. What is neither a tensor nor an
array is the same for all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsehyper._util.devices import to_device


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
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return self.tensors[0].device

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

    @staticmethod
    def cat(several: Sequence[Inputs]) -> Inputs:
        """The samples of several inputs, in their order.

        Raises:
            ValueError: they have other arguments, or samples of other shapes.
        """
        first = several[0]
        if len(several) == 1:
            return first
        shapes = [[list(tensor.shape[1:]) for tensor in one.tensors] for one in several]
        if other := [shape for shape in shapes if shape != shapes[0]]:
            raise ValueError(
                f"inputs must have samples of one shape, got {shapes[0]} and {other[0]}; pad "
                "sequences to one length"
            )
        columns = zip(*(one.tensors for one in several), strict=True)
        return first.with_tensors([torch.cat(column) for column in columns])

    def with_tensors(self, tensors: Sequence[Any]) -> Inputs:
        """The same arguments with other tensors of samples, in the order of `tensors`."""
        others = iter(tensors)
        return self._map(lambda _: next(others))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        def changed(leaf: Any) -> Any:
            return change(leaf) if _is_samples(leaf) else leaf

        return Inputs(*pytree.tree_map(changed, (self.args, self.kwargs)))


def as_tensor(value: Any) -> Any:
    """A NumPy array as a tensor, float64 in PyTorch's default precision; other values unchanged."""
    if not isinstance(value, np.ndarray):
        return value
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
