"""Time of a whole training step: a hypernetwork's against its plain target's.

    python benchmarks/step_time.py [--rounds 15] [--json FILE]

The target is a residual network without batch norm of 426,426 parameters, at 50 images of
3 × 32 × 32. A step is forward, cross entropy, backward, gradient clipping and fused Adam. The
variants take turns, step by step, so that the machine's drift falls on all of them alike; the
figure is the median over rounds of the ratio to the plain target's step of the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper import Chunked, HyperNetwork, Sparse, TaskEmbedding

BATCH, TASKS, WARMUP = 50, 10, 3


class Residual(nn.Module):
    """One or two 3 × 3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, n_in: int, n_out: int, convolutions: int = 2) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, n_out, 3, s, 1) for a, s in [(n_in, stride), (n_out, 1)][:convolutions]
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolutions[0](x)
        for convolution in self.convolutions[1:]:
            y = convolution(y.relu())
        return (y + self.shortcut(x)).relu()


def resnet() -> nn.Module:
    """About thirty layers in three stages of 16, 32 and 64 channels: 426,426 parameters."""
    stages = [
        [Residual(16, 16) for _ in range(4)] + [Residual(16, 16, 1)],
        [Residual(16, 32)] + [Residual(32, 32) for _ in range(4)],
        [Residual(32, 64)] + [Residual(64, 64) for _ in range(3)] + [Residual(64, 64, 1)],
    ]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.ReLU(),
        *(block for stage in stages for block in stage),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def make_step(model: nn.Module, call: Callable[[Tensor, int], Tensor]) -> Callable[[int], float]:
    """A training step of ``model``, given its number, that returns the seconds it took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    x = torch.randn(BATCH, 3, 32, 32)
    y = torch.randint(10, (BATCH,))

    def step(number: int) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(call(x, number % TASKS), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    plain = resnet()
    numel = sum(p.numel() for p in plain.parameters())
    assert numel == 426_426
    steps = {"plain target": make_step(plain, lambda x, _: plain(x))}
    for name, spec in {
        "sparse": Sparse(),
        "sparse, growth 8": Sparse(growth=8),
        "chunked at 4 N": Chunked().with_budget(4 * numel, 64, numel),
    }.items():
        hnet = HyperNetwork(resnet(), spec, TaskEmbedding(TASKS))
        steps[name] = make_step(hnet, lambda x, task, hnet=hnet: hnet(x, task=task))

    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-WARMUP, arguments.rounds):
        for name, step in steps.items():
            seconds = step(number % TASKS)
            if number >= 0:
                times[name].append(seconds)
    rows = [
        {
            "variant": name,
            "median_ms": 1e3 * statistics.median(taken),
            "ratio": statistics.median(
                t / p for t, p in zip(taken, times["plain target"], strict=True)
            ),
        }
        for name, taken in times.items()
    ]
    print(f"{'':18} {'median ms':>10} {'÷ plain':>8}")
    for row in rows:
        print(f"{row['variant']:18} {row['median_ms']:10.1f} {row['ratio']:8.3f}")
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        result = {"numel": numel, "batch": BATCH, "rounds": arguments.rounds, "machine": machine}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
