from __future__ import annotations

from conformance import ConformingGenerator
from sparsehyper.generators import Dense


class TestDense(ConformingGenerator):
    spec = Dense()

    def reference(self, generator, z):
        return z @ generator.weight.T
