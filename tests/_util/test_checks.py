import re

import numpy as np
import pytest
import torch

from sparsehyper._util.checks import (
    LARGEST,
    check_choice,
    check_integer,
    check_number,
    check_size,
    check_type,
    class_numbers,
    is_whole,
)

INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


@pytest.mark.parametrize("value", [2**63, 10**30, 10**400])
def test_integers_that_no_size_can_be(value):
    with pytest.raises(ValueError, match=rf"^`n` must be at most {LARGEST}, got "):
        check_integer("n", value, minimum=0)
    with pytest.raises(ValueError, match=r"^`n` must be at least 0, got "):
        check_integer("n", -value, minimum=0)


def test_integers_have_a_range():
    check_integer("n", 5, minimum=5, maximum=5)
    with pytest.raises(ValueError, match=r"^`n` must be at most 5, got 6 layers$"):
        check_integer("n", 6, minimum=0, maximum=5, context=" layers")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -(10**400)])
def test_numbers_are_finite_integers_among_them(value):
    with pytest.raises(ValueError, match=r"^`x` must be finite, got "):
        check_number("x", value)


def test_numbers_have_a_range():
    check_number("x", 3, minimum=3, maximum=3)
    with pytest.raises(ValueError, match=r"^`x` must be at most 3, got 3.5$"):
        check_number("x", 3.5, maximum=3)


@pytest.mark.parametrize("value", [torch.zeros(3), np.zeros(3), ["a"], None, 1])
def test_what_is_no_choice_may_be_anything(value):
    with pytest.raises(ValueError, match=re.escape("`x` must be one of 'a', 'b'; got")):
        check_choice("x", value, ["a", "b"])


def test_types_and_sizes():
    with pytest.raises(TypeError, match=r"^`x` must be a name, got 3$"):
        check_type("x", 3, str, "a name")
    with pytest.raises(ValueError, match=r"^`x` would take 1,000,000,000,000 numbers; at most"):
        check_size("`x`", 10**12)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_any_integers_become_int64(dtype):
    labels = torch.tensor([0, 2, 1]).to(dtype)
    assert is_whole(labels)
    assert class_numbers("labels", labels, 3).tolist() == [0, 2, 1]
    assert class_numbers("labels", labels, 3).dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), r"shape \[3\] and dtype torch.float32"),
        (torch.zeros(3, dtype=torch.complex64), r"dtype torch.complex64"),
        (torch.zeros(2, dtype=torch.int64), r"shape \[2\]"),
        (torch.zeros(3, 1), r"shape \[3, 1\] and dtype torch.float32"),
        ([0, 1, 2], r"list"),
        (torch.tensor([0, -1, 2]), r"from 0, got -1"),
    ],
)
def test_labels_that_are_no_class_numbers(labels, message):
    with pytest.raises(ValueError, match=rf"^labels must be class numbers.*{message}.*; so\.$"):
        class_numbers("labels", labels, 3, "; so.")


def test_booleans_are_class_numbers():
    found = class_numbers("labels", torch.tensor([True, False]), 2)
    assert found.dtype == torch.int64
    assert found.tolist() == [1, 0]


def test_labels_in_a_column_are_told_to_leave_it():
    with pytest.raises(
        ValueError, match=r"got shape \[3, 1\] .*; give their only column, `\[:, 0\]`$"
    ):
        class_numbers("labels", torch.zeros(3, 1, dtype=torch.int64), 3, "; so.")


def test_one_hot_labels_are_told_their_numbers():
    one_hot = torch.eye(3)[[0, 2]]
    with pytest.raises(ValueError, match=r"\[2, 3\] .*; they are one-hot, .* `argmax\(1\)`$"):
        class_numbers("labels", one_hot, 2, "; so.")
    with pytest.raises(ValueError, match=r"; so\.$"):
        class_numbers("labels", one_hot / 2, 2, "; so.")
