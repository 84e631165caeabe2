from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.pairs import in_two
from helpers.toy import Model
from helpers.train_toy import go, source_of, train_as
from sparsehyper.training import Processes, processes


def test_one_process_on_the_cpu():
    here = processes("cpu")
    assert (here.device, here.rank, here.count, here.is_main) == (torch.device("cpu"), 0, 1, True)
    assert here.sum(torch.tensor([2.0])).item() == 2.0
    assert here.broadcast(torch.tensor([2.0])).item() == 2.0
    here.wait()


@pytest.mark.parametrize("device", ["gpu0", "abacus"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"`device` must be 'auto' or .*, got '{device}'"):
        processes(device)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_no_accelerator():
    assert processes("auto").device == torch.device("cpu")
    with pytest.raises(ValueError, match="`device` 'cuda' is not available on this machine"):
        processes("cuda")


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Each trains heads that the other leaves unused; a third head is used by neither."""
    one = Model(dropout=0.0)
    go(tmp_path / "one", one, source_of(Processes(torch.device("cpu"))))
    shown = in_two(train_as, tmp_path, tmp_path / "two")
    assert "step 40/40" in shown[0]
    assert "step" not in shown[1]
    two = load_file(tmp_path / "two" / "checkpoints" / "best" / "model.safetensors")
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
    records = [_metrics(tmp_path / name) for name in ("one", "two")]
    assert len(records[0]) == len(records[1])
    for ours, theirs in zip(*records, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def _metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
