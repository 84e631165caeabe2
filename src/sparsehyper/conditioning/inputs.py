"""Embeddings from the target's input or at random: a model for each sample, or for each batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_size, is_whole
from sparsehyper.conditioning.base import Conditioner, initialise
from sparsehyper.conditioning.tasks import TaskEmbedding

PER = ("sample", "batch")


class InputEncoder(Conditioner):
    """Embeddings computed by an encoder network from the target's input.

    z_i = encoder(x_i), or their mean over the batch.

    ``task`` is left out, or is an embedding ``[dim]``.

    Args:
        encoder: a module called with the arguments of the target; it returns ``[batch, dim]``.
        dim: length of an embedding, at least 2.
        per: a model for each ``"sample"`` or for each ``"batch"``.

    Source: dynamic filters of B. De Brabandere et al., "Dynamic filter networks" (NeurIPS 2016).

    >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(5, 8))
    >>> InputEncoder(encoder, dim=8).embed(None, (torch.randn(3, 5),), {})[0].shape
    torch.Size([3, 8])
    """

    kind = "input_encoder"
    networks = ("encoder",)

    def __init__(self, encoder: nn.Module, dim: int, *, per: str = "sample") -> None:
        super().__init__(dim)
        check_choice("per", per, PER)
        self.encoder, self.per = encoder, per
        self.per_sample = per == "sample"

    def compute(
        self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, int | None]:
        """Embeddings ``[batch, dim]``, or ``[dim]`` for the batch."""
        if task is not None:
            raise TypeError(
                f"`task` must be left out, since the model depends on the input alone; got {task!r}"
            )
        z = self.encode(args, kwargs)
        return (z, None) if self.per_sample else (_mean(z), 0)

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The encoder's output for the target's arguments, ``[batch, dim]``."""
        if not args and not kwargs:
            raise TypeError(
                "this conditioner computes the embedding from the target's input; without an "
                "input, give an embedding as `task`"
            )
        z = self.encoder(*args, **kwargs)
        if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[1] != self.dim:
            found = list(z.shape) if isinstance(z, Tensor) else repr(type(z).__name__)
            raise ValueError(f"`encoder` must return [batch, {self.dim}], got {found}")
        return z

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, without the encoder."""
        return {"kind": self.kind, "dim": self.dim, "per": self.per}


class InputAndTask(Conditioner):
    """Embeddings computed from input and task together.

    z_i = B(encoder(x_i), t(task_i)), with B bilinear and t a learned vector for each task.

    ``task`` is a name or number for all samples, an integer tensor ``[batch]`` of one task per
    sample, or an embedding ``[dim]``.

    Args:
        encoder: the encoder of inputs; it decides between a model per sample and per batch.
        tasks: the table of task vectors, with the same ``dim``.
        seed: seed of B.

    Source: the bilinear mix of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022).

    >>> tasks, encoder = TaskEmbedding(2, dim=8), InputEncoder(nn.Linear(5, 8), dim=8)
    >>> InputAndTask(encoder, tasks).embed(1, (torch.randn(3, 5),), {})[0].shape
    torch.Size([3, 8])
    """

    kind = "input_and_task"
    networks = ("encoder",)

    def __init__(self, encoder: InputEncoder, tasks: TaskEmbedding, *, seed: int = 0) -> None:
        for argument, value, kind in (
            ("encoder", encoder, InputEncoder),
            ("tasks", tasks, TaskEmbedding),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"`{argument}` must be a {kind.__name__}, got {value!r}")
        super().__init__(encoder.dim)
        if tasks.dim != encoder.dim:
            raise ValueError(f"`tasks` must have `dim` {encoder.dim}, got {tasks.dim}")
        check_size("B of `dim`³", self.dim**3)
        self.encoder, self.tasks = encoder, tasks
        self.per_sample = encoder.per_sample
        self.names = tasks.names
        self.mix = nn.Bilinear(self.dim, self.dim, self.dim)
        initialise(self.mix, seed)

    def read(self, task: Any) -> Any:
        """As `TaskConditioner.read`."""
        return self.tasks.read(task)

    def compute(
        self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, int | None]:
        """Embeddings ``[batch, dim]``, or ``[dim]`` for the batch."""
        z, row = self.encoder.encode(args, kwargs), None
        if is_whole(task) and task.ndim == 1:
            if not self.per_sample:
                raise ValueError("`task` must be one task, as the whole batch has one model")
            if len(task) != len(z):
                raise ValueError(f"`task` must name {len(z)} samples, got {len(task)}")
            for number in task.unique().tolist():
                self.tasks.index(number)
            t = self.tasks(task.to(z.device))
        else:
            row = self.tasks.row(task)
            t = self.tasks.at(row).expand_as(z)
        z = self.mix(z.to(t.dtype), t)  # autocast does not apply to bilinear layers
        return (z, row) if self.per_sample else (_mean(z), row)

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, without the encoder."""
        return {
            "kind": self.kind,
            "encoder": self.encoder.to_config(),
            "tasks": self.tasks.to_config(),
        }


class Noise(Conditioner):
    """Random embeddings: a distribution over models.

    z ~ N(0, 1), drawn at every call from PyTorch's global generator.

    ``task`` is left out, or is an embedding ``[dim]``, to get the same model again.

    Args:
        dim: latent size, at least 2.
        per: a model for each ``"sample"`` or for each ``"batch"``.

    Source: D. Krueger et al., "Bayesian hypernetworks" (2017).

    >>> Noise(dim=8).embed(None, (), {})[0].shape
    torch.Size([8])
    """

    kind = "noise"

    where: Tensor

    def __init__(self, dim: int = 64, *, per: str = "batch") -> None:
        super().__init__(dim)
        check_choice("per", per, PER)
        self.per = per
        self.per_sample = per == "sample"
        # an empty tensor with the module's device and dtype
        self.register_buffer("where", torch.empty(0), persistent=False)

    def compute(
        self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, int | None]:
        """An embedding ``[dim]``, or one for each sample of the first tensor argument."""
        if task is not None:
            raise TypeError(f"`task` must be left out, or an embedding; got {task!r}")
        if not self.per_sample or not (args or kwargs):
            return self.where.new_empty(self.dim).normal_(), 0
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim]
        if not tensors:
            raise TypeError("a model for each sample needs a tensor among the target's arguments")
        first = tensors[0]
        return self.where.new_empty(len(first), self.dim).normal_(), None

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"kind": self.kind, "dim": self.dim, "per": self.per}


def _mean(z: Tensor) -> Tensor:
    if len(z) == 0:
        raise ValueError("the model of a batch needs at least one sample, got none")
    return z.mean(0)
