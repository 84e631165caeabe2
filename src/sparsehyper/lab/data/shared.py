"""Tasks in a file of our own, for the processes of a comparison or a study."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import torch

from sparsehyper.lab.data.tasks import TaskSet


class SharedTasks(NamedTuple):
    """A file of tasks that this program has written, in a folder whose lock it holds."""

    path: str
    fingerprint: str

    @classmethod
    def write(cls, tasks: TaskSet, path: Path) -> Self:
        """Write the file.

        Raises:
            OSError: it cannot be written, for example because the disk is full.
        """
        with path.open("wb") as file:
            try:
                torch.save(tasks, file)
            except (
                RuntimeError
            ) as error:  # PyTorch hides what went wrong behind an error of its own
                cause = error.__context__
                raise cause if isinstance(cause, OSError) else error from None
        return cls(str(path), tasks.fingerprint)

    def load(self) -> TaskSet:
        """The tasks; their images are mapped into memory, so that only those in use are read."""
        # safe to unpickle: this program wrote the file
        tasks: TaskSet = torch.load(self.path, mmap=True, weights_only=False)
        return tasks
