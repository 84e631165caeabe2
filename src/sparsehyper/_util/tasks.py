"""The number of a task that is given by name or number."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from sparsehyper._util.text import listed


def task_index(task: Any, rows: Mapping[str, int]) -> int:
    """The number of a task.

    Args:
        task: its name, or its number.
        rows: the number of each task, by name, from 0.

    Raises:
        KeyError: an unknown name.
        TypeError: neither a name nor an integer.
        IndexError: a number outside [0, tasks); negative numbers do not count from the end.

    >>> task_index("bags", {"shoes": 0, "bags": 1})
    1
    """
    if isinstance(task, str):
        if task not in rows:
            raise KeyError(f"unknown `task` {task!r}; the tasks are: {listed(rows)}")
        return rows[task]
    try:
        if isinstance(task, bool):
            raise TypeError
        # Leave an `int` alone: `operator.index` would make it a constant for torch.compile.
        number = task if isinstance(task, int) else operator.index(task)
    except TypeError:
        raise TypeError(
            f"`task` must be a name or an integer, got {task!r}; "
            "for one task per sample give a list of these, or an integer tensor [batch]"
        ) from None
    if not 0 <= number < len(rows):
        raise IndexError(f"`task` must be in [0, {len(rows)}), got {number}")
    return number
