"""New tasks: the time to fit embeddings, and to make a model from one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsehyper.adaptation import fit_embeddings
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.bench.generators import hypernetwork
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.targets import mlp, resnet426k
from sparsehyper.lab.bench.timing import TimedRun, alternate, spread, timed, times

_KNOWN = 20  # tasks

_TARGETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-128-64-10": (lambda: mlp(784, 128, 64, 10), (1, 28, 28)),
    "ResNet": (resnet426k, (3, 32, 32)),
}


def measure_adaptation(sizes: Sizes, rounds: int, seed: int) -> dict[str, Any]:
    """Measure fitting and making a model.

    The rows ``fits`` are relative to fitting one task, the rows ``models`` to loading a file.
    """
    torch.manual_seed(seed)
    fits, models = [], []
    for name, (make, shape) in _TARGETS.items():
        hnet = hypernetwork(make(), "sparse", _KNOWN)
        together = sizes.together if name.startswith("MLP") else 1  # one ResNet takes seconds
        fits += _fits(name, hnet, shape, sizes.fitted_images, together, rounds)
        models += _models(name, hnet, make, rounds)
    return {"fits": fits, "models": models}


def _fits(
    target: str,
    hnet: HyperNetwork,
    shape: tuple[int, ...],
    images: int,
    together: int,
    rounds: int,
) -> list[dict[str, Any]]:
    def samples() -> tuple[Tensor, Tensor]:
        y = torch.arange(images) % 10
        return torch.randn(images, *shape) + 0.1 * y.view(-1, 1, 1, 1), y

    tasks = {f"new {i}": samples() for i in range(together)}

    def fit(count: int) -> Callable[[], None]:
        some = {name: tasks[name] for name in list(tasks)[:count]}

        def work() -> None:
            fit_embeddings(hnet, some)
            for name in some:
                hnet.remove_task(name)

        return work

    runs = {str(count): timed(fit(count)) for count in sorted({1, together})}
    taken = alternate(runs, rounds)
    return [
        {
            "target": target,
            "numel": hnet.target.numel,
            "tasks": int(count),
            "images": images,
            "seconds": seconds,
            "ms": spread([1e3 * s for s in seconds]),
            "over": times(seconds, taken["1"]),
        }
        for count, seconds in taken.items()
    ]


def _models(
    target: str, hnet: HyperNetwork, make: Callable[[], nn.Module], rounds: int
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file, module = Path(folder, "model.safetensors"), make()
        save_file(hnet.materialize(0).state_dict(), file)
        runs: dict[str, TimedRun] = {
            "safetensors": timed(lambda: module.load_state_dict(load_file(file))),
            "materialize": timed(lambda: hnet.materialize(0)),
        }
        taken = alternate(runs, 5 * rounds)  # they take milliseconds
    return [
        {
            "target": target,
            "numel": hnet.target.numel,
            "method": name,
            "seconds": seconds,
            "ms": spread([1e3 * s for s in seconds]),
            "over": times(seconds, taken["safetensors"]),
        }
        for name, seconds in taken.items()
    ]
