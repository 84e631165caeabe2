"""The products of ``wirings`` by the C kernels, on the CPU in float32.

A product is a PyTorch operator. A chain of layers, or of one, is a function of tensors that must be
``at_address``. Every call checks what it gives the kernels: shapes, dtypes and addresses here,
sizes and sources in C. The operators are opaque to ``torch.compile`` and ``torch.export``, which
call them as they are. They have no autograd of their own; ``functional`` defines it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsehyper._util import kernels
from sparsehyper._util.memory import shared_memory

_library = torch.library.Library("sparsehyper", "DEF")


class Shifts:
    """A circulant wiring for the kernels.

    Args:
        n_in: number of inputs.
        shifts: the shifts of all copies, one copy after another.
    """

    def __init__(self, n_in: int, shifts: Sequence[int]) -> None:
        self.n_in = n_in
        self._shifts = array("q", shifts)

    def packed(self, k: int, m: int) -> tuple[bool, int]:
        """(whether it is circulant, address of its shifts), checked against weights ``[k, m]``."""
        expected = -(-m // self.n_in) * k if self.n_in else 0
        if len(self._shifts) != expected:
            raise ValueError(
                f"`shifts` must hold {expected} numbers for {self.n_in} inputs and a weight of "
                f"shape {[k, m]}, got {len(self._shifts)}"
            )
        return True, self._shifts.buffer_info()[0]


class Sources:
    """An indexed wiring for the kernels.

    Args:
        n_in: number of inputs.
        sources: int32 ``[fan_in, n_out]``.
    """

    def __init__(self, n_in: int, sources: Tensor) -> None:
        self.n_in = n_in
        self._sources = sources
        self._seen = (-1, -1, -1, -1)

    def packed(self, k: int, m: int) -> tuple[bool, int]:
        """(whether it is circulant, address of its sources), checked against weights ``[k, m]``."""
        sources = self._sources
        address = sources.data_ptr()
        if (k, m, address, sources.nbytes) != self._seen:
            self._check(k, m)
            sources = self._sources = sources.contiguous()
            address = _address("sources", sources)
            self._seen = k, m, address, sources.nbytes
        return False, address

    def _check(self, k: int, m: int) -> None:
        sources = self._sources
        if sources.shape != (k, m) or sources.dtype != torch.int32 or not sources.is_cpu:
            raise ValueError(
                f"`sources` must be int32 on the CPU and of the shape of `weight`, {[k, m]}, got "
                f"{sources.dtype} on {sources.device} of shape {list(sources.shape)}"
            )


def circulant(x: Tensor, weight: Tensor, shifts: list[int]) -> Tensor:
    """``[batch, n_in]`` to ``[batch, n_out]``; ``shifts`` are one copy after another."""
    return _product(x, weight, Shifts(_width(x), shifts))


def circulant_adjoint(
    g: Tensor, x: Tensor, weight: Tensor, shifts: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight, or empty tensors in place of those not needed."""
    return _gradients(g, x, weight, Shifts(_width(x), shifts), needs_x, needs_w)


def indexed(x: Tensor, weight: Tensor, sources: Tensor) -> Tensor:
    """``[batch, n_in]`` to ``[batch, n_out]``."""
    return _product(x, weight, Sources(_width(x), sources))


def indexed_adjoint(
    g: Tensor, x: Tensor, weight: Tensor, sources: Tensor, needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight, or empty tensors in place of those not needed."""
    return _gradients(g, x, weight, Sources(_width(x), sources), needs_x, needs_w)


def chain(
    x: Tensor,
    weights: Sequence[Tensor],
    wirings: Sequence[Shifts | Sources],
    widths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Run layers in sequence, in one call of the kernels.

    Args:
        x: input of the first layer ``[batch, n_in]``.
        weights, wirings, widths: one for each layer, as `functional.sparse_chain` takes them; all
            tensors are ``at_address``.

    Returns:
        Output of the last layer ``[batch, n_out]``, and a flat tensor of the other layers' outputs.

    Raises:
        ValueError: shapes that do not fit one another, or a source that is not an input.
    """
    rows, x = len(x), x.contiguous()
    layers, _alive = _packed_layers(x, weights, wirings, widths)
    width = widths[-1]
    _, n_between, _, n_table, _ = kernels.compiled.space(rows, layers)
    empty = shared_memory().empty
    between, y, table = empty([n_between]), empty([rows, width]), empty([n_table])
    kernels.compiled.chain(
        rows, layers, x.data_ptr(), between.data_ptr(), y.data_ptr(), table.data_ptr()
    )
    return y, between


def chain_adjoint(
    g: Tensor,
    x: Tensor,
    between: Tensor,
    weights: Sequence[Tensor],
    wirings: Sequence[Shifts | Sources],
    widths: Sequence[int],
    needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x and of the weights; None if not needed.

    Args:
        g: gradient of the output of `chain`.
        x, weights, wirings, widths: the arguments of `chain`.
        between: the second tensor that `chain` returned.
        needs_x, needs: whether the gradients of x and of each weight are needed.

    Raises:
        ValueError: as `chain` does.
    """
    rows, g, x = len(x), g.contiguous(), x.contiguous()
    layers, _alive = _packed_layers(x, weights, wirings, widths)
    width = widths[-1]
    threads, n_between, n_gradients, n_table, n_sums = kernels.compiled.space(rows, layers)
    if g.shape != (rows, width) or between.numel() != n_between:
        raise ValueError(
            f"`g` must have shape {[rows, width]}, that of the output, got {list(g.shape)}; "
            f"and {n_between} numbers lie between the layers, got {between.numel()}"
        )
    empty = shared_memory().empty
    work = empty([n_gradients + n_table + n_sums])
    gradients = work.data_ptr()
    gw = [
        empty(weight.shape) if need else None for weight, need in zip(weights, needs, strict=True)
    ]
    gx = empty(x.shape) if needs_x else None
    kernels.compiled.chain_adjoint(
        *(threads, rows, layers, x.data_ptr(), between.data_ptr(), g.data_ptr()),
        *(0 if gx is None else gx.data_ptr(), kernels.addresses(gw)),
        *(gradients, gradients + 4 * n_gradients, gradients + 4 * (n_gradients + n_table)),
    )
    for tensor in gw if rows == 0 else ():
        if tensor is not None:
            tensor.zero_()
    return gx, gw


def _packed_layers(
    x: Tensor,
    weights: Sequence[Tensor],
    wirings: Sequence[Shifts | Sources],
    widths: Sequence[int],
) -> tuple[bytes, list[Tensor]]:
    """Packed layers, and tensors that must outlive the kernel's call."""
    packed, alive, n_in = array("q"), [], _width(x)
    for weight, wiring, width in zip(weights, wirings, widths, strict=True):
        shape, n = weight.shape, wiring.n_in
        if len(shape) != 2 or n != n_in:
            raise ValueError(
                f"`weight` must have shape [fan_in, n_out], got {list(shape)}; and there must be "
                f"{n} inputs, as its wiring has, got {n_in}"
            )
        k, columns = shape
        weight = weight.contiguous()
        packed.extend((n, width, k, columns, *wiring.packed(k, width), weight.data_ptr()))
        alive.append(weight)
        n_in = width
    return packed.tobytes(), alive


def _product(x: Tensor, weight: Tensor, wiring: Shifts | Sources) -> Tensor:
    _check_memory(x=x, weight=weight)
    return chain(x, [weight], [wiring], [weight.shape[1]])[0]


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, wiring: Shifts | Sources, needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    _check_memory(g=g, x=x, weight=weight)
    gx, (gw,) = chain_adjoint(
        g, x, x.new_empty(0), [weight], [wiring], [weight.shape[1]], needs_x, [needs_w]
    )
    return x.new_empty(0) if gx is None else gx, x.new_empty(0) if gw is None else gw


def _width(x: Tensor) -> int:
    if x.ndim != 2:
        raise ValueError(f"`x` must have shape [batch, n_in], got {list(x.shape)}")
    return x.shape[1]


def _check_memory(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not kernels.takes(tensor):
            raise TypeError(
                f"`{name}` must be float32 on the CPU, got {tensor.dtype} on {tensor.device}"
            )
        _address(name, tensor)


def _address(name: str, tensor: Tensor) -> int:
    address = tensor.data_ptr()
    if address == 0 and tensor.numel():
        raise ValueError(f"`{name}` of shape {list(tensor.shape)} must have memory, and has none")
    return address


def _like_y(x: Tensor, weight: Tensor, wiring: list[int] | Tensor) -> Tensor:
    _check_one_device(x, weight, wiring)
    return x.new_empty(x.shape[0], weight.shape[1])


def _like_gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    wiring: list[int] | Tensor,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor]:
    _check_one_device(g, x, weight, wiring)
    return (
        x.new_empty(x.shape if needs_x else [0]),
        weight.new_empty(weight.shape if needs_w else [0]),
    )


def _check_one_device(*arguments: Tensor | list[int]) -> None:
    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(map(str, devices))}")


for _wiring, _apply, _adjoint in (
    ("int[] shifts", circulant, circulant_adjoint),
    ("Tensor sources", indexed, indexed_adjoint),
):
    for _function, _fake, _schema in (
        (_apply, _like_y, f"(Tensor x, Tensor weight, {_wiring}) -> Tensor"),
        (
            _adjoint,
            _like_gradients,
            f"(Tensor g, Tensor x, Tensor weight, {_wiring}, bool needs_x, bool needs_w)"
            " -> (Tensor, Tensor)",
        ),
    ):
        _library.define(_function.__name__ + _schema)
        _library.impl(_function.__name__, _function, "CPU")
        torch.library.register_fake(f"sparsehyper::{_function.__name__}", _fake, lib=_library)
