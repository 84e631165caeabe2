"""From a flat vector of generated numbers to the tensors of a target, and back.

    tensor_i = base_i + std_i · raw[offset_i : offset_i + size_i]

Rows that stand for padding are zero instead, and nothing depends on them.

This is one node of the autograd graph, whatever the number of tensors. The forward pass reads the
vector once and writes every tensor once. The backward pass writes the scaled gradients into one
flat buffer. Each of the two linear maps is the other's derivative, so derivatives of any order
cost the same.

On the CPU C kernels make both passes; on a GPU `blocks` does.
"""

from __future__ import annotations

import dataclasses
import inspect
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util import kernels
from sparsehyper._util.memory import empty_as
from sparsehyper.target.blocks import Blocks, strides_of

# Below this many bytes, one allocation per tensor is cheaper than one that is divided.
_MIN_DIVIDED_BYTES = 1 << 17


@dataclass(frozen=True)
class UnpackPlan:
    """Where the tensors lie in the vector, and how they are scaled and shifted.

    Attributes:
        sizes: Number of elements of each tensor.
        shapes: Shape of each tensor.
        stds: Factor of each tensor.
        means: Number added to each tensor where there is no base.
        zeros: Matrices and their rows that are zero, whatever the vector and the base.
    """

    sizes: Sequence[int]
    shapes: Sequence[torch.Size]
    stds: Sequence[float]
    means: Sequence[float]
    zeros: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        for size, shape, _, _ in zip(self.sizes, self.shapes, self.stds, self.means, strict=True):
            assert size == shape.numel()

    @cached_property
    def linear(self) -> UnpackPlan:
        """The plan without means."""
        return dataclasses.replace(self, means=[0.0] * len(self.sizes))

    @cached_property
    def unscaled(self) -> UnpackPlan:
        """The plan without means and standard deviations."""
        return dataclasses.replace(self.linear, stds=[1.0] * len(self.sizes))

    @cached_property
    def packed(self) -> tuple[bytes, bytes, bytes]:
        """Sizes, standard deviations and means in the kernels' format."""
        codes = zip("qff", (self.sizes, self.stds, self.means), strict=True)
        return tuple([array(code, values).tobytes() for code, values in codes])  # type: ignore

    @cached_property
    def gaps(self) -> list[tuple[int, int]]:
        """Where ``zeros`` lie in the vector: their starts and lengths."""
        found = []
        for index, row in self.zeros:
            length = self.shapes[index][1]
            found.append((sum(self.sizes[:index]) + row * length, length))
        return found

    def blocks(self, like: Tensor) -> Blocks:
        """The plan for the device and dtype of a tensor, made at the first call and kept."""
        key = (like.device, like.dtype)
        if key not in self._blocks:
            self._blocks[key] = Blocks(self.sizes, self.shapes, self.stds, self.means, like)
        return self._blocks[key]

    @cached_property
    def _blocks(self) -> dict[tuple[torch.device, torch.dtype], Blocks]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """What the plan was made of; copies and files need none of what was made since."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def unpack(raw: Tensor, plan: UnpackPlan, base: Tensor | None = None) -> tuple[Tensor, ...]:
    """Tensors ``[…, *shape]`` from a vector ``[…, numel]``.

    They are contiguous; on a GPU, those of each vector are.

    Args:
        raw: ``[…, numel]``, with any leading sizes.
        plan: the plan of the tensors.
        base: ``[…, numel]``, added to the scaled vector, to whose shape it broadcasts; None adds
            the plan's means.

    >>> plan = UnpackPlan([4, 1], [torch.Size([2, 2]), torch.Size([])], [10.0, 1.0], [0.0, 7.0])
    >>> [tensor.tolist() for tensor in unpack(torch.arange(5.0), plan)]
    [[[0.0, 10.0], [20.0, 30.0]], 11.0]
    """
    if torch.compiler.is_compiling():  # the compiler fuses plain operations
        return _unpack(raw, base, plan)
    return _Unpack.apply(raw, base, plan)


def _unpack(raw: Tensor, base: Tensor | None, plan: UnpackPlan) -> tuple[Tensor, ...]:
    out = torch._foreach_mul(_divided(raw, plan), plan.stds)
    if base is not None:
        torch._foreach_add_(out, _divided(base, plan))
    else:
        for piece, mean in zip(out, plan.means, strict=True):
            if mean:
                piece += mean
    return _padded(out, plan)


def _padded(tensors: Sequence[Tensor], plan: UnpackPlan) -> tuple[Tensor, ...]:
    for index, row in plan.zeros:
        tensors[index][..., row, :] = 0
    return tuple(tensors)


def _without_gaps(flat: Tensor, plan: UnpackPlan) -> Tensor:
    for start, length in plan.gaps:
        flat.narrow(-1, start, length).zero_()
    return flat


def _divided(flat: Tensor, plan: UnpackPlan) -> list[Tensor]:
    """Views ``[…, *shape]`` of a vector ``[…, numel]``."""
    pieces = zip(flat.split(plan.sizes, -1), plan.shapes, strict=True)
    return [piece.view(flat.shape[:-1] + shape) for piece, shape in pieces]


class _Unpack(torch.autograd.Function):
    """One vector ``[…, numel]`` to tensors ``[…, *shape]``."""

    @staticmethod
    def forward(raw: Tensor, base: Tensor | None, plan: UnpackPlan) -> tuple[Tensor, ...]:
        fitting = raw.shape[-1:] == (sum(plan.sizes),) and (
            base is None or base.shape == raw.shape[-1:]
        )
        if fitting and _on_gpu(raw) and kernels.has_address(raw):
            return _padded(plan.blocks(raw).divide(raw, base), plan)
        if not (fitting and all(t is None or kernels.at_address(t) for t in (raw, base))):
            return _unpack(raw, base, plan)
        shapes = [raw.shape[:-1] + shape for shape in plan.shapes]
        if raw.nbytes < _MIN_DIVIDED_BYTES:
            out = [raw.new_empty(shape) for shape in shapes]
        else:
            out = _side_by_side(empty_as(raw, raw.shape), shapes)
        kernels.scale_runs(raw, out, *plan.packed, base)
        return _padded(out, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        raw, base, ctx.plan = inputs
        ctx.lead = raw.shape[:-1]
        ctx.base_shape = None if base is None else base.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_raw, needs_base, _ = ctx.needs_input_grad
        plan = ctx.plan
        # The gradient of an embedding may be sparse.
        grads = tuple([g if g.layout is torch.strided else g.to_dense() for g in grads])
        if _on_gpu(grads[0]):
            blocks = plan.blocks(grads[0])
            flat = _without_gaps(blocks.join(grads, ctx.lead), plan)
            of_raw = blocks.scaled(flat) if needs_raw else None
            return of_raw, flat.sum_to_size(ctx.base_shape) if needs_base else None, None
        of_raw = _Pack.apply(plan.linear, ctx.lead, *grads) if needs_raw else None
        of_base = None
        if needs_base:
            of_base = _Pack.apply(plan.unscaled, ctx.lead, *grads)
            of_base = of_base.sum_to_size(ctx.base_shape)
        return of_raw, of_base, None

    @staticmethod
    def jvp(ctx: Any, raw: Tensor | None, base: Tensor | None, _: None) -> tuple[Tensor, ...]:
        if raw is None:
            assert base is not None
            return unpack(base.expand(*ctx.lead, base.shape[-1]), ctx.plan.unscaled)
        return unpack(raw, ctx.plan.linear, base)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        raw: Tensor,
        base: Tensor | None,
        plan: UnpackPlan,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        raw = _lead_with_batch(raw, in_dims[0], info.batch_size)
        if base is not None and in_dims[1] is not None:
            base = base.movedim(in_dims[1], 0)
            missing = raw.ndim - base.ndim
            base = base.view(base.shape[:1] + (1,) * missing + base.shape[1:])
        out = unpack(raw, plan, base)
        return out, (0,) * len(out)


class _Pack(torch.autograd.Function):
    """The transpose: tensors ``[*lead, *shape]`` to one scaled vector ``[*lead, numel]``."""

    @staticmethod
    def forward(plan: UnpackPlan, lead: torch.Size, *tensors: Tensor) -> Tensor:
        flat = empty_as(tensors[0], [*lead, sum(plan.sizes)])
        ready = [kernels.at_address(tensor) and tensor.is_contiguous() for tensor in tensors]
        if any(ready):
            runs = [tensor if r else None for tensor, r in zip(tensors, ready, strict=True)]
            kernels.gather_runs(flat, runs, *plan.packed)
        if not all(ready):
            places = flat.split(plan.sizes, -1)
            for place, tensor, std, done in zip(places, tensors, plan.stds, ready, strict=True):
                if not done:  # one pass, whatever the strides; a gradient is often a transpose
                    torch.mul(tensor, std, out=place.view(tensor.shape))
        return _without_gaps(flat, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.plan, ctx.lead, *_ = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *unpack(grad, ctx.plan)

    @staticmethod
    def jvp(ctx: Any, _plan: None, _lead: None, *tensors: Tensor) -> Tensor:
        return _Pack.apply(ctx.plan, ctx.lead, *tensors)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: UnpackPlan, lead: torch.Size, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        tensors = tuple(
            _lead_with_batch(tensor, dim, info.batch_size)
            for tensor, dim in zip(tensors, in_dims[2:], strict=True)
        )
        return _Pack.apply(plan, torch.Size([info.batch_size, *lead]), *tensors), 0


def _lead_with_batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _side_by_side(memory: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors that share one block of memory, each with a storage of its own.

    They are not views of one another, so a target may write to them, and saving one saves only its
    own part.
    """
    start, out = 0, []
    # Skip the subclass's `__getitem__`: it checks the device, at twice the cost of the rest.
    part_of = super(torch.UntypedStorage, memory.untyped_storage()).__getitem__
    for shape in shapes:
        stop = start + memory.element_size() * shape.numel()
        part = part_of(slice(start, stop))
        out.append(memory.new_empty(0).set_(part, 0, shape, strides_of(shape)))
        start = stop
    return out


for _function in (_Unpack, _Pack):
    # PyTorch inspects the signature at every call; storing it here saves computing it.
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]
