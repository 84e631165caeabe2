"""Data parallel training: every process has a part of each batch, and gradients are averaged.

Two ways give the same averages, up to rounding. A batch goes the one that exchanges fewer numbers.

- *The gradient of all parameters*, by ``DistributedDataParallel``, once an update. With linear
  fan-in a sparse generator and a learned base have 5 N parameters.
- *The gradient of θ*, N numbers for each task of a batch. The loss depends on the generator φ, the
  embeddings and the base through the tasks' parameters θ alone, so

      mean over processes of ∂L/∂φ  =  Σ over tasks of (∂θ/∂φ)ᵀ · mean over processes of ∂L/∂θ

  Every process generates the tasks of all processes, averages ∂L/∂θ in the backward pass, and goes
  through the same rest of it. Parameters of the target that are trained themselves, and those of a
  head, are averaged after it.

The second way needs a `HyperNetwork` whose embeddings depend on the task alone, so that they are
the same everywhere: named tasks, without noise or dropout of embeddings. It pays while
`accumulate` × (tasks in the batches of all processes) × N is below the number of parameters of
generator, conditioner and base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from sparsehyper._util.devices import to_device
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.target import Target
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.processes import Processes


class Parallel(ABC):
    """A model whose gradients are the averages over all processes.

    All processes make the same calls. Its parameters and buffers become those of the main process.

    Args:
        model: the model.
        optimizer: the optimiser to update with.
        here: this process.

    Attributes:
        optimizer: the optimiser to update with.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, here: Processes) -> None:
        self.optimizer, self._model, self._here = optimizer, model, here
        self._broadcast(*model.parameters(), *model.buffers())

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""

    @abstractmethod
    def part(self, part: int, task: int | Tensor) -> AbstractContextManager[None]:
        """The context for the forward and backward pass of a batch.

        Args:
            part: number of the batch in its update; 0 decides for all.
            task: the task of all its samples, or of each, on the CPU.
        """

    @abstractmethod
    def finish(self) -> None:
        """Average what the backward passes of an update have not averaged."""

    @abstractmethod
    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of the whole gradient, of which this process has `gradients`."""

    @abstractmethod
    def synchronise(self) -> None:
        """Give all processes what may differ between them, as the main process has it."""

    @abstractmethod
    def whole(self) -> AbstractContextManager[torch.optim.Optimizer]:
        """The context in which every process holds the whole model, and the main one the optimiser.

        Yields:
            The optimiser to save.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the whole model in every process."""

    def gradients(self) -> list[Tensor]:
        """The gradients of an update, of which each process may hold a part."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [p.grad for p in parameters if p.grad is not None]

    @torch.no_grad()
    def _broadcast(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self._here.broadcast(tensor)


class Replicated(Parallel):
    """A model of which every process has a copy; see `Parallel`.

    Args:
        model: the model, on the device.
        optimizer: the optimiser of all its trained parameters.
        config: the settings of training.
        here: this process.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        here: Processes,
    ) -> None:
        super().__init__(model, optimizer, here)
        self._accumulate = config.accumulate
        self._compiled = torch.compile if config.compile else lambda module: module
        self._alone = self._compiled(model)
        self._by_theta = False  # the way of the current update
        self._theta = ThetaGradient(model, here) if shares_theta(model) and here.count > 1 else None
        # Those whose gradients are averaged after the backward pass, if θ's are within it.
        through = set() if self._theta is None else set(map(id, self._theta.parameters))
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in through]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        together = self._here.count > 1 and not self._by_theta
        return (self._wrapped if together else self._alone)(*args, **kwargs)

    @contextmanager
    def part(self, part: int, task: int | Tensor) -> Iterator[None]:
        if self._here.count == 1:
            yield
            return
        everyone = None if self._theta is None else self._theta.tasks(task)
        if part == 0:
            self._by_theta = (
                self._theta is not None
                and everyone is not None
                and self._accumulate * self._theta.cost(everyone) < self._theta.saved
            )
        if self._by_theta:
            assert self._theta is not None
            assert everyone is not None
            with self._theta.averaged(everyone):
                yield
        elif part < self._accumulate - 1:
            with self._distributed.no_sync():
                yield
        else:
            yield

    def finish(self) -> None:
        if self._by_theta:
            average_gradients(self._others, self._here)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return get_total_norm(gradients)

    def synchronise(self) -> None:
        # Where processes repeat a backward pass, their results may differ in rounding.
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._broadcast(*trained, *self._model.buffers())

    @contextmanager
    def whole(self) -> Iterator[torch.optim.Optimizer]:
        yield self.optimizer

    def close(self) -> None:
        pass

    @cached_property
    def _distributed(self) -> DistributedDataParallel:
        # A batch may give no gradient to parameters of other tasks. Buffers are broadcast before
        # evaluations.
        return DistributedDataParallel(
            self._model, find_unused_parameters=True, broadcast_buffers=False
        )

    @cached_property
    def _wrapped(self) -> Callable[..., Any]:
        return self._compiled(self._distributed)


def shares_theta(model: nn.Module) -> bool:
    """Whether all processes can generate the same parameters for the same tasks."""
    return (
        isinstance(model, HyperNetwork)
        and model.conditioner.by_task_alone
        and not (model.settings["noise"] or model.settings["dropout"])
    )


def check_shardable(model: nn.Module) -> HyperNetwork:
    """The model, if it has a generator to divide.

    Raises:
        ValueError: it is not a `HyperNetwork`.
    """
    if not isinstance(model, HyperNetwork):
        raise ValueError(
            f"`shard` divides the generator of a `HyperNetwork`, got a {type(model).__name__}"
        )
    return model


class ThetaGradient:
    """The exchange of θ's gradient.

    Args:
        model: a hypernetwork for which `shares_theta` holds.
        here: this process.

    Attributes:
        parameters: trained parameters whose gradients follow from θ's.
        saved: how many numbers they are.
    """

    def __init__(self, model: nn.Module, here: Processes) -> None:
        assert isinstance(model, HyperNetwork)
        self._model, self._here = model, here
        self._everyone = torch.empty(0)
        base = [model.target.base] if isinstance(model.target.base, nn.Parameter) else []
        through = [*model.generator.parameters(), *model.conditioner.parameters(), *base]
        self.parameters = [p for p in through if p.requires_grad]
        self.saved = sum(p.numel() for p in self.parameters)
        # Not as a decorator, which would import the compiler with this module; and without keeping
        # this object, which keeps the function.
        generated = WeakMethod(self._generated)
        self._raw = torch.compiler.disable(lambda tasks: generated()(tasks))  # type: ignore[misc]

    def tasks(self, task: int | Tensor) -> Tensor:
        """The tasks of all processes' batches: ascending integers, on the CPU.

        Args:
            task: the task of all samples of this process, or of each, on the CPU.
        """
        present = torch.zeros(len(self._model.task_names), dtype=torch.int32)
        present[task if isinstance(task, int) else task.cpu()] = 1
        self._here.sum(present)
        return present.nonzero()[:, 0]

    def cost(self, everyone: Tensor) -> int:
        """How many numbers a batch with these tasks exchanges."""
        return len(everyone) * self._model.target.numel

    @contextmanager
    def averaged(self, everyone: Tensor) -> Iterator[None]:
        """The context in which a forward and a backward pass exchange θ's gradient."""
        self._everyone = to_device(everyone, self._here.device)
        self._model.raw_of_tasks, self._model.target.base_apart = self._raw, True
        try:
            yield
        finally:
            self._model.raw_of_tasks, self._model.target.base_apart = None, False

    def _generated(self, tasks: Tensor) -> Tensor:
        """G(normalise(z)) ``[tasks, numel]`` of some of the tasks, generated with all of them."""
        model, everyone = self._model, self._everyone
        raw = model.raw_theta(model.conditioner(everyone)).to(model.dtype)
        raw = _Averaged.apply(raw, model.target.base, model.target, self._here)
        if len(everyone) == 1:
            return raw
        return raw[torch.searchsorted(everyone, tasks)]


class _Averaged(torch.autograd.Function):
    """The generator's output as it is; its gradient, and the base's, are averages."""

    @staticmethod
    def forward(
        ctx: Any,
        raw: Tensor,
        base: Tensor | None,  # noqa: ARG004
        target: Target,
        here: Processes,
    ) -> Tensor:
        ctx.target, ctx.here = target, here
        return raw.view_as(raw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_raw = ctx.here.sum((grad / ctx.here.count).contiguous())
        of_base = ctx.target.base_gradient(of_raw) if ctx.needs_input_grad[1] else None
        return of_raw, of_base, None, None


def average_gradients(parameters: Sequence[nn.Parameter], here: Processes) -> None:
    """Average the gradients of parameters over all processes.

    A parameter that no process has a gradient for keeps none; where one has none, it counts as 0.
    """
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    here.sum(used)
    chosen = [p for p, any_ in zip(parameters, used.tolist(), strict=True) if any_]
    if not chosen:
        return
    for p in chosen:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in chosen if p.grad is not None]
    flat = here.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]) / here.count)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(
        gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
    )
