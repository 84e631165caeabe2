"""A linear layer with a fixed number of connections per output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_integer, check_number, check_type
from sparsehyper._util.memory import shared_memory
from sparsehyper._util.random import integers, seeded, uniform
from sparsehyper.sparse import gpu
from sparsehyper.sparse.functional import sparse_chain
from sparsehyper.sparse.portable import spread
from sparsehyper.sparse.topology import TOPOLOGIES, circulant_sources, draw_shifts, draw_sources
from sparsehyper.sparse.wirings import Circulant, Indexed, Wiring, writes

# Circulant layers with fewer inputs use an index: their slices are too short to be fast. (A GPU's
# kernels need no slices.)
_MIN_CIRCULANT_INPUTS = 4096

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class SparseLinear(nn.Module):
    """A linear layer with ``fan_in`` sources per output.

    ``y[j] = Σ_t weight[t, j] · x[source(t, j)] (+ bias[j])``.

    The weights start uniform with variance ``2 / ((1 + a²) · fan_in)``, where a is
    ``negative_slope``; this preserves the signal's second moment. Wiring and weights depend on
    ``seed`` alone and are the same on every machine. The wiring is part of the state dict.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        fan_in: number of connections of each output; reduced to ``in_features`` if it is larger.
        topology: rule by which sources are drawn, one of ``sparsehyper.sparse.TOPOLOGIES``.
        sigma: width, in input positions, of the ``local`` and ``mixed`` topologies.
        negative_slope: slope on the negative side of the activation *before* this layer: 1 for
            none, 0 for ReLU.
        bias: add a learned vector, which starts at zero.
        share: number of outputs that share each weight and bias: output j uses column
            j mod ⌈out_features / share⌉. At most ``in_features`` outputs share one. Some of them
            may have the same sources by chance, the more the larger ``share``, and are then equal.
        seed: seed of wiring and weights.

    Shape:
        ``[batch, in_features]`` to ``[batch, out_features]``; the batch may be empty.

    Raises:
        ValueError: a width, ``fan_in`` or ``share`` below 1, ``sigma`` below 0, or an unknown
            topology.

    Source: F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022); the circulant
    topology is this library's.

    >>> layer = SparseLinear(4, 10, fan_in=2)
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 10])
    """

    weight: nn.Parameter
    shifts: Tensor
    sources: Tensor
    _sources: Tensor
    _planned: Wiring

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        *,
        topology: str = "circulant",
        sigma: float = 16.0,
        negative_slope: float = 1.0,
        bias: bool = False,
        share: float = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("in_features", in_features, minimum=1)
        check_integer("out_features", out_features, minimum=1)
        check_integer("fan_in", fan_in, minimum=1)
        check_choice("topology", topology, TOPOLOGIES)
        check_number("sigma", sigma, minimum=0)
        check_number("negative_slope", negative_slope)
        check_type("bias", bias, bool, "true or false")
        check_number("share", share, minimum=1)
        self.in_features = in_features
        self.out_features = out_features
        self.fan_in = min(fan_in, in_features)
        self.topology = topology
        self.negative_slope = negative_slope
        self.columns = shared_columns(in_features, out_features, share)

        rng = seeded(seed)
        if topology == "circulant":
            shifts = draw_shifts(in_features, out_features, self.fan_in, rng)
            self.register_buffer("shifts", shifts)
        else:
            sources = draw_sources(
                topology, in_features, out_features, self.fan_in, sigma=sigma, rng=rng
            )
            if self.columns < out_features:
                # With few inputs, sources are drawn in nearly the same order for every output.
                turns = integers(self.fan_in, [out_features], rng)
                taps = (torch.arange(self.fan_in)[:, None] + turns) % self.fan_in
                sources = sources.gather(0, taps)
            self.register_buffer("sources", sources)
        variance = 2 / ((1 + negative_slope**2) * self.fan_in)
        self.weight = nn.Parameter(uniform([self.fan_in, self.columns], variance, rng))
        self.bias = nn.Parameter(torch.zeros(self.columns)) if bias else None
        self._plan()

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in_features]`` to ``[batch, out_features]``."""
        self._check_width()
        x = self._checked(x)
        y = sparse_chain(x, [self.weight], [self._wiring()], [self.out_features])
        return y if self.bias is None else y + self._of_outputs(self.bias)

    def weights(self) -> Tensor:
        """Weights of all connections ``[fan_in, out_features]``."""
        return self._of_outputs(self.weight)

    def connections(self) -> Tensor:
        """Sources of all connections, int32 ``[fan_in, out_features]``."""
        if self.topology == "circulant":
            return circulant_sources(self.shifts, self.in_features, self.out_features)
        return self.sources.to(torch.int32)

    def extra_repr(self) -> str:
        """Shape and wiring, as ``print`` shows them."""
        return (
            f"{self.in_features}, {self.out_features}, fan_in={self.fan_in}, "
            f"topology={self.topology!r}, bias={self.bias is not None}, columns={self.columns}"
        )

    def _of_outputs(self, shared: Tensor) -> Tensor:
        """``[…, columns]`` as ``[…, out_features]``."""
        if shared.shape[-1] != self.columns:
            raise ValueError(
                f"`weight` and `bias` must have {self.columns} columns, got {list(shared.shape)}"
            )
        return spread(shared, self.out_features)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(
                f"`x` must have shape [batch, {self.in_features}], got {list(x.shape)}"
            )
        return x.to(self.weight.dtype)

    def _check_width(self) -> None:
        if self.weight.shape != (self.fan_in, self.columns):
            raise ValueError(
                f"`weight` must have shape [{self.fan_in}, {self.columns}], got "
                f"{list(self.weight.shape)}"
            )

    @property
    def _wiring_name(self) -> str:
        return "shifts" if self.topology == "circulant" else "sources"

    def _check_wiring(self, wiring: Tensor) -> None:
        name, copies = self._wiring_name, math.ceil(self.out_features / self.in_features)
        circulant = name == "shifts"
        shape = (copies, self.fan_in) if circulant else (self.fan_in, self.out_features)
        if wiring.shape != shape or wiring.dtype not in _INTEGERS:
            raise ValueError(
                f"`{name}` must be integers of shape {list(shape)} to fit the layer, got "
                f"{wiring.dtype} of shape {list(wiring.shape)}"
            )
        if not wiring.is_meta:
            low, high = (int(bound) for bound in wiring.aminmax())
            if low < 0 or high >= self.in_features:
                raise ValueError(
                    f"`{name}` of a layer of {self.in_features} inputs must lie in "
                    f"[0, {self.in_features}), got {low} to {high}"
                )

    def _plan(self) -> None:
        """Prepare the wiring for the products."""
        self._memory = shared_memory()  # hold a reference: the pool is freed with its last holder
        wiring = getattr(self, self._wiring_name)
        version = writes(wiring)
        self._check_wiring(wiring)
        if self.topology != "circulant":
            self._planned = Indexed(self.in_features, wiring.to(torch.int32))
        elif self.in_features >= _MIN_CIRCULANT_INPUTS or gpu.serves(wiring.device):
            self._planned = Circulant(self.in_features, wiring.tolist())
            self._buffers.pop("_sources", None)  # of the plan for another device
        else:
            self.register_buffer("_sources", self.connections(), persistent=False)
            self._planned = Indexed(self.in_features, self._sources)
        self._planned_for = wiring, version
        if gpu.serves(wiring.device):
            self._planned.layer(wiring.device)

    def _wiring(self) -> Wiring:
        if not torch.compiler.is_compiling():
            wiring = self.shifts if self.topology == "circulant" else self.sources
            planned, version = self._planned_for
            if wiring is not planned or writes(wiring) != version:
                self._plan()  # moved to another device, replaced, or written to
        elif isinstance(self._planned, Indexed):  # the compiler traces stand-ins of the buffers
            sources = self._sources if self.topology == "circulant" else self.sources
            if self._planned.sources is not sources:
                return Indexed(self.in_features, sources)
        return self._planned

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if gpu.serves(getattr(self, self._wiring_name).device):
            with suppress(ValueError):  # memory to be filled later, by `to_empty`
                self._wiring()  # the compiler, which may come first, cannot plan
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan()  # the tensors of a copy count their versions from zero

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        key = prefix + self._wiring_name
        wiring = state_dict.get(key)
        # Check the wiring before anything is written; the base class refuses another shape.
        if isinstance(wiring, Tensor) and wiring.shape == getattr(self, self._wiring_name).shape:
            self._check_wiring(wiring)
            state_dict[key] = wiring.to(torch.int32)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._plan()


def shared_columns(in_features: int, out_features: int, share: float) -> int:
    """Number of weights per tap of a layer whose outputs share weights.

    >>> shared_columns(64, 1000, 1), shared_columns(64, 1000, 2.5), shared_columns(64, 1000, 1e6)
    (1000, 400, 16)
    """
    return math.ceil(out_features / min(share, in_features))


def chain(layers: Sequence[SparseLinear], x: Tensor) -> Tensor:
    """Run layers without biases in sequence.

    The result equals calling them one after another. With the kernels the fixed cost falls to a
    third.

    Args:
        layers: at least one layer.
        x: input of the first layer ``[batch, in_features]``.

    Raises:
        ValueError: widths of neighbouring layers that differ, or a layer with a bias.
    """
    for layer, following in pairwise(layers):
        if layer.out_features != following.in_features:
            raise ValueError(
                f"`layers` must fit one another, got one of {layer.out_features} outputs before "
                f"one of {following.in_features} inputs"
            )
    if any(layer.bias is not None for layer in layers):
        raise ValueError("`layers` must have no biases")
    for layer in layers:
        layer._check_width()
    return sparse_chain(
        layers[0]._checked(x),
        [layer.weight for layer in layers],
        [layer._wiring() for layer in layers],
        [layer.out_features for layer in layers],
    )
