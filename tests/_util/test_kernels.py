from __future__ import annotations

import warnings

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
