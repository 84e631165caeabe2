"""Does a GPU compute what the CPU computes? Relative errors of outputs and gradients."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper.adaptation import fit_embedding
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Chunked, Generator, LowRank, Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.bench.targets import BasicBlock
from sparsehyper.sparse import SparseLinear
from sparsehyper.training import TrainConfig, train

# Largest relative errors: of sums in another order, and of numbers of 8 bits.
_EXACT, _ROUGH = 1e-3, 3e-2
_TASKS = 6


def check_gpu(device: torch.device, seed: int) -> list[dict[str, Any]]:
    """One row for each check: ``check``, the relative ``error``, its ``limit``, and ``right``.

    A check that raises has the error None and a ``reason``.
    """
    rows: list[dict[str, Any]] = []
    for name, limit, measure in _checks(device, seed):
        row: dict[str, Any] = {"check": name, "error": None, "limit": limit, "right": False}
        try:
            with _float32_convolutions():
                error = measure()
            row["error"] = error if math.isfinite(error) else None
            row["right"] = error <= limit
        except Exception as raised:  # the others are still of interest
            row["reason"] = f"{type(raised).__name__}: {raised}"[:500]
        rows.append(row)
    return rows


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Context in which convolutions do not round their inputs to 10 bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


Check = tuple[str, float, Callable[[], float]]


def _checks(device: torch.device, seed: int) -> Iterator[Check]:
    kinds = [
        (topology, share) for topology in ("circulant", "uniform", "local") for share in (1, 9)
    ]
    for (topology, share), dtype, batch, (n_in, n_out) in itertools.product(
        kinds, (torch.float32, torch.bfloat16), (1, 7), ((300, 650), (5000, 12_345))
    ):
        shared = "" if share == 1 else f", {share} outputs a weight"
        yield (
            f"layer, {topology}{shared}, {str(dtype)[6:]}, {n_in} → {n_out}, batch {batch}",
            _EXACT if dtype == torch.float32 else _ROUGH,
            partial(_layer, device, seed, topology, share, dtype, batch, n_in, n_out),
        )
    generators: dict[str, Generator] = {
        "sparse": Sparse(),
        "sparse, 30 outputs a weight": Sparse(share=30),
        "sparse, not linear": Sparse(growth=8, topology="local", activation="prelu", bias=True),
        "chunked": Chunked(7),
        "low rank": LowRank(),
    }
    for kind, generator in generators.items():
        for mixed in (False, True):
            name = f"{'mixed batch' if mixed else 'batch of one task'}, {kind}"
            yield name, _EXACT, partial(_model, device, seed, generator, mixed)
    yield "bf16 autocast", _ROUGH, partial(_autocast, device, seed)
    yield "a model of its own", _EXACT, partial(_materialized, device, seed)
    yield "the embedding of a new task", _ROUGH, partial(_fitted, device, seed)
    if device.type == "cuda":
        yield "training steps as CUDA graphs", _EXACT, partial(_replayed, device, seed)


def _layer(
    device: torch.device,
    seed: int,
    topology: str,
    share: int,
    dtype: torch.dtype,
    batch: int,
    n_in: int,
    n_out: int,
) -> float:
    layer = SparseLinear(n_in, n_out, 3, topology=topology, share=share, seed=seed)
    x, g = torch.randn(batch, n_in), torch.randn(batch, n_out)
    found = []
    for where, kind in ((device, dtype), (torch.device("cpu"), torch.float64)):
        module = copy.deepcopy(layer).to(where, kind)
        x_ = x.to(where, dtype).to(kind).clone().requires_grad_()
        y = module(x_)
        y.backward(g.to(where, dtype).to(kind))
        assert x_.grad is not None
        assert module.weight.grad is not None
        found.append([y, x_.grad, module.weight.grad])
    return _error(*found)


def _model(device: torch.device, seed: int, generator: Generator, mixed: bool) -> float:
    """Outputs, gradients and batch-norm statistics of two steps."""
    hnet = _hypernetwork(seed, generator)
    x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 5
    ids: Any = torch.arange(24) % _TASKS if mixed else 2
    found = []
    for where in (device, torch.device("cpu")):
        model = copy.deepcopy(hnet).to(where)
        for _ in range(2):  # the first may find out how to run the second
            model.zero_grad()
            out = model(x.to(where), task=ids)
            F.cross_entropy(out, y.to(where)).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        statistics = [b for b in model.target.module.buffers() if b.is_floating_point()]
        found.append([out, *gradients, *statistics])
    return _error(*found)


def _autocast(device: torch.device, seed: int) -> float:
    hnet, x = _hypernetwork(seed), torch.randn(24, 3, 8, 8)
    expected = hnet(x, task=2)
    hnet.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        found = [hnet(x.to(device), task=2).float()]
        found.append(hnet(x.to(device), task=torch.full((24,), 2)).float())
    return _error(found, [expected] * 2)


def _materialized(device: torch.device, seed: int) -> float:
    hnet, x = _hypernetwork(seed).to(device).eval(), torch.randn(24, 3, 8, 8, device=device)
    return _error([hnet.materialize(2)(x)], [hnet(x, task=2)])


def _fitted(device: torch.device, seed: int) -> float:
    found = []
    for where in (device, torch.device("cpu")):
        x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        y = (x.mean((1, 2, 3)) > 0).long()
        fit = fit_embedding(_hypernetwork(seed).to(where), "new", (x.to(where), y), steps=4)
        found.append([fit.embedding])
    return _error(*found)


def _hypernetwork(seed: int, generator: Generator | None = None) -> HyperNetwork:
    torch.manual_seed(0)
    target = nn.Sequential(
        nn.Conv2d(3, 7, 3, 1, 1, bias=False), BasicBlock(7, 10, 2), nn.Flatten(), nn.Linear(160, 5)
    )
    return HyperNetwork(target, generator or Sparse(), TaskEmbedding(_TASKS, 16), seed=seed)


def _replayed(device: torch.device, seed: int) -> float:
    """Weights after some steps of training, recorded against plain, single and mixed."""
    errors = []
    for tasks in (1, 3):
        found = []
        for graphs in (True, False):
            hnet = _hypernetwork(seed)
            config = TrainConfig(8, optimizer="sgd", device=str(device), cuda_graphs=graphs)
            train(hnet, _Source(tasks), _Source(tasks), config, quiet=True)
            found.append([*hnet.parameters(), *(b.float() for b in hnet.target.module.buffers())])
        errors.append(_error(*found))
    return max(errors)


class _Source:
    """Random images of several tasks, in batches of 24."""

    steps_per_epoch = 4
    counts = (24,) * _TASKS

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator().manual_seed(100 * epoch + step)
        tasks = torch.randperm(_TASKS, generator=rng)[: self._tasks]
        x = torch.randn(24, 3, 8, 8, generator=rng)
        return x, torch.arange(24) % 5, tasks.repeat_interleave(24 // self._tasks)

    def batches(self, task: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # noqa: ARG002
        yield self.batch(task, 0)


def _error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of some tensors."""
    return max(
        float((a.detach().double().cpu() - b.detach().double().cpu()).norm())
        / max(float(b.detach().double().norm()), 1e-9)
        for a, b in zip(found, expected, strict=True)
    )
