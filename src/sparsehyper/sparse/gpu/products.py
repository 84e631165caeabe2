"""Chains of sparse layers on a GPU, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from operator import is_
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparsehyper._util import kernels
from sparsehyper.sparse.gpu.launching import AVAILABLE, Pointer, pointer, pointers_into
from sparsehyper.sparse.gpu.steps import Part, WeightGradients, make_gradients, make_steps

DEVICE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16)
_MOST_PLANS = 16  # of the chains that end in one layer: one for each number of rows


class Layer:
    """A wiring in the memory of a GPU.

    Args:
        n_in: number of inputs.
        sources: int32 ``[fan_in, n_out]``; of a circulant layer the number of inputs, the fan-in
            and the shifts.
        shifts: of a circulant layer, one copy after another.
        by_input: of an indexed layer, the connections of each input (`portable.transposed`).
    """

    def __init__(
        self,
        n_in: int,
        sources: Tensor,
        *,
        shifts: Sequence[int] | None = None,
        by_input: tuple[Tensor, ...] = (),
    ) -> None:
        self.circulant = shifts is not None
        self.shifts = () if shifts is None else tuple(shifts)
        self.n_in = n_in
        self.sources = sources
        self.by_input = by_input
        self.plans: dict[Any, _Plan] = {}  # of the chains that end here
        _known[id(sources)] = self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plans": {}}  # plans hold addresses, which a copy does not share


_known: WeakValueDictionary[int, Layer] = WeakValueDictionary()


def known_layer(sources: Tensor) -> Layer | None:
    """The layer that was made with this very tensor."""
    layer = _known.get(id(sources))
    return layer if layer is not None and layer.sources is sources else None


def serves(device: torch.device) -> bool:
    """Whether the kernels exist and run on a device."""
    return device.type == DEVICE and AVAILABLE


def suits(x: Tensor) -> bool:
    """Whether the kernels exist and run on the device and in the dtype of a tensor."""
    return x.dtype in _DTYPES and serves(x.device)


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels may read these tensors: on a GPU, of one dtype of theirs, with memory."""
    device, dtype = tensors[0].device, tensors[0].dtype
    return suits(tensors[0]) and all(
        tensor.dtype is dtype and tensor.device == device and kernels.has_address(tensor)
        for tensor in tensors
    )


def chain(
    x: Tensor,
    weights: Sequence[Tensor],
    layers: Sequence[Layer],
    widths: Sequence[int],
    check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Run layers in sequence.

    Args:
        x: input of the first layer ``[batch, n_in]``.
        weights, layers, widths: one for each layer, as `functional.sparse_chain` takes them; the
            shapes fit one another.
        check: raises if they do not; it is called for shapes that are new.

    Returns:
        Output of the last layer ``[batch, n_out]``, and a flat tensor of the other layers' outputs.
    """
    x, weights = x.contiguous(), [w.contiguous() for w in weights]
    with _current(x.device):
        plan = _plan(x, weights, layers, widths, check)
        y, between = x.new_empty(x.shape[0], plan.width), x.new_empty(plan.between)
        values = plan.pointers(pointer(x), between, pointer(y))
        of_weights = [*map(pointer, weights)]
        for step in plan.steps:
            step.forward(values, of_weights, x)
    return y, between


def chain_adjoint(
    g: Tensor,
    x: Tensor,
    between: Tensor,
    weights: Sequence[Tensor],
    layers: Sequence[Layer],
    widths: Sequence[int],
    needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x and of the weights; None if not needed.

    Args:
        g: gradient of the output of `chain`.
        x, weights, layers, widths: the arguments of `chain`.
        between: the second tensor that `chain` returned.
        needs_x, needs: whether the gradients of x and of each weight are needed.
    """
    g, x, weights = g.contiguous(), x.contiguous(), [w.contiguous() for w in weights]
    with _current(x.device):
        plan = _plan(x, weights, layers, widths)
        gx = x.new_empty(x.shape if needs_x else [0])
        gw = [torch.empty_like(w) if need else None for w, need in zip(weights, needs, strict=True)]
        of_between = torch.empty_like(between)
        of_y = pointer(g)
        values = plan.pointers(pointer(x), between, of_y)
        slopes = plan.pointers(pointer(gx), of_between, of_y)
        of_weights = [*map(pointer, weights)]
        for step in reversed(plan.steps):
            lower, here = needs_x or any(needs[: step.start]), any(needs[step.start : step.stop])
            if lower or here:
                step.adjoint(values, slopes, of_weights, gw, lower, here, x)
        for left_out in plan.gradients(layers, needs):
            left_out.write(values, slopes, gw)
    return gx if needs_x else None, gw


def adjoint(
    g: Tensor, x: Tensor, w: Tensor, layer: Layer, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of x and w of one layer; one that ``needs`` does not name is empty."""
    width = g.shape[1]
    gx, (gw,) = chain_adjoint(g, x, x.new_empty(0), [w], [layer], [width], needs[0], [needs[1]])
    return x.new_empty(0) if gx is None else gx, x.new_empty(0) if gw is None else gw


class _Plan:
    """All that is the same in every call of a chain with one number of rows."""

    def __init__(
        self,
        rows: int,
        dtype: torch.dtype,
        shapes: list[torch.Size],
        widths: Sequence[int],
        layers: Sequence[Layer],
    ) -> None:
        self.before = list(layers[:-1])  # a plan is kept by the last one
        *inner, self.width = widths
        # Where in ``between`` the output of each layer begins.
        *self.places, self.between = accumulate([rows * m for m in inner], initial=0)
        self._sizes = rows, dtype, tuple(shapes), tuple(widths)
        self.steps = make_steps(Part(*self._sizes, layers))
        self._gradients: dict[tuple[bool, ...], list[WeightGradients]] = {}

    def gradients(self, layers: Sequence[Layer], needs: Sequence[bool]) -> list[WeightGradients]:
        """What writes the gradients that the steps leave out."""
        key = tuple(needs)
        if key not in self._gradients:
            self._gradients[key] = make_gradients(Part(*self._sizes, layers), self.steps, needs)
        return self._gradients[key]

    def fits(self, layers: Sequence[Layer]) -> bool:
        """Whether the plan is for these very layers."""
        return all(map(is_, layers, self.before))

    def pointers(self, first: Pointer, between: Tensor, last: Pointer) -> list[Pointer]:
        """Pointers to the input of each layer, and to the output of the last."""
        return [first, *pointers_into(between, self.places), last]


def _plan(
    x: Tensor,
    weights: Sequence[Tensor],
    layers: Sequence[Layer],
    widths: Sequence[int],
    check: Callable[[], None] = lambda: None,
) -> _Plan:
    shapes, plans = [w.shape for w in weights], layers[-1].plans
    key = x.shape, x.dtype, *widths, *shapes
    plan = plans.get(key)
    if plan is None or not plan.fits(layers):
        check()
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plan = plans[key] = _Plan(x.shape[0], x.dtype, shapes, widths, layers)
    return plan


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
