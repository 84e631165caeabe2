"""Train one hypernetwork that generates the parameters of any PyTorch module for many tasks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsehyper._public import *  # noqa: F403

    __version__: str

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
    "OutputRegulariser",
    "Prototypes",
    "Ridge",
    "Sparse",
    "SparseLinear",
    "SupportSet",
    "TaskEmbedding",
    "TaskExamples",
    "TaskFeatures",
    "TaskProfiles",
    "adapt_task",
    "adapt_tasks",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
    "task_profiles",
    "unroll",
]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, which the command line's help must not wait for.
    if name in __all__:
        return getattr(importlib.import_module("sparsehyper._public"), name)
    if name == "__version__":
        from importlib import metadata

        return metadata.version("sparsehyper")
    raise AttributeError(f"module 'sparsehyper' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
