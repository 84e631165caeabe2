"""One hypernetwork for many tasks: many kinds of generators for any PyTorch module."""

from sparsehyper.adaptation import (
    Fit,
    Identified,
    average_predictions,
    fine_tune,
    fit_embedding,
    fit_embeddings,
    identify_task,
)
from sparsehyper.conditioning import (
    Conditioner,
    InputAndTask,
    InputEncoder,
    Noise,
    SupportSet,
    TaskEmbedding,
    TaskFeatures,
)
from sparsehyper.generators import Butterfly, Chunked, Composed, Dense, Generator, LowRank, Sparse
from sparsehyper.heads import Prototypes, Ridge
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.recurrent import unroll
from sparsehyper.sparse import SparseLinear

__all__ = [
    "Butterfly",
    "Chunked",
    "Composed",
    "Conditioner",
    "Dense",
    "Fit",
    "Generator",
    "HyperNetwork",
    "Identified",
    "InputAndTask",
    "InputEncoder",
    "LowRank",
    "Noise",
    "Prototypes",
    "Ridge",
    "Sparse",
    "SparseLinear",
    "SupportSet",
    "TaskEmbedding",
    "TaskFeatures",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
    "unroll",
]
