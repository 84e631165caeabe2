import hashlib

import pytest
import torch
from safetensors.torch import save

from sparsehyper._util.files import CheckpointError, read_sealed, sealed
from sparsehyper.lab.runs.records import read_record, tensors_of, write_record

TENSORS = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.int64)}


def test_files_of_an_older_version_are_read_and_the_same_are_written(tmp_path):
    data = save(TENSORS)
    digest = hashlib.sha256(data).hexdigest()
    record = {"format": 1, "checkpoint": "0", "tensors": digest, "tasks": ["x"]}
    old, new = tmp_path / "tasks.json", tmp_path / "new.json"
    old.write_text(sealed(record))
    old.with_suffix(".safetensors").write_bytes(data)
    assert read_record(old, (1, 2)) == record
    found = tensors_of(record, old)
    assert list(found) == ["a", "b"]
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    for tensors in ({}, TENSORS):  # the second replaces the first
        write_record(new, {"format": 1, "checkpoint": "0", "tasks": ["x"]}, tensors)
    assert read_sealed(new) == record
    assert new.with_suffix(".safetensors").read_bytes() == data


def test_records_that_cannot_be_read(tmp_path):
    path = tmp_path / "tasks.json"
    write_record(path, {"format": [2]}, TENSORS)
    with pytest.raises(CheckpointError, match=r"has format \[2\], this version reads format 3"):
        read_record(path, (1, 3))
    file = path.with_suffix(".safetensors")
    file.write_bytes(save({}))
    with pytest.raises(CheckpointError, match=r"tasks\.safetensors is damaged: it is not what was"):
        tensors_of(read_sealed(path), path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"tasks\.safetensors is missing from the run"):
        tensors_of(read_sealed(path), path)
