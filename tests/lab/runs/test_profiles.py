from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from helpers.command_line import QUICK
from helpers.pictures import write_task
from sparsehyper._util.files import read_sealed, write_sealed
from sparsehyper.lab.runs import load_run, predict_run
from sparsehyper.lab.runs.profiles import find_profiles, read_profiles
from sparsehyper.training import CheckpointError


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    from sparsehyper.lab.cli.app import run

    root = tmp_path_factory.mktemp("profiles")
    write_task(root / "data" / "shoes", {"new": 60, "worn": 120}, count=10)
    write_task(root / "data" / "bags", {"new": 150, "worn": 210}, count=10, seed=1)
    options = [*QUICK, "--tasks-per-batch", "2", "--batch-size", "8"]
    assert run(["train", "--data", str(root / "data"), "--out", str(root / "run"), *options]) == 0
    return root


@pytest.fixture
def copied(original, tmp_path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(original / "run", tmp_path / "run"))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], **changes: object) -> None:
    """Write other profiles, as a stranger might, with digests that fit."""
    data = safetensors.torch.save(tensors)
    (folder / "profiles.safetensors").write_bytes(data)
    record = read_sealed(folder / "profiles.json")
    record["tensors"] = hashlib.sha256(data).hexdigest()
    write_sealed(folder / "profiles.json", {**record, **changes})


def test_training_writes_what_the_images_of_each_task_look_like(original):
    loaded = load_run(original / "run")
    profiles = read_profiles(loaded)
    assert profiles is not None
    assert tuple(profiles.tasks) == loaded.tasks.names == ("bags", "shoes")
    found = predict_run(original / "run", [original / "data" / "shoes"])
    assert found.task == "shoes"
    assert found.identified is not None
    assert found.identified.name == "shoes"


def test_runs_without_profiles_get_them_from_their_images(original, copied):
    stored = read_profiles(load_run(copied))
    for file in ("profiles.json", "profiles.safetensors"):
        (copied / file).unlink()
    loaded = load_run(copied)
    assert read_profiles(loaded) is None
    found = find_profiles(loaded)
    assert found is not None
    assert stored is not None
    for name, tensor in stored.to_tensors().items():
        torch.testing.assert_close(found.to_tensors()[name], tensor)
    hidden = original / "data"
    hidden.rename(original / "elsewhere")
    try:
        assert find_profiles(loaded) is None
        with pytest.raises(ValueError, match="`task` is needed: what the images of 'bags', 'shoe"):
            predict_run(copied, [original / "elsewhere" / "shoes"])
        assert (
            predict_run(copied, [original / "elsewhere" / "shoes"], task="shoes").identified is None
        )
    finally:
        (original / "elsewhere").rename(hidden)


def test_profiles_of_another_checkpoint_are_not_used(copied):
    rewrite(copied, load_file(copied / "profiles.safetensors"), checkpoint="0" * 64)
    assert read_profiles(load_run(copied)) is None


def test_profiles_of_an_earlier_format_are_read(copied):
    """They have no typical scores with labels."""
    tensors = load_file(copied / "profiles.safetensors")
    before = {
        name: tensor[0] if any(p in name for p in ("/score_", "/held", "calibration/")) else tensor
        for name, tensor in tensors.items()
    }
    rewrite(copied, before, format=2)
    found = read_profiles(load_run(copied))
    assert found is not None
    assert found.calibration.temperature.shape == (1,)


def test_damaged_profiles_are_told(copied):
    loaded, tensors = load_run(copied), load_file(copied / "profiles.safetensors")
    wrong = {
        "unexpected tensors": {**tensors, "x": torch.zeros(1)},
        "tasks/1/means": {n: t for n, t in tensors.items() if n != "tasks/1/means"},
        "'space/between' does not fit": {**tensors, "space/between": torch.zeros(1)},
        "'tasks/0/means' does not fit": {**tensors, "tasks/0/means": tensors["tasks/0/means"] / 0},
    }
    for message, changed in wrong.items():
        rewrite(copied, changed)
        with pytest.raises(CheckpointError, match=f"profiles.safetensors is damaged: .*{message}"):
            read_profiles(loaded)
    rewrite(copied, tensors, tasks=["bags", "caps"])
    with pytest.raises(CheckpointError, match=r"profiles.json is damaged: its tasks are not those"):
        read_profiles(loaded)
    rewrite(copied, tensors, format=9)
    with pytest.raises(CheckpointError, match="has format 9, this version reads format 3"):
        read_profiles(loaded)
    rewrite(copied, tensors, format=2, run="another")
    with pytest.raises(CheckpointError, match=r"profiles.json belongs to another run"):
        read_profiles(loaded)
    own = json.loads((copied / "config.json").read_text())["run"]
    rewrite(copied, tensors, run=own, tasks=["bags", "shoes"])
    file = copied / "profiles.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="it is not what was written"):
        read_profiles(loaded)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"profiles.safetensors is missing from the run"):
        read_profiles(loaded)
    about = copied / "profiles.json"
    about.write_text(json.dumps({"tasks": ["bags"]}))
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        read_profiles(loaded)
