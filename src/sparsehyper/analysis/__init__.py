"""Analysis of hypernetworks: wiring, rank, cost, geometry of tasks, statistics of layers."""

from __future__ import annotations

from sparsehyper.analysis.layers import layer_statistics
from sparsehyper.analysis.operations import count_multiply_adds, count_operations
from sparsehyper.analysis.paths import Line, Plane, line, plane
from sparsehyper.analysis.rank import EffectiveRank, effective_rank
from sparsehyper.analysis.summary import summarize
from sparsehyper.analysis.vectors import (
    METRICS,
    Projection,
    distances,
    generated_weights,
    nearest_vectors,
    project,
    task_embeddings,
)
from sparsehyper.analysis.wiring import Connectivity, connectivity, trace

__all__ = [
    "METRICS",
    "Connectivity",
    "EffectiveRank",
    "Line",
    "Plane",
    "Projection",
    "connectivity",
    "count_multiply_adds",
    "count_operations",
    "distances",
    "effective_rank",
    "generated_weights",
    "layer_statistics",
    "line",
    "nearest_vectors",
    "plane",
    "project",
    "summarize",
    "task_embeddings",
    "trace",
]
