from __future__ import annotations

import pytest
import torch

from sparsehyper._util.objectives import squares_within, variance_within


@pytest.mark.parametrize("value", [-3.4583, 0.1, 0.3, 7.0])
@pytest.mark.parametrize("count", [10, 40, 1000])
def test_equal_numbers_have_no_variance(value, count):
    squares = float(squares_within(torch.full((count, 1), value)))
    assert variance_within(squares, [count]) is None


def test_the_variance_of_numbers_far_from_zero():
    y = torch.randn(50, 1)
    assert squares_within(torch.zeros(0, 1)) == 0
    expected = float(y.var())
    assert variance_within(float(squares_within(y + 100)), [50]) == pytest.approx(
        expected, rel=1e-4
    )
