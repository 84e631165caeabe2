"""The public names; `sparsehyper` hands each out when it is first asked for."""

from sparsehyper.adaptation import (
    Adapted,
    Fit,
    Identified,
    TaskProfiles,
    adapt_task,
    average_predictions,
    fine_tune,
    fit_embedding,
    fit_embeddings,
    identify_task,
    task_profiles,
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
    "Adapted",
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
    "TaskProfiles",
    "adapt_task",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
    "task_profiles",
    "unroll",
]
