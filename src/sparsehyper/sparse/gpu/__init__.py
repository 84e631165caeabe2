"""The products of ``wirings`` by kernels in Triton: on a GPU, in float32 and bfloat16.

PyTorch's Linux builds for CUDA bring Triton along. Without it `takes` and `serves` are never true,
and sparse layers run in plain PyTorch.
"""

from sparsehyper.sparse.gpu.operators import compiled_chain
from sparsehyper.sparse.gpu.products import (
    Layer,
    adjoint,
    chain,
    chain_adjoint,
    serves,
    suits,
    takes,
)

__all__ = [
    "Layer",
    "adjoint",
    "chain",
    "chain_adjoint",
    "compiled_chain",
    "serves",
    "suits",
    "takes",
]
