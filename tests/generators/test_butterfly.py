from __future__ import annotations

import pytest
import torch

from helpers.conformance import ConformingGenerator, embeddings
from sparsehyper.generators import Butterfly


class ConformingButterfly(ConformingGenerator):
    def reference(self, generator, z):
        width = generator.weight.shape[2]
        x = torch.stack([z[:, j % z.shape[1]] for j in range(width)], 1)
        for bit, (own, other) in zip(self.bits, generator.weight, strict=True):
            columns = [x[:, j] * own[j] + x[:, j ^ (1 << bit)] * other[j] for j in range(width)]
            x = torch.stack(columns, 1)
        return x[:, : self.numel]


class TestWhole(ConformingButterfly):
    spec, bits = Butterfly(), range(8)


class TestFewStages(ConformingButterfly):
    spec, bits = Butterfly(stages=3), range(3)


class TestBenes(ConformingButterfly):
    spec, bits = Butterfly(benes=True), [*range(8), *range(6, -1, -1)]


def test_every_output_depends_on_every_latent_number():
    generator = Butterfly(stages=4).build(16, 300).double()
    jacobian = torch.autograd.functional.jacobian(generator, embeddings(1, 16))
    assert (jacobian[0, :, 0] != 0).all()
    fewer = Butterfly(stages=3).build(16, 300).double()
    assert (torch.autograd.functional.jacobian(fewer, embeddings(1, 16)) == 0).any()


def test_more_latent_numbers_than_outputs():
    generator = Butterfly().build(64, 10).double()
    jacobian = torch.autograd.functional.jacobian(generator, embeddings(1, 64))
    assert (jacobian[0, :, 0] != 0).all()


def test_refuses_what_is_no_stage():
    with pytest.raises(ValueError, match="`stages` must be at least 1, got 0"):
        Butterfly(stages=0)
    with pytest.raises(TypeError, match="`benes` must be true or false, got 1"):
        Butterfly(benes=1)
