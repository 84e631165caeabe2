"""Training steps: a hypernetwork against its plain target, mixed batches, and first use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper.lab.bench.generators import SMALL, THESIS, hypernetwork
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.targets import mlp, resnet426k
from sparsehyper.lab.bench.timing import TimedRun, alternate, spread, timed, times
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.optim import build_optimizer

TASKS = 10
_CONFIG = TrainConfig(steps=1)


def make_step(
    model: nn.Module,
    call: Callable[[], Tensor],
    labels: Tensor,
    config: TrainConfig = _CONFIG,
) -> Callable[[], Any]:
    """Make a training step: forward, cross entropy, backward, clipping, optimiser."""
    parameters = list(model.parameters())
    optimizer = build_optimizer(config, parameters)

    def step() -> torch.optim.Optimizer:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(call(), labels).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return optimizer

    return step


def measure_steps(sizes: Sizes, rounds: int, seed: int) -> dict[str, Any]:
    """Rows of single-task steps, of mixed batches, and of a new process's first step."""
    torch.manual_seed(seed)
    return {
        "single": _single(sizes, rounds),
        "mixed": [
            row
            for name, make, shape in (
                ("MLP 784-400-400-10", lambda: mlp(784, 400, 400, 10), (1, 28, 28)),
                ("ResNet", resnet426k, (3, sizes.images[1], sizes.images[1])),
            )
            for row in _mixed(name, make, shape, sizes, rounds)
        ],
        "start": _start(rounds),
    }


def _single(sizes: Sizes, rounds: int) -> list[dict[str, Any]]:
    """Steps on a batch of one task, relative to the plain target's step in the same round."""
    batch, side = sizes.images
    x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
    plain = resnet426k()
    numel = sum(p.numel() for p in plain.parameters())
    runs: dict[str, TimedRun] = {"plain target": timed(make_step(plain, lambda: plain(x), y))}
    for name in ("sparse", SMALL, "sparse, growth 8", "chunked", THESIS):
        hnet = hypernetwork(resnet426k(), name, TASKS)
        runs[name] = timed(make_step(hnet, lambda hnet=hnet: hnet(x, task=0), y))  # type: ignore[misc]
    return _rows({"target": "ResNet", "numel": numel, "images": batch}, runs, rounds)


def _mixed(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], sizes: Sizes, rounds: int
) -> list[dict[str, Any]]:
    """Steps on a batch of several tasks, relative to a step that loops over the tasks."""
    tasks, images = sizes.mixed
    x, y = torch.randn(tasks * images, *shape), torch.randint(10, (tasks * images,))
    ids = torch.arange(tasks).repeat_interleave(images)
    hnet = hypernetwork(make(), "sparse", tasks)

    def loop() -> Tensor:
        return torch.cat([hnet(part, task=t) for t, part in enumerate(x.split(images))])

    runs = {
        "loop over tasks": timed(make_step(hnet, loop, y)),
        "one call": timed(make_step(hnet, lambda: hnet(x, task=ids), y)),
    }
    case = {"target": name, "numel": hnet.target.numel, "tasks": tasks, "images": images}
    return _rows(case, runs, rounds)


def _rows(case: dict[str, Any], runs: Mapping[str, TimedRun], rounds: int) -> list[dict[str, Any]]:
    taken = alternate(runs, rounds)
    first = next(iter(taken.values()))
    return [
        {
            **case,
            "method": name,
            "seconds": seconds,
            "ms": spread([1e3 * s for s in seconds]),
            "over": times(seconds, first),
        }
        for name, seconds in taken.items()
    ]


_FIRST_STEP = """
import json, time
from time import perf_counter as clock
start = clock(); import torch
torch_done = clock(); import sparsehyper
imported = clock()
from sparsehyper.lab.bench.targets import resnet426k
target = resnet426k()
x, y = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
ready = clock()
hnet = sparsehyper.HyperNetwork(target, sparsehyper.Sparse(), sparsehyper.TaskEmbedding(10))
built = clock()
torch.nn.functional.cross_entropy(hnet(x, task=0), y).backward()
stepped = clock()
torch.nn.functional.cross_entropy(hnet(x, task=0), y).backward()
print(json.dumps({
    "import torch": torch_done - start, "import sparsehyper": imported - torch_done,
    "build": built - ready, "first step": stepped - built, "second step": clock() - stepped}))
"""


def _start(rounds: int) -> list[dict[str, Any]]:
    """Seconds that a fresh interpreter takes to import, build, and make its first two steps."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-c", _FIRST_STEP]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return [
        {"part": part, "seconds": seconds, "ms": spread([1e3 * s for s in seconds])}
        for part in found[0]
        for seconds in [[run[part] for run in found]]
    ]
