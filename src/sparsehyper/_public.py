"""The public names, which `sparsehyper` hands out when they are first asked for."""

from sparsehyper.adaptation import (
    Adapted,
    Fit,
    Identified,
    TaskProfiles,
    adapt_task,
    adapt_tasks,
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
    TaskExamples,
    TaskFeatures,
)
from sparsehyper.continual import OutputRegulariser
from sparsehyper.generators import Butterfly, Chunked, Composed, Dense, Generator, LowRank, Sparse
from sparsehyper.heads import Prototypes, Ridge
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.recurrent import unroll
from sparsehyper.sparse import SparseLinear
