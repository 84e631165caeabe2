"""Sharded training: each process keeps a part of the generator's weights, gradients and moments.

The layers of a sparse generator, and any other generator as a whole, are gathered for their turn
in the forward and backward pass and freed after it, by PyTorch's ``fully_shard`` (FSDP2). What else
is trained is a fraction of it: the embeddings, a base of N numbers, a head. Every process holds
that, and its gradient is averaged after the backward pass.

A process's part is a run of each weight's numbers in memory, as sparse layers have few rows. For an
evaluation or a checkpoint the model is whole for a while, in every process. So a checkpoint is that
of one process, and any number of processes can resume from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import get_total_norm
from torch.nn.utils.parametrize import register_parametrization

from sparsehyper.sparse import SparseLinear
from sparsehyper.target.copying import copy_module
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.optim import build_optimizer
from sparsehyper.training.parallel import Parallel, average_gradients, check_shardable
from sparsehyper.training.processes import Processes


class Sharded(Parallel):
    """A hypernetwork whose generator is spread over the processes; see `Parallel`.

    Args:
        model: a `HyperNetwork`, on the CPU, the same in all processes.
        optimizer: the optimiser of all its trained parameters, with the moments to begin with.
        config: the settings of training.
        here: this process.

    Raises:
        ValueError: the model is no hypernetwork.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        here: Processes,
    ) -> None:
        model = check_shardable(model)
        super().__init__(model, optimizer, here)
        self._hnet, self._whole_optimizer = model, optimizer
        # The whole generator, without memory while it is sharded, and the sharded one.
        self._whole = model.generator
        self._weights = list(self._whole.parameters())
        self._shapes = [weight.shape for weight in self._weights]
        self._sharded = copy_module(self._whole, [*self._weights, *self._whole.buffers()])
        owners = _flatten(self._sharded)
        mesh = init_device_mesh(here.device.type, (here.count,))
        for layer in getattr(self._sharded, "layers", ()):
            if isinstance(layer, SparseLinear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self._sharded, mesh=mesh, reshard_after_forward=True)
        self._shards = [owner.get_parameter("original") for owner in owners]
        generated = set(map(id, self._weights))
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in generated]

        state = optimizer.state
        moments = [state.pop(weight, {}) for weight in self._weights]
        self._let_go()
        model.to(here.device)
        self._whole.to(here.device)
        self.optimizer = build_optimizer(config, self._shards)
        if self._others:  # an update is of one kind of tensors at a time
            self.optimizer.add_param_group({"params": self._others})
        if isinstance(self.optimizer, torch.optim.SGD):  # PyTorch divides no fused one
            for group in self.optimizer.param_groups:
                group |= {"fused": False, "foreach": True}
        parts = [
            {name: _spread(value, shape, mesh) for name, value in found.items()}
            for shape, found in zip(self._shapes, moments, strict=True)
        ]
        # This moves the others to the device.
        kept = [*parts, *(state.pop(parameter, {}) for parameter in self._others)]
        record = self.optimizer.state_dict()
        record["state"] = {number: found for number, found in enumerate(kept) if found}
        self.optimizer.load_state_dict(record)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._hnet(*args, **kwargs)

    def part(self, part: int, task: int | Tensor) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def finish(self) -> None:
        average_gradients(self._others, self._here)

    def gradients(self) -> list[Tensor]:
        return [g.to_local() if isinstance(g, DTensor) else g for g in super().gradients()]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        shards = sum(shard.grad is not None for shard in self._shards)  # they come first
        parts, others = gradients[:shards], gradients[shards:]
        square = self._here.sum(get_total_norm(parts).square())
        return (square + get_total_norm(others).square()).sqrt() if others else square.sqrt()

    def synchronise(self) -> None:
        self._broadcast(*self._model.buffers())  # gradients are the same in all processes

    @contextmanager
    def whole(self) -> Iterator[torch.optim.Optimizer]:
        # The main process alone has the moments.
        state = self._whole_optimizer.state
        self._gather()
        for shard, weight in zip(self._shards, self._weights, strict=True):
            for name, value in self.optimizer.state.get(shard, {}).items():
                gathered = value
                if isinstance(value, DTensor):
                    gathered = value.full_tensor().view_as(weight)
                if self._here.is_main:
                    state[weight][name] = gathered.cpu()  # where there is more memory
        for parameter in self._others:
            if parameter in self.optimizer.state:
                state[parameter] = self.optimizer.state[parameter]
        try:
            yield self._whole_optimizer
        finally:
            state.clear()
            self._let_go()

    def close(self) -> None:
        self._gather()

    @torch.no_grad()
    def _gather(self) -> None:
        for shard, weight, shape in zip(self._shards, self._weights, self._shapes, strict=True):
            assert isinstance(shard, DTensor)
            weight.data = shard.full_tensor().view(shape)
        self._hnet.generator = self._whole.train(self._sharded.training)

    def _let_go(self) -> None:
        for weight in self._weights:
            weight.data = weight.new_empty(0)
        self._hnet.generator = self._sharded


class _Shaped(nn.Module):
    """A flat weight in its shape: `fully_shard` divides the first dimension, which is short."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, flat: Tensor) -> Tensor:
        return flat.view(self._shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1)


def _flatten(generator: nn.Module) -> list[nn.Module]:
    """Make all parameters flat, in place; returns, in their order, the owners of ``original``."""
    places = []
    for owner in list(generator.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            register_parametrization(owner, name, _Shaped(parameter.shape), unsafe=True)
            places.append(owner.get_submodule(f"parametrizations.{name}"))
    return places


def _spread(value: Tensor, shape: torch.Size, mesh: DeviceMesh) -> Tensor:
    """An optimiser's tensor for the part that this process holds of a weight of a shape."""
    if value.shape != shape:
        return value  # the number of steps
    flat = value.reshape(-1).to(mesh.device_type)
    return distribute_tensor(flat, mesh, [Shard(0)], src_data_rank=None)
