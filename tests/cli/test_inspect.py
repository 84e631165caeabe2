from __future__ import annotations

import json

import pytest

from cli.conftest import QUICK


def test_layers_and_sizes_add_up(command):
    done = command("inspect", "--generator", "sparse:growth=4", "--target", "mlp:32", "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert summary["numel"] == 784 * 32 + 32 + 32 * 10 + 10
    assert summary["layers"][-1]["outputs"] == summary["numel"]
    assert summary["trainable"]["generator"] == sum(x["parameters"] for x in summary["layers"])
    assert summary["trainable"]["embeddings"] == 10 * 64
    total = sum(summary["trainable"].values())
    assert summary["trainable_per_parameter"] == pytest.approx(total / summary["numel"])
    assert 0.5 < summary["wiring"]["reach_mean"] <= 1
    assert all(0.5 < used <= 1 for used in summary["wiring"]["coverage"])


def test_a_run_is_shown_as_it_was_trained(command, tmp_path):
    command(
        "train",
        "--out",
        tmp_path / "run",
        *QUICK,
        "--method",
        "chunked",
        "--budget",
        5,
        "--latent-dim",
        8,
    )
    done = command("inspect", tmp_path / "run", "--json")
    summary = json.loads(done.out)
    assert summary["generator"]["kind"] == "chunked"
    assert 4 < summary["trainable"]["generator"] / summary["numel"] <= 5
    assert summary["wiring"] is None


def test_the_table_names_every_tensor_and_layer(command):
    done = command("inspect", "--target", "mlp:32")
    assert done.code == 0
    assert "3.weight" in done.out
    assert done.out.count("SparseLinear") == 9
    assert "per generated parameter" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "28x28"], ["28x28", "CHANNELSxHEIGHTxWIDTH"]),
        (["--generator", "dense:x=1"], ["'x'", "dense"]),
        (["nowhere"], ["nowhere"]),
        (["nowhere", "--target", "mlp:8"], ["`--target`", "`run`"]),
    ],
)
def test_bad_input(command, arguments, words):
    done = command("inspect", *arguments)
    assert done.code == 2
    for word in words:
        assert word in done.err
