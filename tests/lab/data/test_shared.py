from __future__ import annotations

import errno

import pytest
import torch

from sparsehyper.lab.data import SharedTasks, load_source, make_tasks, parse_tasks


@pytest.fixture(scope="module")
def tasks():
    return make_tasks(load_source("digits"), parse_tasks("split:5"))


def test_tasks_come_back_as_they_were(tasks, tmp_path):
    shared = SharedTasks.write(tasks, tmp_path / "tasks.pt")
    again = shared.load()
    assert shared.fingerprint == again.fingerprint == tasks.fingerprint
    task, index = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 9])
    for ours, theirs in zip(
        tasks.test.batch(task, index), again.test.batch(task, index), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_full_disk_is_told(tasks, tmp_path, monkeypatch):
    class Full:
        written = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def write(self, data):
            self.written += len(data)
            if self.written > 50_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data)

        def flush(self):
            pass

    path = tmp_path / "tasks.pt"
    monkeypatch.setattr(type(path), "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left on device"):
        SharedTasks.write(tasks, path)
