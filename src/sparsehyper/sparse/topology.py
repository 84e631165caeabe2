"""Topologies: the sources of a sparse layer, and the sizes of a stack of growing layers.

A sparse layer computes ``y[j] = Σ_t w[t, j] · x[source(t, j)]`` for taps ``t < fan_in``. A
*topology* names a way to draw the sources, once, from a seed:

- ``circulant``: output copy c reads the whole input, shifted: ``source(t, c·n + i) = (i + s[c, t])
  mod n`` for random shifts s. It needs no index array. (This library's.)
- ``uniform``: distinct sources drawn at random for each output.
- ``regular``: random, and every input is used equally often (to within one).
- ``local``: normally distributed, of width ``sigma``, around the output's proportional position.
- ``mixed``: the nearest inputs to the proportional position, and one normally distributed.

The last four are from F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022),
with two deviations. Positions wrap around at the ends, because clipping them would pile up
connections on the first and last inputs. The sources of one output are distinct, so that the
fan-in is as requested; the thesis merges sources that are drawn twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper._util.random import integers, normal
from sparsehyper._util.text import listed

TOPOLOGIES = ("circulant", "uniform", "regular", "local", "mixed")
FAN_IN_SCHEDULES = ("linear", "geometric")
_MAX_LAYERS = 200  # with linear fan-in these cost some 10,000 times as much as a growth of 2


def layer_sizes(latent_dim: int, numel: int, growth: float = 2.0) -> list[int]:
    """Sizes of the layers after the latent vector, the last of them ``numel``.

    From the output back they are numel, ⌈numel / growth⌉, … as long as they exceed
    ``latent_dim``.

    Raises:
        ValueError: ``latent_dim`` or ``numel`` below 1, or ``growth`` not above 1.

    >>> layer_sizes(64, 1000)
    [125, 250, 500, 1000]
    >>> layer_sizes(64, 10)
    [10]
    """
    check_integer("latent_dim", latent_dim, minimum=1)
    check_integer("numel", numel, minimum=1)
    check_number("growth", growth, above=1)
    sizes = [numel]
    # A growth near 1 may round up to the same size; one unit less keeps the stack finite.
    while (size := min(math.ceil(sizes[-1] / growth), sizes[-1] - 1)) > latent_dim:
        sizes.append(size)
        if len(sizes) > _MAX_LAYERS:
            raise ValueError(
                f"`growth` must be larger: by {growth} it takes more than {_MAX_LAYERS} layers "
                f"from {latent_dim} to {numel} units"
            )
    return sizes[::-1]


def layer_fan_ins(fan_in: str | int, layers: int) -> list[int]:
    """Fan-in of each of ``layers`` layers, first to last.

    Args:
        fan_in: an integer, for all layers; ``"linear"``, 1 at the output layer and one more for
            each layer back; or ``"geometric"``, ⌈1.5^l⌉ for the l-th layer back.
        layers: number of layers, at least 1.

    >>> layer_fan_ins("linear", 4)
    [4, 3, 2, 1]
    >>> layer_fan_ins("geometric", 4)
    [4, 3, 2, 1]
    >>> layer_fan_ins(3, 4)
    [3, 3, 3, 3]
    """
    if isinstance(fan_in, str):
        if fan_in not in FAN_IN_SCHEDULES:
            raise ValueError(
                f"`fan_in` must be an integer or one of {listed(FAN_IN_SCHEDULES)}, got {fan_in!r}"
            )
        if fan_in == "linear":
            return list(range(layers, 0, -1))
        return [math.ceil(1.5**back) for back in range(layers - 1, -1, -1)]
    check_integer("fan_in", fan_in, minimum=1)
    return [fan_in] * layers


def draw_shifts(n_in: int, n_out: int, fan_in: int, rng: torch.Generator) -> Tensor:
    """Shifts of a circulant layer: int32 ``[⌈n_out / n_in⌉, fan_in]``, distinct in each row."""
    return _distinct(n_in, math.ceil(n_out / n_in), fan_in, rng).T.contiguous()


def circulant_sources(shifts: Tensor, n_in: int, n_out: int) -> Tensor:
    """Sources, int32 ``[fan_in, n_out]``, of the shifts ``[copies, fan_in]``."""
    position = torch.arange(n_out, device=shifts.device)
    copy = position // n_in
    sources = (position % n_in + shifts.long().T[:, copy]) % n_in
    return sources.to(torch.int32)


def draw_sources(
    topology: str, n_in: int, n_out: int, fan_in: int, *, sigma: float, rng: torch.Generator
) -> Tensor:
    """Draw the sources of an indexed (not circulant) layer.

    Args:
        topology: one of ``TOPOLOGIES`` except ``"circulant"``.
        n_in, n_out: widths of the layer.
        fan_in: number of sources of each output, at most ``n_in``.
        sigma: width of the normal distribution of ``local`` and ``mixed``, in input positions.
        rng: a CPU generator.

    Returns:
        int32 ``[fan_in, n_out]`` with values in [0, n_in), distinct in each column.
    """
    if fan_in == n_in:
        return torch.arange(n_in, dtype=torch.int32)[:, None].expand(n_in, n_out).contiguous()
    if topology == "uniform":
        return _distinct(n_in, n_out, fan_in, rng)
    if topology == "regular":
        return _regular(n_in, n_out, fan_in, rng)
    neighbours = 0 if topology == "local" else fan_in - 1
    return _around(n_in, n_out, fan_in, neighbours, sigma, rng)


def _distinct(n_in: int, n_out: int, fan_in: int, rng: torch.Generator) -> Tensor:
    """Uniformly drawn subsets of the inputs, one for each output (Floyd's algorithm)."""
    taps = torch.empty(fan_in, n_out, dtype=torch.int32)
    for t in range(fan_in):
        last = n_in - fan_in + t
        drawn = integers(last + 1, [n_out], rng).to(torch.int32)
        taps[t] = torch.where((taps[:t] == drawn).any(0), last, drawn)
    return taps


def _regular(n_in: int, n_out: int, fan_in: int, rng: torch.Generator) -> Tensor:
    """Random permutations of the inputs, one after another, dealt out to the outputs in turn."""
    slots = fan_in * n_out
    dealt: list[Tensor] = []
    for start in range(0, slots, n_in):
        order = torch.randperm(n_in, generator=rng)
        if begun := start % fan_in:  # sources that the last output got from earlier permutations
            missing = fan_in - begun
            has = dealt[-1][-begun:]
            if torch.isin(order[:missing], has).any():
                first = order[~torch.isin(order, has)][:missing]
                order = torch.cat([first, order[~torch.isin(order, first)]])
        dealt.append(order)
    return torch.cat(dealt)[:slots].to(torch.int32).view(n_out, fan_in).T.contiguous()


def _around(
    n_in: int, n_out: int, fan_in: int, neighbours: int, sigma: float, rng: torch.Generator
) -> Tensor:
    """The nearest ``neighbours`` inputs, and others normally distributed around the position."""
    centre = (torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    nearest = centre.round().long()
    taps = torch.empty(fan_in, n_out, dtype=torch.int32)
    step = torch.zeros(n_out, dtype=torch.long)
    for t in range(fan_in):
        if t < neighbours:
            taps[t] = (nearest + _outward(t)) % n_in
            continue
        taken = torch.ones(n_out, dtype=torch.bool)
        for _ in range(4):  # draw again where the source is taken
            drawn = (centre + sigma * normal([n_out], rng)).round().long() % n_in
            taps[t] = torch.where(taken, drawn, taps[t])
            taken = (taps[:t] == taps[t]).any(0)
        while taken.any():  # then take the nearest free one
            taps[t] = torch.where(taken, (nearest + _outward(step)) % n_in, taps[t])
            step += taken
            taken = (taps[:t] == taps[t]).any(0)
    return taps


def _outward(step: Any) -> Any:
    """0, -1, +1, -2, +2, …"""
    return (step + 1) // 2 * (1 - step % 2 * 2)
