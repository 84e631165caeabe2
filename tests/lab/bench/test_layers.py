from __future__ import annotations

from dataclasses import replace

from sparsehyper import SparseLinear
from sparsehyper.lab.bench import QUICK
from sparsehyper.lab.bench.layers import measure_layers


def test_where_the_layer_cannot_be_compiled_the_reason_is_kept(monkeypatch):
    def compile_(self):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(SparseLinear, "compile", compile_)
    found = measure_layers(replace(QUICK, compile=True, batches=(1,)), 1, 0)
    assert found["skipped"] == [
        {
            "topology": "circulant",
            "batch": 1,
            "method": "sparse, compiled",
            "reason": "cannot be compiled here: RuntimeError",
        }
    ]
    assert not any("compiled" in row["method"] for row in found["rows"])


def test_a_gradient_that_is_left_out_is_noted():
    found = measure_layers(replace(QUICK, layer=(10_000, 20_000, 2), batches=(1,)), 1, 0)
    noted = {(row["method"], row["pass"]) for row in found["rows"] if "gradient" in row["note"]}
    assert noted == {("torch.sparse COO", "forward + backward")}
