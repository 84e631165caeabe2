"""Bytes and time of data parallel training: the gradient of θ, of all parameters, and sharded.

    python benchmarks/exchange.py [--width 512] [--rounds 20] [--out FILE.json]

Two processes of one thread each on this machine, by gloo, train a sparse hypernetwork (linear
fan-in, learned base) for an MLP with two hidden layers, 32 images each a step. *Bytes* are those
that a process hands to collectives in a step, by PyTorch's profiler: of reductions, the vector; of
gathering and scattering, the whole of what is gathered or scattered. *Time* is the median over
steps with the update, the ways taking turns in every round. `tasks` are those of a step's batch,
the same in both processes; the way that `train` chooses by itself is marked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.training import Processes, TrainConfig
from sparsehyper.training.isolation import ChildError, calls_in_processes
from sparsehyper.training.optim import build_optimizer
from sparsehyper.training.parallel import Replicated, ThetaGradient
from sparsehyper.training.sharded import Sharded

TASKS = (1, 2, 4, 8)
WAYS = ("theta", "all parameters", "sharded")
WARM_UP = 3
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "allgather", "broadcast")


def model_of(width: int) -> HyperNetwork:
    target = nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
    )
    return HyperNetwork(target, Sparse(), TaskEmbedding(max(TASKS), 64))


class Way:
    """One way of training, which makes steps."""

    def __init__(self, way: str, tasks: int, width: int, here: Processes) -> None:
        self.way, self.tasks = way, tasks
        config = TrainConfig(1, device="cpu")
        model = model_of(width)
        optimizer = build_optimizer(config, model.parameters())
        kind = Sharded if way == "sharded" else Replicated
        self.parallel = kind(model, optimizer, config, here)
        rng = torch.Generator().manual_seed(here.rank)
        self.x = torch.randn(32, 784, generator=rng)
        self.y = torch.randint(10, [32], generator=rng)
        self.task: Any = torch.arange(32) % tasks if tasks > 1 else 0
        self.generated = model.target.numel
        self.trained = sum(p.numel() for p in model.parameters())

    def step(self) -> None:
        cost = {"theta": 0, "all parameters": 10**12}.get(self.way, 0)
        self.parallel.optimizer.zero_grad()
        with (
            mock.patch.object(ThetaGradient, "cost", return_value=cost),
            self.parallel.part(0, self.task),
        ):
            F.cross_entropy(self.parallel(self.x, task=self.task), self.y).backward()
        self.parallel.finish()
        self.parallel.optimizer.step()

    def bytes(self) -> int:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
            self.step()
        total = 0
        for event in found.events():
            if event.name.startswith("gloo:") and any(c in event.name for c in COLLECTIVES):
                total += 4 * max((prod(s) for s in event.input_shapes if s), default=0)
        return total


def measure(rank: int, store: str, width: int, rounds: int) -> list[dict[str, Any]]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    here, rows = Processes(torch.device("cpu"), rank, 2), []
    for tasks in TASKS:
        ways = [Way(way, tasks, width, here) for way in WAYS]
        for way in ways:
            for _ in range(WARM_UP):
                way.step()
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in ways:
                here.wait()
                started = time.perf_counter()
                way.step()
                seconds[way.way].append(time.perf_counter() - started)
        for way in ways:
            theta = getattr(way.parallel, "_theta", None)
            chosen = theta is not None and tasks * way.generated < theta.saved
            rows.append(
                {
                    "tasks": tasks,
                    "way": way.way,
                    "chosen": way.way == ("theta" if chosen else "all parameters"),
                    "generated": way.generated,
                    "trained": way.trained,
                    "bytes": way.bytes(),
                    "ms": 1e3 * statistics.median(seconds[way.way]),
                }
            )
    here.wait()
    dist.destroy_process_group()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        calls = [(rank, f"{folder}/store", asked.width, asked.rounds) for rank in range(2)]
        found = dict(calls_in_processes(measure, calls, workers=2, threads=1))
    for outcome in found.values():
        if isinstance(outcome, ChildError):
            raise outcome
    rows = found[0]
    first = rows[0]
    print(f"{first['generated']:,} generated, {first['trained']:,} trained parameters")
    print("| tasks | exchanged | MB a step | of all parameters | ms a step | chosen |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        (plain,) = (r for r in rows if r["tasks"] == row["tasks"] and r["way"] == "all parameters")
        print(
            f"| {row['tasks']} | {row['way']} | {row['bytes'] / 1e6:.2f} | "
            f"{row['bytes'] / plain['bytes']:.2f} | {row['ms']:.0f} | "
            f"{'yes' if row['chosen'] else ''} |"
        )
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
