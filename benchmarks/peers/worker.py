"""Another library's generator, timed at the request of ``sparsehyper bench --peers``.

    python worker.py LIBRARY NUMEL BUDGET LATENT THREADS SEED

The protocol is that of ``sparsehyper.lab.bench.peers``, which starts this with the Python of an
environment without sparsehyper.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

Generator = tuple[nn.Module, Callable[[Tensor], Tensor]]


def hypnettorch(numel: int, budget: int, latent: int) -> Generator:
    """Chunked: two hidden layers of twice the latent size, as few chunks as fit the budget."""
    from hypnettorch.hnets import ChunkedHMLP

    hidden = 2 * latent
    fixed = hidden * (2 * latent + 1) + hidden * (hidden + 1)

    def size(chunks: int) -> int:
        return fixed + chunks * latent + (hidden + 1) * math.ceil(numel / chunks)

    chunks = next(c for c in range(1, numel) if size(c) <= budget)
    module = ChunkedHMLP(
        [[numel]],
        chunk_size=math.ceil(numel / chunks),
        chunk_emb_size=latent,
        cond_in_size=latent,
        layers=(hidden, hidden),
        num_cond_embs=0,  # the embedding comes from outside, as for the others
        verbose=False,
    )
    return module, lambda z: module.forward(cond_input=z, ret_format="flattened")


def hyperlight(numel: int, budget: int, latent: int) -> Generator:
    """One dense output layer, its last hidden layer as narrow as the budget asks."""
    from hyperlight import HyperNet

    width = budget // numel - 1  # the output layer has a bias for every parameter
    module = HyperNet(
        {"z": (latent,)}, {"theta.weight": (numel, 1)}, [2 * latent, width], encoding=None
    )
    return module, lambda z: module(z=z)["theta.weight"].view(1, -1)


def main() -> None:
    library = sys.argv[1]
    numel, budget, latent, threads, seed = map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    warnings.simplefilter("ignore")
    # Whatever the libraries print goes to stderr; the answers are alone on stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        module, generate = {"hypnettorch": hypnettorch, "hyperlight": hyperlight}[library](
            numel, budget, latent
        )
        z = torch.rand(1, latent, requires_grad=True)
        grad = torch.randn(1, numel)
        assert generate(z).shape == grad.shape
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    trainable = sum(p.numel() for p in module.parameters())
    print(json.dumps({"library": library, "trainable": trainable}), file=answers)
    for _ in sys.stdin:
        start = time.perf_counter()
        z.grad = None
        module.zero_grad(set_to_none=True)
        generate(z).backward(grad)
        print(time.perf_counter() - start, file=answers)


if __name__ == "__main__":
    main()
