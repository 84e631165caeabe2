"""The sparse layer against the speed of memory, the thesis's scheme and ``torch.sparse``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper.lab.bench.products import Coo, TorchCoo, TorchCsr, bytes_moved, without_kernels
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.timing import TimedRun, alternate, copying, floor, spread, timed, times
from sparsehyper.sparse import SparseLinear

_TOPOLOGIES = ("circulant", "uniform", "regular", "local")
FORWARD, BOTH = "forward", "forward + backward"
_PORTABLE, _COMPILED, _COO = "sparse, plain PyTorch", "sparse, compiled", "torch.sparse COO"


def measure_layers(sizes: Sizes, rounds: int, seed: int) -> dict[str, Any]:
    """One row for every topology, batch size, pass and method, and the reason for any left out.

    A row's ``over`` is the method's time relative to that of moving every byte once (``floor``),
    of the thesis's scheme (``thesis``) and of the sparse layer (``sparse``) in the same round.
    """
    found = [
        _measure({"topology": topology, "batch": batch}, sizes, rounds, seed)
        for topology in _TOPOLOGIES
        for batch in sizes.batches
    ]
    return {part: [row for one in found for row in one[part]] for part in ("rows", "skipped")}


def _measure(
    case: dict[str, Any], sizes: Sizes, rounds: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    n_in, n_out, fan_in = sizes.layer
    layer = SparseLinear(n_in, n_out, fan_in, topology=case["topology"], seed=seed)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(case["batch"], n_in, generator=rng).requires_grad_()
    grad = torch.randn(case["batch"], n_out, generator=rng)
    methods: dict[str, nn.Module] = {
        "sparse": layer,
        _PORTABLE: layer,
        "thesis": Coo(layer),
        "torch.sparse CSR": TorchCsr(layer),
        _COO: TorchCoo(layer),
    }
    notes = {_PORTABLE: "as installed without a compiler"}
    skipped = []
    if sizes.compile and case["topology"] == "circulant":
        try:
            methods[_COMPILED], notes[_COMPILED] = _compiled(layer, x, grad)
        except RuntimeError as error:
            reason = f"cannot be compiled here: {type(error).__name__}"
            skipped.append({**case, "method": _COMPILED, "reason": reason})

    rows = []
    for which in (FORWARD, BOTH):
        runs: dict[str, TimedRun] = {"copy": copying(sizes.copy)}
        for name, method in methods.items():
            run = timed(_work(method, x, grad if which == BOTH else None))
            runs[name] = without_kernels()(run) if name == _PORTABLE else run
        taken = alternate(runs, rounds)
        least = floor(taken.pop("copy"), bytes_moved(layer, len(x), backward=which == BOTH))
        for name, seconds in taken.items():
            note = notes.get(name, "")
            if name == _COO and which == BOTH and not methods[name].weight.requires_grad:
                note = "gradient of x only: PyTorch forms that of the weights as a dense matrix"
            rows.append(
                {
                    **case,
                    "pass": which,
                    "method": name,
                    "seconds": seconds,
                    "ms": spread([1e3 * s for s in seconds]),
                    "over": {
                        "floor": times(seconds, least),
                        "thesis": times(seconds, taken["thesis"]),
                        "sparse": times(seconds, taken["sparse"]),
                    },
                    "note": note,
                }
            )
    return {"rows": rows, "skipped": skipped}


def _work(method: nn.Module, x: Tensor, grad: Tensor | None) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.no_grad():
            return method(x)

    def both() -> None:
        x.grad = None
        method.zero_grad(set_to_none=True)
        method(x).backward(grad)

    return forward if grad is None else both


def _compiled(layer: SparseLinear, x: Tensor, grad: Tensor) -> tuple[nn.Module, str]:
    torch.compiler.reset()  # otherwise a second batch size is compiled for dynamic shapes
    compiled = copy.copy(layer)
    compiled.compile()
    seconds = timed(lambda: compiled(x).backward(grad))()
    return compiled, f"compiling {len(x)} × {layer.in_features:,} took {seconds:.1f} s"
