"""Sparse layers of fixed fan-in, independent of hypernetworks; README.md says how they work."""

from sparsehyper.sparse.linear import SparseLinear, chain, shared_columns
from sparsehyper.sparse.topology import FAN_IN_SCHEDULES, TOPOLOGIES, layer_fan_ins, layer_sizes

__all__ = [
    "FAN_IN_SCHEDULES",
    "TOPOLOGIES",
    "SparseLinear",
    "chain",
    "layer_fan_ins",
    "layer_sizes",
    "shared_columns",
]
