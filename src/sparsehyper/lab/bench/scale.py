"""Large targets: time and memory to build, to generate, and of a training step.

Each is measured in a process of its own. The memory of a training step is divided into

    peak = weights + gradients + optimiser state + buffers + target's activations + x · 4 N bytes

The target's activations are measured too: they are the plain target's peak in the same step, less
its weights, gradients and optimiser state. x is the additional cost of generating, in vectors of N
float32 numbers: θ, its gradient, and what the generator saves for its backward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Generator, Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.bench import memory
from sparsehyper.lab.bench.generators import LATENT
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.steps import make_step
from sparsehyper.lab.bench.targets import LARGE_TARGETS
from sparsehyper.lab.bench.timing import alternate, timed
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.isolation import DiedError, call_in_process

_OPTIMIZERS = ("adam", "adafactor")
_GENERATORS: dict[str, Generator] = {"sparse": Sparse(), "sparse, growth 8": Sparse(growth=8)}
_TASKS = 2

_MOST_ROUNDS = 3  # a step takes seconds

# Weights, gradients and two moments take 16 bytes; 8 more are for all vectors of length N.
_BYTES_PER_WEIGHT = 24


def measure_scale(sizes: Sizes, rounds: int, seed: int) -> dict[str, Any]:
    """One row for every target, generator and optimiser, and the reason for any left out."""
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    if not memory.can_measure():
        reason = "this system does not report a process's peak memory"
        return {"rows": [], "skipped": [{"target": t, "reason": reason} for t in sizes.scale]}
    rounds = min(rounds, _MOST_ROUNDS)
    for target in sizes.scale:
        for optimizer in _OPTIMIZERS:
            plain = call_in_process(_plain_target, target, optimizer, rounds, seed)
            for name, generator in _GENERATORS.items():
                case = {"target": target, "optimizer": optimizer, "method": name}
                need = _BYTES_PER_WEIGHT * generator.count_parameters(
                    LATENT, LARGE_TARGETS[target].numel
                )
                if reason := memory.shortage(need):
                    skipped.append({**case, "reason": reason})
                    continue
                arguments = (target, generator, optimizer, rounds, seed)
                try:
                    row = call_in_process(_hypernetwork, *arguments)
                except DiedError as error:
                    skipped.append({**case, "reason": str(error)})
                else:
                    rows.append({**case, **_account(row, plain)})
    return {"rows": rows, "skipped": skipped}


def _plain_target(target: str, optimizer: str, rounds: int, seed: int) -> dict[str, Any]:
    x, y, before = _begin(target, seed)
    module = LARGE_TARGETS[target].make()
    return _step(module, lambda: module(x), y, optimizer, rounds, before)


def _hypernetwork(
    target: str, generator: Generator, optimizer: str, rounds: int, seed: int
) -> dict[str, Any]:
    x, y, before = _begin(target, seed)
    module = LARGE_TARGETS[target].make()
    memory.reset_peak()
    start = time.perf_counter()
    hnet = HyperNetwork(module, generator, TaskEmbedding(_TASKS, LATENT), base="zeros")
    built = {
        "numel": hnet.target.numel,
        "build_seconds": time.perf_counter() - start,
        "build_peak": memory.peak() - before,
    }
    del module
    with torch.no_grad():
        generate = alternate({"generate": timed(lambda: hnet.generate(0))}, rounds)["generate"]
    built["generate_seconds"] = statistics.median(generate)
    return {**built, **_step(hnet, lambda: hnet(x, task=0), y, optimizer, rounds, before)}


def _begin(target: str, seed: int) -> tuple[Tensor, Tensor, int]:
    """Make a batch; returns it and the bytes that the process holds without a model."""
    torch.manual_seed(seed)
    x, y = LARGE_TARGETS[target].batch()
    one = nn.Linear(8, 8)
    make_step(one, lambda: one(torch.ones(1, 8)), y.new_zeros(1))()  # loads the libraries
    return x, y, memory.resident()


def _step(
    model: nn.Module,
    call: Callable[[], Tensor],
    labels: Tensor,
    optimizer: str,
    rounds: int,
    before: int,
) -> dict[str, Any]:
    """Time and peak memory of a training step, once the optimiser has its state."""
    step = make_step(model, call, labels, TrainConfig(steps=1, optimizer=optimizer))
    state = step().state
    memory.reset_peak()
    seconds = alternate({"step": timed(step)}, rounds)["step"]
    parameters = list(model.parameters())
    return {
        "peak": memory.peak() - before,
        "step_seconds": statistics.median(seconds),
        "seconds": seconds,
        "weights": _bytes(parameters),
        "gradients": _bytes(p.grad for p in parameters if p.grad is not None),
        "state": _bytes(t for s in state.values() for t in s.values() if isinstance(t, Tensor)),
        "buffers": _bytes(model.buffers()),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def _working_memory(row: dict[str, Any]) -> int:
    """Bytes of a step other than weights, gradients, optimiser state and buffers."""
    return row["peak"] - sum(row[part] for part in ("weights", "gradients", "state", "buffers"))


def _account(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    activations = max(0, _working_memory(plain))
    return {
        **row,
        "activations": activations,
        "x": (_working_memory(row) - activations) / (4 * row["numel"]),
        "over_plain": row["step_seconds"] / plain["step_seconds"],
        "plain": plain,
    }
