from __future__ import annotations

from helpers.conformance import ConformingGenerator
from sparsehyper.generators import Dense


class TestDense(ConformingGenerator):
    spec = Dense()

    def reference(self, generator, z):
        return z @ generator.weight.T


class TestHidden(ConformingGenerator):
    spec = Dense(hidden=30)

    def reference(self, generator, z):
        first, _, last = generator
        features = (z @ first.weight.T + first.bias).clamp(min=0)
        return features @ last.weight.T + last.bias
