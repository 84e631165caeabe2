"""The steps of a chain of layers: one launch in each direction, or few.

A wide layer is a step of its own. A narrow one, of a few thousand outputs, cannot fill a GPU, so
several of them are one step. Every step has

    forward(values, weights, x): write the outputs of its layers
    adjoint(values, slopes, weights, gw, lower, here, x): write the gradients

``values`` are pointers to the input of each layer of the chain and to the last output, and
``slopes`` to their gradients; the last value is not used backward. ``weights`` are pointers to all
weights, and ``gw`` the tensors for their gradients, None if not needed. ``lower`` and ``here`` say
whether the gradients of the step's input and of any weight of it are needed. x has the dtype and
the device of all memory that a step needs.

The gradients of the weights of several narrow layers, and of a circulant layer whose outputs share
weights, are not written with those of the inputs: `WeightGradients` writes them for several layers
at once, after all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsehyper.sparse.gpu.launching import Launch, Pointer, pointer

if TYPE_CHECKING:
    from sparsehyper.sparse.gpu.products import Layer

# These numbers, and those of the launches, affect speed and rounding only. They were measured on an
# H200, but for those of shared weights.
NARROW = 1024  # most outputs of a layer that shares a step
SHARING = 8  # most layers of a step; each number of layers is compiled once
SHIFTS = 32  # most shifts of a launch forward
PAIRS, PAIRS_OF_BATCH = 16, 8  # and backward
COLUMNS = 8  # most rows that lie side by side for an indexed layer
# Most outputs that a program for shared weights adds up at a time; the first is a power of 2.
SHARES, SHARES_INDEXED = 16, 8


@dataclass(frozen=True)
class Part:
    """Layers in sequence, with all that their launches depend on.

    Args:
        rows: number of rows.
        dtype: dtype of all tensors.
        shapes: shapes of the weights.
        widths: numbers of outputs.
        layers: the wirings.
        start: number of the first layer in its chain.
    """

    rows: int
    dtype: torch.dtype
    shapes: Sequence[torch.Size]
    widths: Sequence[int]
    layers: Sequence[Layer]
    start: int = 0

    def part(self, start: int, stop: int) -> Part:
        """Some of the layers of a chain."""
        some = slice(start, stop)
        return replace(
            self,
            shapes=self.shapes[some],
            widths=self.widths[some],
            layers=self.layers[some],
            start=start,
        )

    @property
    def tables(self) -> tuple[Pointer, ...]:
        """Pointers to the wirings."""
        return tuple(pointer(layer.sources) for layer in self.layers)

    @property
    def sizes(self) -> tuple[tuple[int, ...], int, int, int]:
        """Periods, rows, inputs and outputs, for a kernel of several layers."""
        periods = tuple(columns for _, columns in self.shapes)
        return periods, self.rows, self.layers[0].n_in, self.widths[-1]

    @property
    def shares(self) -> int:
        """The most outputs, at least one, that share a weight."""
        pairs = zip(self.shapes, self.widths, strict=True)
        return max(max(1, -(-width // max(1, columns))) for (_, columns), width in pairs)


def make_steps(chain: Part) -> list[Step]:
    """The steps of a chain."""
    narrow = [
        i
        for i, (layer, m) in enumerate(zip(chain.layers, chain.widths, strict=True))
        if layer.circulant and m <= NARROW
    ]
    runs = [(i, i + 1) for i in range(len(chain.layers)) if i not in narrow] + _runs(narrow)
    return [_step(chain.part(start, stop)) for start, stop in sorted(runs)]


def make_gradients(
    chain: Part, steps: Sequence[Step], needs: Sequence[bool]
) -> list[WeightGradients]:
    """Those that the steps of a chain leave out, of weights that need gradients."""
    late = [i for step in steps if step.late for i in range(step.start, step.stop) if needs[i]]
    return [WeightGradients(chain.part(start, stop)) for start, stop in _runs(late)]


def _step(part: Part) -> Step:
    if len(part.layers) > 1:
        return Narrow(part)
    return Circulant(part) if part.layers[0].circulant else Indexed(part)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of successive layers that share a launch: the first, and the one after the last."""
    runs: list[tuple[int, int]] = []
    for i in numbers:
        if runs and runs[-1][1] == i and i - runs[-1][0] < SHARING:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs


class Narrow:
    """Several narrow circulant layers."""

    late = True

    def __init__(self, part: Part) -> None:
        # A plan is kept by the last layer, so nothing here may keep that.
        count, rows, dtype, sizes = len(part.layers), part.rows, part.dtype, part.sizes
        shared = part.shares > 1
        self.start, self.stop = part.start, part.start + count

        def launch(name: str, programs: int, warps: int, **constants: int) -> Launch:
            return Launch(name, programs, sizes, dtype, layers=count, warps=warps, **constants)

        @cache
        def of_x(lower: bool) -> Launch:
            constants = {"NEED_X": lower, "SHARED": shared, "PAIRS": 8, "BLOCK": 1024}
            return launch("narrow_adjoint_x", rows, 8, **constants)

        self._tables, self._of_x = part.tables, of_x
        self._forward = launch("narrow", rows, 8, SHARED=shared, TAPS=8, BLOCK=1024)

    def forward(self, values: list[Pointer], weights: list[Pointer], x: Tensor) -> None:  # noqa: ARG002
        """Write the outputs."""
        i, stop = self.start, self.stop
        own = tuple(weights[i:stop])
        self._forward(values[i], own, self._tables, values[i + 1], values[stop])

    def adjoint(
        self,
        values: list[Pointer],  # noqa: ARG002
        slopes: list[Pointer],
        weights: list[Pointer],
        gw: Sequence[Tensor | None],  # noqa: ARG002
        lower: bool,
        here: bool,  # noqa: ARG002
        x: Tensor,  # noqa: ARG002
    ) -> None:
        """Write the gradients of the layers' inputs."""
        i, stop = self.start, self.stop
        own = tuple(weights[i:stop])
        self._of_x(lower)(slopes[stop], own, self._tables, slopes[i + 1], slopes[i])


class Circulant:
    """One circulant layer."""

    def __init__(self, part: Part) -> None:
        self.start, self.stop = part.start, part.start + 1
        ((k, columns),), (m,), (layer,) = part.shapes, part.widths, part.layers
        rows, dtype, n, shares = part.rows, part.dtype, layer.n_in, part.shares
        shifts, copies = layer.shifts, -(-m // n)
        self.late = shared = shares > 1

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

        at_once, block = _power(rows, 4), 512
        taps = _part(k, SHIFTS // 2)
        some_copies = _part(copies, max(1, SHIFTS // taps))
        self._forward = [
            forward(copy, tap)
            for copy in range(0, copies, some_copies)
            for tap in range(0, k, taps)
        ]
        self._adjoint = adjoint

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
        """Write the gradients; not that of shared weights."""
        i, grad = self.start, gw[self.start]
        of_w = None if grad is None else pointer(grad)
        here = here and not self.late
        for launch in self._adjoint(lower, here) if lower or here else ():
            launch(slopes[i + 1], values[i], weights[i], slopes[i], of_w)


class Indexed:
    """One indexed layer."""

    late = False

    def __init__(self, part: Part) -> None:
        self.start, self.stop = part.start, part.start + 1
        ((k, columns),), (m,), (layer,) = part.shapes, part.widths, part.layers
        rows, dtype, n, shares = part.rows, part.dtype, layer.n_in, part.shares
        shared = shares > 1
        at_once = _power(rows, COLUMNS)
        groups, block = -(-rows // at_once), 512 // at_once

        @cache
        def adjoint(lower: bool, here: bool) -> Launch:
            of_x = -(-n // block) * groups if lower else 0
            block_w = min(block, 64) if shared else block
            of_w = -(-k * columns // block_w) if here else 0
            return Launch(
                "indexed_adjoint",
                of_x + of_w,
                (rows, n, m, k, columns, of_x),
                dtype,
                SHARED=shared,
                SHARES=_part(shares, max(2, SHARES_INDEXED // at_once)),
                PAIRS=4,
                ROWS=at_once,
                BLOCK=block,
                BLOCK_W=block_w,
            )

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


class WeightGradients:
    """The gradients of the weights of circulant layers in sequence, in one launch."""

    def __init__(self, part: Part) -> None:
        self.start, self.stop = part.start, part.start + len(part.layers)
        self._tables = part.tables
        shares, at_once = _power(part.shares, SHARES), _power(part.rows, 4)
        block = min(256, (1024 if at_once == 1 else 512) // shares)  # what registers hold
        self._launch = Launch(
            "circulant_adjoint_w",
            sum(k * -(-columns // block) for k, columns in part.shapes),
            part.sizes,
            part.dtype,
            layers=len(part.layers),
            SHARES=shares,
            ROWS=at_once,
            BLOCK=block,
        )

    def write(
        self, values: list[Pointer], slopes: list[Pointer], gw: Sequence[Tensor | None]
    ) -> None:
        """Write them, when the gradients of all inputs are written."""
        i, stop = self.start, self.stop
        grads = tuple(pointer(grad) for grad in gw[i:stop] if grad is not None)
        between, of_between = values[i + 1], slopes[i + 1]
        self._launch(slopes[stop], values[i], between, of_between, grads, self._tables)


def _power(number: int, most: int) -> int:
    """The next power of 2, at most ``most``."""
    return min(most, 1 << max(number - 1, 0).bit_length())


def _part(number: int, most: int) -> int:
    """The size of the fewest equal parts of at most ``most``."""
    return -(-number // -(-number // most))
