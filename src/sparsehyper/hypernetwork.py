"""The hypernetwork: conditioner, generator and target joined.

θ(task) = base + scale ⊙ G(normalise(z(task)))        y = target(x; θ)
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Self, SupportsIndex, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper import _persistence
from sparsehyper._checks import check_integer, check_number
from sparsehyper._random import spawn_seeds
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Generator
from sparsehyper.layout import Select
from sparsehyper.mixing import run_tasks
from sparsehyper.target import Target

Task = str | SupportsIndex | Tensor


class HyperNetwork(nn.Module):
    """One network that produces the parameters of another, for many tasks.

    Args:
        target: any module. It is copied, and never changed.
        generator: how parameters come out: ``Sparse(…)``, ``Chunked(…)`` or ``Dense(…)``.
        conditioner: from a task to its embedding: ``TaskEmbedding(…)``; taken over, not copied.
        generate: which of the target's trainable parameters to generate: a glob such as
            ``"layer*"``, several, or a predicate ``(name, parameter) -> bool``. Parameters with
            ``requires_grad=False`` are left as they are.
        others: the parameters that are not generated are ``"shared"`` by all tasks and trained,
            or ``"frozen"``.
        base: what the generated vector is added to: ``"zeros"``, ``"learned"`` or
            ``"pretrained"``, the target's own values. Norm scales start at 1 in any case.
        scale: multiplies the initial standard deviation of every generated tensor; None for 1, or
            for 0.1 on a pretrained base, which a full-sized addition would drown.
        norm_stats: batch-norm statistics are kept ``"per_task"``, ``"shared"`` by all tasks, or
            always those of the ``"batch"``, in evaluation too.
        seed: of the generator's wiring and weights.

    Raises:
        ValueError: a setting outside its range, or a target with nothing to generate.

    Source: D. Ha et al., "HyperNetworks" (ICLR 2017); task embeddings as in J. von Oswald et al.,
    "Continual learning with hypernetworks" (ICLR 2020).

    >>> from sparsehyper import Sparse
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> hnet(torch.randn(3, 5), task="bags").shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        target: nn.Module,
        generator: Generator,
        conditioner: TaskEmbedding,
        *,
        generate: Select = "*",
        others: str = "shared",
        base: str = "zeros",
        scale: float | None = None,
        norm_stats: str = "per_task",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("seed", seed, minimum=0)
        if scale is None:
            scale = 0.1 if base == "pretrained" else 1.0
        check_number("scale", scale, above=0)
        for argument, value, kind in (
            ("target", target, nn.Module),
            ("generator", generator, Generator),
            ("conditioner", conditioner, TaskEmbedding),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"`{argument}` must be a {kind.__name__}, got {value!r}")
        self.conditioner = conditioner
        self.target = Target(
            target,
            generate=generate,
            others=others,
            base=base,
            scale=scale,
            norm_stats=norm_stats,
            tasks=len(conditioner.names),
        )
        self.generator = generator.build(
            conditioner.dim, self.target.numel, spawn_seeds(seed, 1)[0]
        )
        self.config = {
            "generator": generator.to_config(),
            "others": others,
            "base": base,
            "scale": scale,
            "norm_stats": norm_stats,
            "seed": seed,
        }
        self.generator.to(self.target.moments)
        self.conditioner.to(self.target.moments)
        self.train(target.training)

    def forward(self, *args: Any, task: Task, **kwargs: Any) -> Any:
        """The target's output under the parameters generated for ``task``.

        Args:
            *args, **kwargs: what the target takes.
            task: a task's name or number for the whole batch; an integer tensor ``[batch]`` of one
                task per sample, where every tensor argument and output has the batch first; or an
                embedding, a float tensor ``[latent_dim]``.

        Raises:
            KeyError, IndexError: an unknown task.
            TypeError: a ``task`` that is none of these.
            ValueError: a ``task`` tensor of a wrong shape or dtype, or, with one task per sample,
                a tensor that has not the batch first.
        """
        if _is_ids(task) and task.ndim == 1:
            return self._forward_per_sample(task, args, kwargs)
        z, row = self._resolve(task)
        return self.target(self._tensors(z), row, args, kwargs)

    def theta(self, z: Tensor) -> Tensor:
        """Flat parameter vectors ``[batch, numel]`` for embeddings ``[batch, latent_dim]``."""
        return self.target.parameters_at(self.generated(z))

    def generated(self, z: Tensor) -> Tensor:
        """G(normalise(z)) ``[batch, numel]`` for embeddings ``[batch, latent_dim]``."""
        if z.ndim != 2 or z.shape[1] != self.conditioner.dim:
            raise ValueError(
                f"`z` must have shape [batch, {self.conditioner.dim}], got {list(z.shape)}"
            )
        normalised = F.layer_norm(z, z.shape[-1:])
        return self.generator(normalised)

    def generate(self, task: Task) -> dict[str, Tensor]:
        """The generated tensors of one task, by the target's own names.

        Args:
            task: a name, a number, or an embedding ``[latent_dim]``.

        Returns:
            New tensors, differentiable.
        """
        z, _ = self._resolve(task)
        names = [spec.name for spec in self.target.layout]
        return dict(zip(names, self._tensors(z), strict=True))

    @torch.no_grad()
    def materialize(self, task: Task) -> nn.Module:
        """An ordinary module for one task, which shares no memory with this one.

        Args:
            task: a name, a number, or an embedding ``[latent_dim]``; an embedding gets the mean
                batch-norm statistics of all tasks.
        """
        z, row = self._resolve(task)
        return self.target.materialize(self._tensors(z), row)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, by number."""
        return tuple(self.conditioner.names)

    def add_task(self, name: str, init: str | Tensor = "mean") -> int:
        """Add a task and return its number.

        The embedding table becomes a new, longer parameter: make optimisers afterwards.

        Args:
            name: a name no task has yet.
            init: its embedding: ``"mean"`` of the known ones, a known task's name, or ``[dim]``.
        """
        self.conditioner.add(name, init)
        self.target.add_task()
        return len(self.conditioner.names) - 1

    def remove_task(self, name: str) -> None:
        """Forget a task: its embedding and its statistics.

        The numbers of later tasks fall by one, and the embedding table becomes a new parameter.

        Raises:
            KeyError: no such task.
            ValueError: it is the only one.
        """
        row = self.conditioner.index(name)
        self.conditioner.remove(name)
        self.target.remove_task(row)

    def rename_task(self, name: str, new_name: str) -> None:
        """Give a task another name.

        Raises:
            KeyError: no such task.
            TypeError, ValueError: ``new_name`` is no name, or a task already.
        """
        self.conditioner.rename(name, new_name)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` to a new directory.

        The directory appears whole or not at all.

        Raises:
            FileExistsError: ``directory`` exists.
        """
        config = {
            **self.config,
            "conditioner": self.conditioner.to_config(),
            "layout": [[spec.name, list(spec.shape)] for spec in self.target.layout],
        }
        _persistence.save(directory, config, self.state_dict())

    @classmethod
    def load(cls, directory: str | PathLike[str], target: nn.Module) -> Self:
        """Read what ``save`` wrote.

        Args:
            directory: the directory.
            target: a module like the one it was made with; its values do not matter.

        Raises:
            FileNotFoundError: there is no such directory or it lacks a file.
            ValueError: a damaged file, or a target with other parameters.
        """
        return _persistence.load(cls, directory, target)

    def _tensors(self, z: Tensor) -> tuple[Tensor, ...]:
        """The generated tensors of one embedding ``[latent_dim]``."""
        return self.target.tensors_at(self.generated(z[None])[0])

    def _resolve(self, task: Task) -> tuple[Tensor, int | None]:
        """Embedding ``[latent_dim]`` of one task, and the row of its statistics."""
        if isinstance(task, Tensor) and task.is_floating_point():
            if task.shape != (self.conditioner.dim,):
                raise ValueError(
                    f"a floating-point `task` is an embedding of shape [{self.conditioner.dim}], "
                    f"got shape {list(task.shape)}; task numbers must be integers"
                )
            return task.to(self.conditioner.weight.dtype), None
        if isinstance(task, Tensor) and (task.ndim or not _is_ids(task)):
            raise ValueError(
                "`task` must be one name, number or embedding here, "
                f"got a tensor of shape {list(task.shape)} and dtype {task.dtype}"
            )
        row = self.conditioner.index(task)
        return self.conditioner.weight[row], row

    def _forward_per_sample(self, task: Tensor, args: Any, kwargs: Any) -> Any:
        """One task id per sample: parameters and target once per distinct task."""
        distinct, inverse, counts = torch.unique(task, return_inverse=True, return_counts=True)
        if len(task) == 0:  # one run of no samples, for an output of the right shape
            distinct = counts = task.new_zeros(1)
        # Tasks with equally many samples stand together, as they may share a run.
        counts, place = counts.sort(stable=True)
        distinct, order = distinct[place], place.argsort()[inverse].argsort(stable=True)
        rows = [self.conditioner.index(row) for row in distinct.tolist()]
        sizes = counts.tolist()
        generated = self.generated(self.conditioner(distinct))
        return run_tasks(self.target, generated, rows, sizes, order, (args, kwargs))


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _is_ids(task: Any) -> TypeGuard[Tensor]:
    return isinstance(task, Tensor) and task.dtype in _INTEGERS
