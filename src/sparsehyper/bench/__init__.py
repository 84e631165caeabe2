"""Benchmarks: the sparse layer, generators and training steps against what they compete with."""

from sparsehyper.bench.run import GROUPS, bench
from sparsehyper.bench.sizes import FULL, QUICK, Sizes

__all__ = ["FULL", "GROUPS", "QUICK", "Sizes", "bench"]
