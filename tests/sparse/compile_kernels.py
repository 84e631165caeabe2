"""Compile the kernels of some chains for a GPU of compute capability 9.0, which need not be there.

Triton's interpreter takes what its compiler refuses, so this runs without it, in a process of its
own. It prints the names of the kernels, each with how often it was compiled.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsehyper.sparse.gpu import kernels, launching, products
from sparsehyper.sparse.wirings import Circulant, Indexed

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32"}

compiled = {}


def compile_kernel(name, dtype, device, layers, warps, constants):
    """In place of ``launching._compiled``: compile, and return what launches nothing."""
    kernel = getattr(kernels, name)
    values = {**dict(constants), "EARLY": True}
    samples = launching.sample_arguments(kernel.arg_names, dtype, layers)
    types = {name: type_of(samples[name]) if name in samples else "constexpr"
             for name in kernel.arg_names}  # fmt: skip
    source = ASTSource(kernel, types, values)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    compiled[name, dtype, layers, constants] = name
    return {(programs, 1, 1): lambda *_: None for programs in range(10_000)}, ()


def type_of(sample):
    if isinstance(sample, tuple):
        return tuple(map(type_of, sample))
    return "i32" if isinstance(sample, int) else f"*{NAMES[sample.dtype]}"


def run(sizes, fan_in, rows, dtype, share=1, circulant=True, needs_x=True):
    """Both directions of a chain of layers of these numbers of units."""
    wirings = [
        Circulant(n, [[0] * fan_in] * -(-m // n))
        if circulant
        else Indexed(n, torch.zeros(fan_in, m, dtype=torch.int32))
        for n, m in pairwise(sizes)
    ]
    layers = [wiring.layer(torch.device("cpu")) for wiring in wirings]
    weights = [torch.zeros(fan_in, -(-m // share), dtype=dtype) for m in sizes[1:]]
    x = torch.zeros(rows, sizes[0], dtype=dtype)
    y, between = products.chain(x, weights, layers, sizes[1:])
    needs = [True] * len(layers)
    products.chain_adjoint(
        torch.zeros_like(y), x, between, weights, layers, sizes[1:], needs_x, needs
    )


if __name__ == "__main__":
    launching._compiled = compile_kernel
    run([20, 50, 130], 2, 1, torch.float32, share=3)
    run([20, 50, 130], 2, 8, torch.bfloat16)
    run([130, 300], 2, 8, torch.bfloat16, share=3)
    run([130, 300], 2, 1, torch.float32)
    run([30, 100], 18, 1, torch.float32)  # in several launches
    run([130, 300], 2, 1, torch.float32, needs_x=False)
    run([50, 130], 2, 8, torch.float32, share=3, circulant=False)
    run([50, 130], 2, 1, torch.bfloat16, circulant=False)
    for name, count in sorted(Counter(compiled.values()).items()):
        print(name, count)
