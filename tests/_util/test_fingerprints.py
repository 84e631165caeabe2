from __future__ import annotations

import torch
from torch import Tensor

from sparsehyper._util.fingerprints import fingerprints


class Packed(Tensor):
    """A tensor made of two others, as quantised weights are."""

    @staticmethod
    def __new__(cls, packed: Tensor, scale: Tensor) -> Packed:
        return Tensor._make_wrapper_subclass(cls, packed.shape, dtype=scale.dtype)

    def __init__(self, packed: Tensor, scale: Tensor) -> None:
        self.packed, self.scale = packed, scale

    def __tensor_flatten__(self):
        return ["packed", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.detach.default, func
        return Packed(args[0].packed, args[0].scale)


def equal(one: Tensor, two: Tensor) -> bool:
    found = fingerprints({"one": one, "two": two})
    return found["one"] == found["two"]


def test_equal_values_have_equal_fingerprints_however_they_lie_in_memory():
    x = torch.randn(4, 6)
    assert equal(x, x.T.contiguous().T)
    assert equal(x[:, ::2], x[:, ::2].clone())
    assert equal(torch.nn.Parameter(x), x)


def test_type_shape_and_every_value_count():
    x = torch.arange(6)
    for other in (x.int(), x.view(2, 3), x.clone().index_fill_(0, torch.tensor(5), 9)):
        assert not equal(x, other)
    empty = torch.zeros(0, 2), torch.zeros(2, 0)
    assert not equal(*empty)
    for kind in (torch.bool, torch.bfloat16, torch.complex64):
        assert not equal(torch.zeros((), dtype=kind), torch.ones((), dtype=kind))


def test_a_long_tensor_is_read_in_pieces(monkeypatch):
    x = torch.randn(7, 5)
    whole = fingerprints({"x": x})
    monkeypatch.setattr("sparsehyper._util.fingerprints._PIECE", 4)
    assert fingerprints({"x": x}) == whole


def test_a_tensor_made_of_others_is_that_of_its_parts():
    packed, scale = torch.arange(4, dtype=torch.int8), torch.ones(2)
    assert equal(Packed(packed, scale), Packed(packed.clone(), scale.clone()))
    assert not equal(Packed(packed, scale), Packed(packed, scale * 2))
    assert not equal(Packed(packed, scale), Packed(packed + 1, scale))
