from __future__ import annotations

import json

import pytest

from helpers.command_line import QUICK


def test_layers_and_sizes_add_up(command):
    done = command("inspect", "--generator", "sparse:growth=1.8", "--target", "mlp:32", "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert summary["numel"] == 784 * 32 + 32 + 32 * 10 + 10
    assert summary["layers"][-1]["outputs"] == summary["numel"]
    assert summary["trainable"]["generator"] == sum(x["parameters"] for x in summary["layers"])
    assert summary["trainable"]["embeddings"] == 10 * 256
    total = sum(summary["trainable"].values())
    assert summary["trainable_per_parameter"] == pytest.approx(total / summary["numel"])
    assert 0.5 < summary["wiring"]["reach_mean"] <= 1
    assert all(0.5 < used <= 1 for used in summary["wiring"]["coverage"])
    assert summary["operations"]["generator"]["multiply_adds"] == summary["trainable"]["generator"]
    assert summary["operations"]["target"]["multiply_adds"] == 784 * 32 + 32 * 10
    assert summary["effective_rank"]["exact"]
    assert 1 < summary["effective_rank"]["effective_rank"] <= 255
    assert not {"statistics", "nearest"} & set(summary)  # these belong to tasks that were learned


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
    assert 3 < summary["trainable"]["generator"] / summary["numel"] <= 4  # and 1 for the base
    assert summary["trainable"]["shared"] == summary["numel"]
    assert summary["wiring"]["reach_min"] == 1.0
    assert not summary["effective_rank"]["exact"]
    assert [row["name"] for row in summary["statistics"]] == [
        tensor["name"] for tensor in summary["tensors"]
    ]
    assert all(0 < row["between_tasks"] <= 1 for row in summary["statistics"])
    tasks = [row["task"] for row in summary["nearest"]]
    assert len(tasks) == summary["tasks"] == 5
    for row in summary["nearest"]:
        assert row["nearest"] in set(tasks) - {row["task"]}
        assert 0 < row["cosine_distance"] < 2
    shown = command("inspect", tmp_path / "run").out
    assert "between tasks" in shown
    assert "from a sample" in shown
    assert "Most similar embeddings" in shown


def test_the_table_names_every_tensor_and_layer(command):
    done = command("inspect", "--target", "mlp:32")
    assert done.code == 0
    assert "3.weight" in done.out
    assert done.out.count("SparseLinear") == 7
    assert "per generated parameter" in done.out
    assert "effective rank; at most 255" in done.out
    assert "25,408 to run it on one image" in done.out


def test_a_budget_is_met_by_generators_that_look_at_shapes(command):
    done = command(
        *("inspect", "--generator", "low_rank:rank=2/dense:hidden=4", "--target", "mlp:32"),
        *("--budget", 2, "--json"),
    )
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["trainable"]["generator"] <= 2 * summary["numel"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "28x28"], ["28x28", "CHANNELSxHEIGHTxWIDTH"]),
        (["--generator", "dense:x=1"], ["'x'", "dense"]),
        (["nowhere"], ["nowhere"]),
        (["nowhere", "--target", "mlp:8"], ["`--target`", "`RUN`"]),
    ],
)
def test_bad_input(command, arguments, words):
    done = command("inspect", *arguments)
    assert done.code == 2
    for word in words:
        assert word in done.err
