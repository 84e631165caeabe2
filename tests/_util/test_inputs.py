from __future__ import annotations

from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sparsehyper._util.inputs import Inputs, as_tensor, labelled, logits_of

A, B, Y = torch.randn(7, 3), torch.arange(7), torch.arange(7) % 2


def both(a, b, scale=1):
    return a.sum(1) * scale + b


@pytest.mark.parametrize(
    "value",
    [
        (A, B),
        [A, B.numpy()],
        {"b": B, "a": A},
        UserDict(a=A.numpy(), b=B),
        (A, B, 1),
        {"a": A, "b": B, "scale": torch.tensor(1)},
    ],
)
def test_a_module_is_called_with_what_was_given(value):
    inputs = Inputs.of(value)
    assert len(inputs) == 7
    rows = torch.tensor([5, 0, 2])
    for some, expected in ((inputs, both(A, B)), (inputs[rows], both(A, B)[rows])):
        torch.testing.assert_close(some.call(both), expected)
    parts = inputs.split(3)
    assert [len(part) for part in parts] == [3, 3, 1]
    torch.testing.assert_close(Inputs.cat(parts).call(both), both(A, B))
    torch.testing.assert_close(inputs[B > 3].call(both), both(A, B)[4:])


def test_equal_samples_are_found_by_all_their_tensors():
    a = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    b = torch.tensor([0, 0, 1, 1, 1])
    assert Inputs.of(a).first_equal.tolist() == [0, 0, 2, 0, 2]
    assert Inputs.of({"a": a, "b": b}).first_equal.tolist() == [0, 0, 2, 3, 2]
    many = torch.arange(1500).repeat(2)
    assert torch.equal(Inputs.of(many).first_equal, many)


@pytest.mark.parametrize(
    "rows",
    [
        torch.randn(4, 3).T[:3],
        torch.randn(3, 2, 2).bfloat16(),
        torch.randn(3, 2, dtype=torch.complex64).conj(),
        torch.arange(3).to(torch.uint16),
        torch.randn(3, 1, requires_grad=True),
    ],
)
def test_equal_samples_are_found_whatever_their_numbers_are(rows):
    column = torch.linspace(-1, 1, 5)[None].T  # with the strides of a row
    assert Inputs.of(column).first_equal.tolist() == [0, 1, 2, 3, 4]
    assert Inputs.of(torch.cat([rows, rows])).first_equal.tolist() == [0, 1, 2, 0, 1, 2]


def test_nested_arguments_keep_their_structure():
    inputs = Inputs.of(({"a": A, "others": [B, None]}, "mean"))
    ((first, how),) = [inputs[:2].args]
    assert how == "mean"
    assert first["others"][1] is None
    assert torch.equal(first["others"][0], B[:2])


def test_arrays_become_tensors_of_the_default_precision():
    assert as_tensor(np.zeros((2, 3))).dtype == torch.float32
    assert as_tensor(np.zeros(2, np.float16)).dtype == torch.float16
    assert as_tensor(np.arange(4)[::-1]).tolist() == [3, 2, 1, 0]
    fixed = np.zeros(2, np.int64)
    fixed.setflags(write=False)
    assert as_tensor(fixed).dtype == torch.int64
    assert as_tensor(A) is A


def test_arrays_of_texts_are_refused():
    with pytest.raises(TypeError, match=r"must hold numbers, got dtype <U4; number classes from 0"):
        as_tensor(np.array(["bags", "hats"]))


@pytest.mark.parametrize(
    "samples",
    [
        (A, Y),
        [A.numpy(), Y.numpy()],
        {"a": A, "labels": Y},
        [{"a": A[:4], "labels": Y[:4]}, {"labels": Y[4:], "a": A[4:]}],
        DataLoader(TensorDataset(A, Y), 4),
        [({"a": a}, y) for a, y in zip(A.split(5), Y.split(5), strict=True)],
        iter([((A[:3],), Y[:3]), ((A[3:],), Y[3:])]),
    ],
)
def test_batches_of_inputs_and_labels(samples):
    batches = list(labelled("`samples`", samples))
    assert torch.equal(torch.cat([y for _, y in batches]), Y)
    found = Inputs.cat([x for x, _ in batches]).call(lambda a: a)
    torch.testing.assert_close(found, A)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (A, "'Tensor'"),
        ([1, 2], "'int'"),
        ({"a": A}, "'dict'"),
        (["words"], "'str'"),
        ((torch.tensor(1.0), Y), "'Tensor'"),
        (TensorDataset(A, Y), "single samples; wrap a data set in a DataLoader"),
        ([{"a": A[0], "labels": 1}], "single samples"),
    ],
)
def test_what_is_no_batch_is_refused(samples, found):
    with pytest.raises(ValueError, match=f"^`x` must be a pair .* or batches of them, got {found}"):
        list(labelled("`x`", samples))


def test_inputs_without_samples_in_common_are_refused():
    with pytest.raises(TypeError, match=r"inputs must be a tensor or an array .*, got a str"):
        Inputs.of("words")
    with pytest.raises(ValueError, match=r"got shapes \[7, 3\], \[6\]"):
        Inputs.of((A, B[:6]))
    with pytest.raises(ValueError, match=r"one shape, got \[\[3\]\] and \[\[2\]\]; pad sequences"):
        Inputs.cat([Inputs.of(A), Inputs.of(A[:, :2])])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": A, "b": A + 9}, {"b": A + 9, "a": A}),
        (({"a": A, "b": [A + 9]}, 1), ({"b": [A + 9], "a": A}, 1)),
    ],
)
def test_the_order_of_keys_does_not_matter(first, second):
    batches = [Inputs.of(first), Inputs.of(second)]
    assert batches[0].form == batches[1].form
    joined = Inputs.cat(batches)
    for tensor, expected in zip(joined.tensors, (A, A + 9), strict=True):
        torch.testing.assert_close(tensor, torch.cat([expected, expected]))


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ({"p": A, "q": A}, {"p": A, "r": A}, "p, q and p, r"),
        ({"p": A, "flag": True}, {"p": A, "flag": False}, "p, flag=True and p, flag=False"),
        ({"p": A, "flag": True}, {"p": A}, "p, flag=True and p"),
        ({"p": A, "of": {}}, {"p": A}, "p, of={} and p"),
        ({"p": A, "q": {"r": A}}, {"p": A, "q": A}, r"p, q\.r and p, q"),
        ((A, torch.tensor(1)), (A, torch.tensor(2)), r"0, 1=tensor\(1\) and 0, 1=tensor\(2\)"),
        ((A, 1), (A, A), "0, 1=1 and 0, 1"),
        (A, {"p": A}, "0 and p"),
    ],
)
def test_batches_of_other_arguments_are_not_joined(first, second, found):
    with pytest.raises(ValueError, match=f"same arguments in all batches, .*, got {found}$"):
        Inputs.cat([Inputs.of(first), Inputs.of(second)])


def test_logits_are_taken_from_outputs_that_hold_some():
    class Outputs(OrderedDict):
        pass

    assert logits_of(Outputs(loss=B, logits=A)) is A
    assert logits_of({"hidden": A})["hidden"] is A
    assert logits_of(A) is A
