from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from sparsehyper._util import kernels
from sparsehyper.sparse import SparseLinear


def test_a_lack_of_kernels_is_said_once_and_the_work_is_done(monkeypatch):
    layer, x = SparseLinear(20, 40, 2), torch.randn(3, 20)
    expected = layer(x)
    monkeypatch.setattr(kernels, "compiled", None)
    kernels._warn.cache_clear()
    with pytest.warns(UserWarning, match="without its C kernels.*`sparsehyper doctor`"):
        torch.testing.assert_close(layer(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)


def test_microsofts_compiler_takes_the_parallel_loops():
    # C3015, "initialization in OpenMP 'for' statement has improper form": the kernels would be
    # built again without threads, and nothing but a warning of the build would say so.
    source = Path(kernels.__file__).with_name("_kernels.c")
    if not source.exists():
        pytest.skip("only the repository has the source")
    text = source.read_text(encoding="utf-8")
    loops = re.findall(r"#pragma omp parallel for[^\n]*\n\s*for \(([^;]*);", text)
    assert loops
    assert all(re.fullmatch(r"\w+ = 0", loop) for loop in loops)
    assert not re.search(r"\b(min|max)\(", text)  # macros there, in older versions
