"""The steps of a chain of layers: one launch forward, and one or two backward.

A wide layer is a step of its own. A narrow one, of a few thousand outputs, cannot fill a GPU, so
several of them are one step. Every step has

    forward(values, weights, x): write the outputs of its layers
    adjoint(values, slopes, weights, gw, lower, here, x): write the gradients

``values`` are pointers to the input of each layer of the chain and to the last output, and
``slopes`` to their gradients; the last value is not used backward. ``weights`` are pointers to all
weights, and ``gw`` the tensors for their gradients, None if not needed. ``lower`` and ``here`` say
whether the gradients of the step's input and of any weight of it are needed. x has the dtype and
the device of all memory that a step needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsehyper.sparse.gpu.launching import Launch, Pointer, pointer

if TYPE_CHECKING:
    from sparsehyper.sparse.gpu.products import Layer

# These numbers, and those of the launches, affect speed only. They were measured on an H200.
NARROW = 1024  # most outputs of a layer that shares a step
SHARING = 8  # most layers of a step; each number of layers is compiled once
SHIFTS = 32  # most shifts of a launch forward
PAIRS, PAIRS_OF_BATCH = 16, 8  # and backward
COLUMNS = 8  # most rows that lie side by side for an indexed layer
SHARES = 8  # most outputs, and rows, that a program for shared weights adds up at a time


def make_steps(
    rows: int,
    dtype: torch.dtype,
    shapes: Sequence[torch.Size],
    widths: Sequence[int],
    layers: Sequence[Layer],
) -> list[Step]:
    """The steps of a chain, for a number of rows and layers of these weights and outputs."""
    groups: list[tuple[int, int, bool]] = []  # first and last layer; whether they are narrow
    for i, (layer, m) in enumerate(zip(layers, widths, strict=True)):
        narrow = layer.circulant and m <= NARROW
        if narrow and groups and groups[-1][2] and i - groups[-1][0] < SHARING:
            groups[-1] = (groups[-1][0], i + 1, True)
        else:
            groups.append((i, i + 1, narrow))
    steps: list[Step] = []
    for start, stop, _ in groups:
        if stop - start > 1:
            some = slice(start, stop)
            steps.append(Narrow(start, rows, dtype, shapes[some], widths[some], layers[some]))
        else:
            kind = Circulant if layers[start].circulant else Indexed
            steps.append(kind(start, rows, dtype, shapes[start], widths[start], layers[start]))
    return steps


class Narrow:
    """Several narrow circulant layers."""

    def __init__(
        self,
        start: int,
        rows: int,
        dtype: torch.dtype,
        shapes: Sequence[torch.Size],
        widths: Sequence[int],
        layers: Sequence[Layer],
    ) -> None:
        self.start, self.stop = start, start + len(layers)
        self._shapes = shapes
        tables = tuple(pointer(layer.sources) for layer in layers)
        sizes = tuple(columns for _, columns in shapes), rows, layers[0].n_in, widths[-1]
        shared = any(columns < m for (_, columns), m in zip(shapes, widths, strict=True))

        def launch(name: str, programs: int, warps: int, **constants: int) -> Launch:
            return Launch(
                name, programs, sizes, dtype, layers=len(layers), warps=warps, **constants
            )

        @cache
        def of_x(lower: bool) -> Launch:
            constants = {"NEED_X": lower, "SHARED": shared, "PAIRS": 8, "BLOCK": 1024}
            return launch("narrow_adjoint_x", rows, 8, **constants)

        @cache
        def of_w() -> Launch:
            return _adjoint_w(rows, dtype, shapes, widths, layers)

        self._tables, self._of_x, self._of_w = tables, of_x, of_w
        self._forward = launch("narrow", rows, 8, SHARED=shared, TAPS=8, BLOCK=1024)

    def forward(self, values: list[Pointer], weights: list[Pointer], x: Tensor) -> None:  # noqa: ARG002
        """Write the outputs."""
        i, stop = self.start, self.stop
        own = tuple(weights[i:stop])
        self._forward(values[i], own, self._tables, values[i + 1], values[stop])

    def adjoint(
        self,
        values: list[Pointer],
        slopes: list[Pointer],
        weights: list[Pointer],
        gw: Sequence[Tensor | None],
        lower: bool,
        here: bool,
        x: Tensor,
    ) -> None:
        """Write the gradients."""
        i, stop = self.start, self.stop
        of_y, between, own = slopes[stop], slopes[i + 1], tuple(weights[i:stop])
        self._of_x(lower)(of_y, own, self._tables, between, slopes[i])
        if here:
            grads = [  # those that are not needed, too
                x.new_empty(shape) if grad is None else grad
                for grad, shape in zip(gw[i:stop], self._shapes, strict=True)
            ]
            pointers = tuple(map(pointer, grads))
            self._of_w()(of_y, values[i], values[i + 1], between, pointers, self._tables)


class Circulant:
    """One circulant layer."""

    def __init__(
        self, start: int, rows: int, dtype: torch.dtype, shape: torch.Size, m: int, layer: Layer
    ) -> None:
        self.start, self.stop = start, start + 1
        (k, columns), n, shifts = shape, layer.n_in, layer.shifts
        copies, shared = -(-m // n), columns < m

        def forward(copy: int, tap: int) -> Launch:
            own = tuple(
                shifts[(copy + c) * k + tap + t] if copy + c < copies and tap + t < k else 0
                for c in range(some_copies)
                for t in range(taps)
            )
            return Launch(
                "circulant",
                -(-n // block) * some_copies * -(-rows // at_once),
                (own, rows, n, m, k, columns, copy, tap),
                dtype,
                layers=len(own),
                ADD=tap > 0,
                COPIES=some_copies,
                TAPS=taps,
                SHARED=shared,
                ROWS=at_once,
                BLOCK=block,
            )

        @cache
        def adjoint(lower: bool, here: bool) -> list[Launch]:
            pairs = copies * k
            some = _part(pairs, PAIRS if rows <= 1 else PAIRS_OF_BATCH)
            block = 512 if some <= 2 else 256 if some <= 4 else 128
            padded = *shifts, *[0] * some
            return [
                Launch(
                    "circulant_adjoint",
                    -(-n // block),
                    (padded[pair : pair + some], rows, n, m, k, columns, pair),
                    dtype,
                    layers=some,
                    NEED_X=lower,
                    NEED_W=here,
                    ADD=pair > 0,
                    SHARED=shared,
                    PAIRS=some,
                    BLOCK=block,
                )
                for pair in range(0, pairs, some)
            ]

        @cache
        def of_shared() -> Launch:
            return _adjoint_w(rows, dtype, [shape], [m], [layer])

        at_once, block = _rows(rows, 4), 512
        taps = _part(k, SHIFTS // 2)
        some_copies = _part(copies, max(1, SHIFTS // taps))
        self._forward = [
            forward(copy, tap)
            for copy in range(0, copies, some_copies)
            for tap in range(0, k, taps)
        ]
        self._adjoint, self._of_shared = adjoint, of_shared
        self._shared, self._table = shared, (pointer(layer.sources),)

    def forward(self, values: list[Pointer], weights: list[Pointer], x: Tensor) -> None:  # noqa: ARG002
        """Write the output."""
        i = self.start
        for launch in self._forward:
            launch(values[i], weights[i], values[i + 1])

    def adjoint(
        self,
        values: list[Pointer],
        slopes: list[Pointer],
        weights: list[Pointer],
        gw: Sequence[Tensor | None],
        lower: bool,
        here: bool,
        x: Tensor,  # noqa: ARG002
    ) -> None:
        """Write the gradients."""
        i, grad = self.start, gw[self.start]
        of_y, of_w = slopes[i + 1], None if grad is None else pointer(grad)
        if here and self._shared:
            self._of_shared()(of_y, values[i], of_y, of_y, (of_w,), self._table)
            here = False
        if lower or here:
            for launch in self._adjoint(lower, here):
                launch(of_y, values[i], weights[i], slopes[i], of_w)


class Indexed:
    """One indexed layer."""

    def __init__(
        self, start: int, rows: int, dtype: torch.dtype, shape: torch.Size, m: int, layer: Layer
    ) -> None:
        self.start, self.stop = start, start + 1
        (k, columns), n = shape, layer.n_in
        shared = columns < m
        at_once = _rows(rows, COLUMNS)
        groups, block = -(-rows // at_once), 512 // at_once

        @cache
        def adjoint(lower: bool, here: bool) -> Launch:
            of_x = -(-n // block) * groups if lower else 0
            of_w = -(-k * columns // block) if here else 0
            sizes = rows, n, m, k, columns, of_x
            constants = {"SHARED": shared, "PAIRS": 4, "ROWS": at_once, "BLOCK": block}
            return Launch("indexed_adjoint", of_x + of_w, sizes, dtype, **constants)

        @cache
        def as_columns(width: int) -> Launch:
            length = 1024 // at_once
            programs = -(-width // length) * groups
            sizes = rows, width
            return Launch("columns", programs, sizes, dtype, ROWS=at_once, BLOCK=length)

        taps = _part(k, 4)
        self._forward = Launch(
            "indexed",
            -(-m // block) * groups,
            (rows, n, m, k, columns),
            dtype,
            SHARED=shared,
            TAPS=taps,
            ROWS=at_once,
            BLOCK=block,
        )
        self._adjoint, self._columns = adjoint, as_columns
        self._widths, self._size = (n, m), groups * at_once
        self._in_columns = at_once > 1
        order, starts = map(pointer, layer.by_input)
        self._sources, self._starts, self._order = pointer(layer.sources), starts, order

    def forward(self, values: list[Pointer], weights: list[Pointer], x: Tensor) -> None:
        """Write the output."""
        i = self.start
        taken, _memory = self._as_columns(values[i], self._widths[0], x)
        self._forward(taken, weights[i], values[i + 1], self._sources)

    def adjoint(
        self,
        values: list[Pointer],
        slopes: list[Pointer],
        weights: list[Pointer],
        gw: Sequence[Tensor | None],
        lower: bool,
        here: bool,
        x: Tensor,
    ) -> None:
        """Write the gradients."""
        i, grad = self.start, gw[self.start]
        of_y, _memory = self._as_columns(slopes[i + 1], self._widths[1], x)
        taken, _more = self._as_columns(values[i], self._widths[0], x)
        of_w = None if grad is None else pointer(grad)
        lists = self._sources, self._starts, self._order
        self._adjoint(lower, here)(of_y, taken, weights[i], slopes[i], of_w, *lists)

    def _as_columns(self, rows: Pointer, width: int, x: Tensor) -> tuple[Pointer, Tensor | None]:
        """A pointer to ``[rows, width]`` as the kernels gather from it, and its memory, if new."""
        if not self._in_columns:
            return rows, None
        memory = x.new_empty(self._size * width)
        self._columns(width)(rows, out := pointer(memory))
        return out, memory


Step = Narrow | Circulant | Indexed


def _adjoint_w(
    rows: int,
    dtype: torch.dtype,
    shapes: Sequence[torch.Size],
    widths: Sequence[int],
    layers: Sequence[Layer],
) -> Launch:
    """The launch for the gradients of the weights of circulant layers in sequence."""
    shares = max(-(-m // columns) for (_, columns), m in zip(shapes, widths, strict=True))
    at_once, block = _rows(rows, 4), 256 if shares == 1 else 128
    return Launch(
        "circulant_adjoint_w",
        sum(-(-shape.numel() // block) for shape in shapes),
        (tuple(columns for _, columns in shapes), rows, layers[0].n_in, widths[-1]),
        dtype,
        layers=len(layers),
        SHARES=_part(shares, SHARES // at_once),
        ROWS=at_once,
        BLOCK=block,
    )


def _rows(rows: int, most: int) -> int:
    """The power of 2 that is next to the number of rows, and at most ``most``."""
    return min(most, 1 << max(rows - 1, 0).bit_length())


def _part(number: int, most: int) -> int:
    """The size of the fewest equal parts of at most ``most``."""
    return -(-number // -(-number // most))
