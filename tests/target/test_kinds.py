from __future__ import annotations

from enum import Enum

import numpy as np
import pytest
import torch

from sparsehyper.target.kinds import Kinds


class Mode(Enum):
    FAST, SLOW = 1, 2


class Setting:
    pass


@pytest.mark.parametrize("kind", [int, float, np.float32])
def test_after_eight_numbers_the_others_are_one_kind_with_the_least_that_was_found(kind):
    kinds = Kinds()
    for i in range(8):
        assert not kinds.of("a", [kind(i)])
        kinds.of("a", [kind(i)])["x"] = i != 3
    assert kinds.of("a", [kind(8)]) == kinds.of("a", [kind(99)]) == {"x": False}
    assert [kinds.of("a", [kind(i)])["x"] for i in (2, 3)] == [True, False]
    assert not kinds.of("b", [kind(9)])


def test_numbers_without_a_trial_do_not_count():
    kinds = Kinds()
    for i in range(20):
        kinds.of("a", [i])
    kinds.of("a", [20])["x"] = 1
    assert not kinds.of("a", [21])


@pytest.mark.parametrize(
    "values", [(True, False), ("a", "b"), (None, 1), (1, 1.0), (torch.int8, torch.int16), Mode]
)
def test_other_values_stay_apart(values):
    kinds, (one, two) = Kinds(), values
    kinds.of("a", [one])["x"] = 1
    assert kinds.of("a", [one])
    assert not kinds.of("a", [two])


def test_an_object_is_itself_only_and_new_ones_are_refused_in_the_end():
    kinds, setting = Kinds(), Setting()
    for i in range(20):
        kinds.of("a", [setting, i])["x"] = 1
    assert kinds.of("a", [setting, 99])
    for _ in range(7):
        assert not kinds.of("a", [Setting(), 0])
    with pytest.raises(TypeError, match="others in every batch"):
        kinds.of("a", [Setting(), 0])
    with pytest.raises(TypeError):
        kinds.of("b", [np.zeros(2)])
