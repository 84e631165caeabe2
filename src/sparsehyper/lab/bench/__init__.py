"""Benchmarks: the sparse layer, generators and training steps against what they compete with."""

from sparsehyper.lab.bench.run import GROUPS, bench
from sparsehyper.lab.bench.sizes import FULL, QUICK, Sizes

__all__ = ["FULL", "GROUPS", "QUICK", "Sizes", "bench"]
