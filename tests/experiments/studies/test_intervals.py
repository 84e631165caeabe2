"""Intervals and verdicts."""

from __future__ import annotations

import math

import pytest

from sparsehyper.experiments.studies.intervals import paired, verdict


def test_intervals():
    found = paired([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found["mean"] == pytest.approx(0.3)
    # Student's t with 4 degrees of freedom: 2.776 standard errors.
    assert found["high"] - found["mean"] == pytest.approx(2.7764 * math.sqrt(0.025 / 5), abs=1e-4)
    assert paired([0.1]) == {"mean": 0.1, "low": None, "high": None, "pairs": 1}
    assert verdict(paired([0.1])) == "undecided"
    assert verdict({"low": 0.1, "high": 0.2}) == "supported"
    assert verdict({"low": -0.2, "high": -0.1}) == "not supported"
    assert verdict({"low": -0.2, "high": 0.1}) == "undecided"
