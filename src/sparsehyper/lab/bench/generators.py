"""Whole generators: from one embedding to all N parameters and back, over decades of N."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Chunked, Dense, Generator, Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.bench import memory
from sparsehyper.lab.bench.products import bytes_moved, thesis_generator
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.timing import alternate, copying, floor, spread, timed, times
from sparsehyper.sparse import SparseLinear
from sparsehyper.training.isolation import DiedError, call_in_process

LATENT = 64
BUDGET = 4  # trainable parameters of the chunked generator per generated parameter
THESIS = "thesis"
EIGHTH = "sparse, N ÷ 8"  # a generator of so many weights, which outputs share
SMALL = "sparse, 1.125 N"  # and a base of N beside it
_SPECS: dict[str, Generator] = {
    "sparse": Sparse(),
    EIGHTH: Sparse(),  # sized to its budget
    "sparse, growth 8": Sparse(growth=8),
    "sparse, local": Sparse(topology="local"),
    "chunked": Chunked(),  # sized to its budget
    "dense": Dense(),
    THESIS: Sparse(),  # the same layers, computed by the thesis's scheme
}
_BUDGETS = {"chunked": BUDGET, EIGHTH: 1 / 8}
_SLOW = ("sparse, local", THESIS)

_SMALL = 20_000  # generated parameters; about the fewest for which the chunked budget can be met

# Upper estimates of the memory of a pass: bytes per weight, and per generated parameter.
_WEIGHT_BYTES, _SLOW_WEIGHT_BYTES, _PARAMETER_BYTES = 8, 40, 16


def build(name: str, numel: int, seed: int) -> nn.Module:
    """Build one of the compared generators, ``[batch, LATENT]`` → ``[batch, numel]``."""
    module = generator(name, numel).build(LATENT, numel, seed)
    return thesis_generator(module) if name == THESIS else module


def one_pass(module: nn.Module, numel: int, seed: int) -> Callable[[], None]:
    """Forward and backward pass of a generator for one embedding, which gets a gradient too."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(1, LATENT, generator=rng).requires_grad_()
    grad = torch.randn(1, numel, generator=rng)

    def work() -> None:
        z.grad = None
        module.zero_grad(set_to_none=True)
        module(z).backward(grad)

    return work


def measure_generators(sizes: Sizes, rounds: int, seed: int) -> dict[str, Any]:
    """One row for every N and method, and the reason for each that was left out.

    ``ns`` is the time per generated parameter and ``over`` as for layers; ``floor_ns``, for sparse
    layers, the time to move their bytes once; ``peak`` the bytes above those of the process before
    it built the generator, or None where they cannot be measured.
    """
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for numel in sizes.generators:
        names: list[str] = []
        for name in _SPECS:
            if name in _SLOW and numel > sizes.largest_slow:
                reason = f"slow; measured up to {sizes.largest_slow:,}"
            else:
                reason = memory.shortage(_need([*names, name], numel))
            if reason:
                skipped.append({"numel": numel, "method": name, "reason": reason})
            else:
                names.append(name)
        rows += _time(names, numel, sizes, rounds, seed)
    for row in rows if memory.can_measure() else ():
        with suppress(DiedError):
            row["peak"] = call_in_process(_peak, row["method"], row["numel"], seed)
    return {"rows": rows, "skipped": skipped, "flatness": _flatness(rows)}


def _time(
    names: list[str], numel: int, sizes: Sizes, rounds: int, seed: int
) -> list[dict[str, Any]]:
    modules = {name: build(name, numel, seed) for name in names}
    works = {name: timed(one_pass(module, numel, seed)) for name, module in modules.items()}
    taken = alternate({"copy": copying(sizes.copy), **works}, rounds)
    byte_seconds = taken.pop("copy")
    rows = []
    for name, seconds in taken.items():
        row: dict[str, Any] = {
            "numel": numel,
            "method": name,
            "trainable": sum(p.numel() for p in modules[name].parameters()),
            "seconds": seconds,
            "ms": spread([1e3 * s for s in seconds]),
            "ns": spread([1e9 * s / numel for s in seconds]),
            "over": {x: times(seconds, taken[x]) for x in ("sparse", THESIS) if x in taken},
            "floor_ns": None,
            "peak": None,
        }
        layers = [m for m in modules[name].modules() if isinstance(m, SparseLinear)]
        if layers:
            least = floor(byte_seconds, sum(bytes_moved(x, 1, backward=True) for x in layers))
            row["over"]["floor"] = times(seconds, least)
            row["floor_ns"] = spread([1e9 * s / numel for s in least])
        rows.append(row)
    return rows


def _peak(name: str, numel: int, seed: int) -> int:
    """Peak bytes of a pass, weights included; called in a fresh process."""
    one_pass(build(name, _SMALL, seed), _SMALL, seed)()  # loads the libraries that every pass needs
    before = memory.resident()
    work = one_pass(build(name, numel, seed), numel, seed)
    work()
    memory.reset_peak()
    work()
    return memory.peak() - before


def _flatness(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Worst ÷ best time per parameter of the default generator, from the two smallest N on."""
    costs = [(row["numel"], row["ns"]["median"]) for row in rows if row["method"] == "sparse"]
    return {
        f"from {smallest:,}": max(ns) / min(ns)
        for smallest, _ in costs[:2]
        for ns in [[ns for numel, ns in costs if numel >= smallest]]
    }


def generator(name: str, numel: int) -> Generator:
    """One of the compared generators, for a number of parameters."""
    spec, budget = _SPECS[name], _BUDGETS.get(name)
    return spec if budget is None else spec.with_budget(int(budget * numel), LATENT, numel)


def hypernetwork(target: nn.Module, name: str, tasks: int) -> HyperNetwork:
    """A hypernetwork with one of the compared generators, or `SMALL`, which alone has a base."""
    small, numel = name == SMALL, sum(p.numel() for p in target.parameters())
    spec, base = generator(EIGHTH if small else name, numel), "learned" if small else "zeros"
    hnet = HyperNetwork(target, spec, TaskEmbedding(tasks, LATENT), base=base)
    if name == THESIS:
        hnet.generator = thesis_generator(hnet.generator)
    return hnet


def _need(names: list[str], numel: int) -> int:
    """Bytes that these take when all are built and one is running."""
    weights = {name: generator(name, numel).count_parameters(LATENT, numel) for name in names}
    working = max(
        (_SLOW_WEIGHT_BYTES if name in _SLOW else _WEIGHT_BYTES) * count
        for name, count in weights.items()
    )
    return 4 * sum(weights.values()) + working + _PARAMETER_BYTES * numel
