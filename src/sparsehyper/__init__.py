"""One hypernetwork for many tasks: sparse, chunked and dense generators for any PyTorch module."""

from sparsehyper.adaptation import (
    Fit,
    Identified,
    average_predictions,
    fine_tune,
    fit_embedding,
    fit_embeddings,
    identify_task,
)
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Chunked, Dense, Generator, Sparse
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.sparse import SparseLinear

__all__ = [
    "Chunked",
    "Dense",
    "Fit",
    "Generator",
    "HyperNetwork",
    "Identified",
    "Sparse",
    "SparseLinear",
    "TaskEmbedding",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
]
