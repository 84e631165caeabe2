"""One hypernetwork for many tasks: sparse, chunked and dense generators for any PyTorch module."""

from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Chunked, Dense, Generator, Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.sparse import SparseLinear

__all__ = [
    "Chunked",
    "Dense",
    "Generator",
    "HyperNetwork",
    "Sparse",
    "SparseLinear",
    "TaskEmbedding",
]
