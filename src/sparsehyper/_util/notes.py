"""What belongs to a hypernetwork's state and is no tensor: one entry of its state dict.

=====================  ============================================================================
``layout``             names and shapes of the generated tensors, in their order in θ
``task_names``         names of the tasks, in order
``conditioner_notes``  what `Conditioner.notes` returns
=====================  ============================================================================
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

NOTES = "notes"
KEYS = ("layout", "task_names", "conditioner_notes")


def as_bytes(notes: Any) -> Tensor:
    """JSON-ready notes as a tensor of bytes, which every format of state dicts can hold.

    >>> as_bytes([1])
    tensor([91, 49, 93], dtype=torch.uint8)
    """
    return torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)


def from_bytes(entry: Tensor) -> Any:
    """The inverse of `as_bytes`.

    >>> from_bytes(as_bytes({"task_names": ["shoes"]}))
    {'task_names': ['shoes']}
    """
    return json.loads(bytes(entry.tolist()))
