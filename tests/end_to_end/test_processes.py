"""Training on two processes from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from helpers import environment
from sparsehyper.lab.cli.app import run

ARGUMENTS = [
    "train", "--target", "mlp:16", "--steps", "12", "--eval-every", "6", "--warmup", "0",
    "--batch-size", "20", "--tasks-per-batch", "2", "--device", "cpu", "--quiet",
    "--head", "generated",  # one that is solved depends on the other images in the process's batch
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_does(tmp_path):
    assert run([*ARGUMENTS, "--out", str(tmp_path / "one")]) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "sparsehyper"]
    done = subprocess.run(
        [sys.executable, *launch, *ARGUMENTS, "--json", "--out", tmp_path / "two"],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("one", "two")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert results[0]["test"]["accuracies"] == results[1]["test"]["accuracies"]
    assert json.loads(done.stdout)["test"] == results[1]["test"]  # one document, from one process
