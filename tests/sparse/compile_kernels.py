"""Compile the kernels of two chains for a GPU of compute capability 9.0, which need not be there.

Triton's interpreter takes what its compiler refuses, so this runs without it, in a process of its
own. It prints the names of the kernels.
"""

from __future__ import annotations

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsehyper.sparse.gpu import kernels, launching, products
from sparsehyper.sparse.wirings import Circulant, Indexed

compiled = set()


def compile_kernel(name, dtype, device, layers, warps, constants):
    """In place of ``launching._compiled``: compile, and return what launches nothing."""
    kernel = getattr(kernels, name)
    values = {**dict(constants), "EARLY": True}
    floats = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
    types = {}
    for parameter in kernel.arg_names:
        one = "*i32" if parameter in launching._INTEGERS else floats
        if parameter in values:
            types[parameter] = "constexpr"
        elif parameter in launching._SIZES:
            types[parameter] = "i32"
        elif parameter in launching._TUPLES:
            types[parameter] = ("i32",) * layers
        else:
            types[parameter] = (one,) * layers if parameter in launching._MANY else one
    source = ASTSource(kernel, types, values)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    compiled.add(name)
    return {(programs, 1, 1): lambda *_: None for programs in range(10_000)}, ()


def run(wirings, widths, rows, dtype):
    """Both directions of a chain of layers with shared weights."""
    layers = [wiring.layer(torch.device("cpu")) for wiring in wirings]
    weights = [
        torch.zeros(wiring.fan_in, -(-m // 3), dtype=dtype)
        for wiring, m in zip(wirings, widths, strict=True)
    ]
    x = torch.zeros(rows, wirings[0].n_in, dtype=dtype)
    y, between = products.chain(x, weights, layers, widths)
    needs = [True] * len(layers)
    products.chain_adjoint(
        torch.zeros_like(y), x, between, weights, layers, widths, needs_x=True, needs=needs
    )


if __name__ == "__main__":
    launching._compiled = compile_kernel
    first, second, third = (Circulant(n, [[0, 1]] * 3) for n in (20, 50, 130))
    run([first, second], [50, 130], 1, torch.float32)
    run([third], [300], 8, torch.bfloat16)
    run([Indexed(50, torch.zeros(2, 130, dtype=torch.int32))], [130], 8, torch.float32)
    print(*sorted(compiled))
