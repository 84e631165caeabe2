"""The device that training runs on, and the processes that share the work.

``torchrun`` starts the processes, and on GPUs ``accelerate launch`` does too; each runs the same
program. On the CPU ``accelerate launch`` may start a single one, without a word.
"""

from __future__ import annotations

import atexit
import functools
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsehyper._util.extras import require


@dataclass(frozen=True)
class Processes:
    """One of the processes that train together.

    Attributes:
        device: device of this process.
        rank: rank of this process, in [0, count).
        count: number of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; every process gets the sum.

        It may be on the CPU, and then no process waits for its device.
        """
        if self.count > 1:
            dist.all_reduce(tensor, group=self._group(tensor))
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with that of the main process, in place."""
        if self.count > 1:
            dist.broadcast(tensor, src=0, group=self._group(tensor))
        return tensor

    def wait(self) -> None:
        """Return once every process has called this."""
        if self.count > 1:
            dist.barrier()

    def _group(self, tensor: Tensor) -> dist.ProcessGroup | None:
        other = tensor.device.type == "cpu" != self.device.type
        return _cpu_group() if other else None


def processes(device: str = "auto") -> Processes:
    """Join the other processes, if the program was started as several processes.

    Args:
        device: ``"auto"`` for the accelerator if there is one, or a device such as ``"cpu"`` or
            ``"cuda:1"``. With several processes on accelerators, each takes its own.

    Raises:
        ValueError: `device` is unknown or not available on this machine.
        MissingExtraError: ``accelerate`` is not installed.

    >>> processes("cpu")
    Processes(device=device(type='cpu'), rank=0, count=1)
    """
    accelerators = torch.accelerator.is_available()
    chosen = _parse(device)
    # PartialState takes "not asked for the CPU" as "one process" where there is no accelerator.
    state = _partial_state(chosen.type == "cpu")
    if state.num_processes > 1:
        return Processes(state.device, state.process_index, state.num_processes)
    if chosen.type != "cpu" and not accelerators:
        raise ValueError(f"`device` {device!r} is not available on this machine; use 'cpu'")
    return Processes(chosen)


def is_main_process() -> bool:
    """Whether this is the main process; can be called before the processes have joined."""
    return int(os.environ.get("RANK", "0")) == 0


def _parse(device: str) -> torch.device:
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` must be 'auto' or a device such as 'cpu' or 'cuda', got {device!r}"
        ) from error


@functools.cache
def _cpu_group() -> dist.ProcessGroup:
    """All processes, for tensors on the CPU where their devices are others."""
    return dist.new_group(backend="gloo")


@functools.cache
def _partial_state(cpu: bool) -> Any:
    state = require("accelerate", "train").PartialState(cpu=cpu)
    if state.num_processes > 1:
        atexit.register(dist.destroy_process_group)
    return state
