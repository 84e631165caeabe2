"""The hypernetwork: conditioner, generator and target joined.

θ(task) = base + scale ⊙ G(normalise(z(task)))        y = target(x; θ)
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparsehyper import saving
from sparsehyper._util.checks import check_integer, check_number
from sparsehyper._util.random import spawn_seeds
from sparsehyper.conditioning import (
    Condition,
    Conditioner,
    TaskConditioner,
    TaskEmbedding,
    is_ids,
)
from sparsehyper.generators import Generator
from sparsehyper.layout import Select
from sparsehyper.target.adapters import merge
from sparsehyper.target.many_tasks import run_tasks
from sparsehyper.target.target import Target


class HyperNetwork(nn.Module):
    """One network that produces the parameters of another, for many tasks.

    Args:
        target: any module. It is copied, and never changed.
        generator: how parameters come out: ``Sparse(…)``, ``Chunked(…)``, ``Dense(…)``, ….
        conditioner: from a task, an input or examples to the embedding: ``TaskEmbedding(…)``,
            ``InputEncoder(…)``, …; taken over, not copied.
        generate: which of the target's trainable parameters to generate: a glob such as
            ``"layer*"``, several, or a predicate ``(name, parameter) -> bool``. Parameters with
            ``requires_grad=False`` are left as they are.
        others: the parameters that are not generated are ``"shared"`` by all tasks and trained,
            or ``"frozen"``.
        base: what the generated vector is added to: ``"learned"``, a trained vector that all tasks
            share, which starts at zeros; ``"zeros"``, without it; ``"pretrained"``, the target's
            own values; or ``"residual"``, which starts at these and is learned. Norm scales start
            at 1 with the first two.
        init: the variance with which generated tensors start: ``"torch"``, that of PyTorch's own
            layers, ``"hyperfan_in"`` or ``"hyperfan_out"``, as ``target.initialisation`` has it.
        scale: multiplies the initial standard deviation of every generated tensor; None for 1, or
            for 0.1 on a base of the target's own values, which a full-sized addition would drown.
        norm_stats: batch-norm statistics are kept ``"per_task"``, ``"shared"`` by all tasks, or
            always those of the ``"batch"``, in evaluation too.
        noise: standard deviation of normal noise on embeddings of unit second moment, while
            training.
        dropout: share of an embedding's numbers set to zero while training, in [0, 1).
        seed: of the generator's wiring and weights.

    Raises:
        ValueError: a setting outside its range, a target with nothing to generate, or one with
            batch norms where every sample has a model of its own.

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
        conditioner: Conditioner,
        *,
        generate: Select = "*",
        others: str = "shared",
        base: str = "learned",
        init: str = "torch",
        scale: float | None = None,
        norm_stats: str = "per_task",
        noise: float = 0.0,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("seed", seed, minimum=0)
        if scale is None:
            scale = 0.1 if base in ("pretrained", "residual") else 1.0
        check_number("scale", scale, above=0)
        check_number("noise", noise, minimum=0)
        check_number("dropout", dropout, minimum=0)
        if dropout >= 1:
            raise ValueError(f"`dropout` must be less than 1, got {dropout}")
        for argument, value, kind in (
            ("target", target, nn.Module),
            ("generator", generator, Generator),
            ("conditioner", conditioner, Conditioner),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"`{argument}` must be a {kind.__name__}, got {value!r}")
        self.conditioner = conditioner
        self.target = Target(
            target,
            generate=generate,
            others=others,
            base=base,
            init=init,
            scale=scale,
            norm_stats=norm_stats,
            tasks=max(1, len(conditioner.names)),
        )
        norms = nn.modules.batchnorm._BatchNorm
        if conditioner.per_sample and any(isinstance(m, norms) for m in target.modules()):
            raise ValueError(
                "`conditioner` gives every sample a model of its own, so the target's batch norms "
                "would see one sample each; use group or layer norms"
            )
        if conditioner.per_sample and self.target.statistics.names:
            raise ValueError(
                "`conditioner` gives every sample a model of its own, so there is no task to keep "
                f"the target's buffer {self.target.statistics.names[0]!r} for"
            )
        self.generator = generator.build(
            conditioner.dim, self.target.layout, spawn_seeds(seed, 1)[0]
        )
        self._synchronising = False
        self.config: dict[str, Any] = {
            "generator": generator.to_config(),
            "others": others,
            "base": base,
            "init": init,
            "scale": scale,
            "norm_stats": norm_stats,
            "noise": noise,
            "dropout": dropout,
            "seed": seed,
        }
        self.generator.to(self.target.moments)
        self.conditioner.to(self.target.moments)
        # Parts of the target and a network in the conditioner stay in the mode they are in.
        self.training = self.target.training = target.training
        self.generator.train(target.training)

    def forward(self, *args: Any, task: Condition = None, **kwargs: Any) -> Any:
        """The target's output under the parameters generated for ``task``.

        Args:
            *args, **kwargs: what the target takes.
            task: what the conditioner takes. With named tasks: a name or number for the whole
                batch; an integer tensor ``[batch]`` of one task per sample, where every tensor
                argument and output has the batch first; or an embedding, a float tensor
                ``[latent_dim]``. It can be left out where there is one task, or none.

        Raises:
            KeyError, IndexError: an unknown task.
            TypeError: a ``task`` that is none of these.
            ValueError: a ``task`` tensor of a wrong shape or dtype, or, with one model per sample,
                a tensor whose first dimension is not the batch.
        """
        around = None if torch.compiler.is_compiling() else _data_parallel_around()
        if not (self.training and around is not None and self._is_overwritten(around)):
            return self._run(task, args, kwargs)
        self._synchronising = True
        try:
            out = self._run(task, args, kwargs)
        finally:
            self._synchronising = False
        self.sync_statistics(around.process_group)
        return out

    def sync_statistics(self, group: ProcessGroup | None = None) -> None:
        """Bring together the batch-norm statistics that several processes have collected.

        A task's statistics become their mean over processes, weighted by the batches that each has
        seen of the task since the last call. All processes of the group must call it, before the
        model is saved or evaluated. ``DistributedDataParallel(hnet)`` does so by itself after every
        forward pass in training, unless it was told not to broadcast buffers.

        Args:
            group: of processes; None for all.

        Raises:
            ValueError: the target has statistics, but no norm that counts its batches.
        """
        self.target.statistics.synchronise(self.target.module, group)

    def embedding(self, task: Condition = None, *args: Any, **kwargs: Any) -> Tensor:
        """The embedding of a task, or of an input: ``[latent_dim]``, or ``[batch, latent_dim]``.

        Means and other mixtures of embeddings are embeddings too, and may be given as ``task``.

        Args:
            task: what the conditioner takes.
            *args, **kwargs: what the target takes, where the conditioner looks at it.
        """
        return self.conditioner.embed(task, args, kwargs)[0]

    @staticmethod
    def normalise(z: Tensor) -> Tensor:
        """Embeddings ``[…, latent_dim]`` as the generator sees them: mean 0, variance 1."""
        return F.layer_norm(z, z.shape[-1:])

    def theta(self, z: Tensor) -> Tensor:
        """Flat parameter vectors ``[batch, numel]`` for embeddings ``[batch, latent_dim]``."""
        return self.target.parameters_at(self.generated(z))

    def generated(self, z: Tensor) -> Tensor:
        """G(normalise(z)) ``[batch, numel]`` for embeddings ``[batch, latent_dim]``."""
        if z.ndim != 2 or z.shape[1] != self.conditioner.dim:
            raise ValueError(
                f"`z` must have shape [batch, {self.conditioner.dim}], got {list(z.shape)}"
            )
        return self.generator(self.normalise(z))

    def generate(self, task: Condition = None) -> dict[str, Tensor]:
        """The generated tensors of one task, by the target's own names.

        Args:
            task: what the conditioner takes for one model, an embedding ``[latent_dim]`` at any
                rate.

        Returns:
            New tensors, differentiable.
        """
        z, _ = self._one(task)
        names = [spec.name for spec in self.target.layout]
        return dict(zip(names, self._tensors(z), strict=True))

    @torch.no_grad()
    def materialize(self, task: Condition = None) -> nn.Module:
        """An ordinary module for one task, which shares no memory with this one.

        Adapters and masks of `sparsehyper.adapters` are merged into the layers they are on.

        Args:
            task: as `generate` takes it; an embedding gets the mean batch-norm statistics of all
                tasks.
        """
        z, row = self._one(task)
        return merge(self.target.materialize(self._tensors(z), row))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, by number."""
        return tuple(self.conditioner.names)

    @property
    def tasks(self) -> TaskConditioner:
        """The tasks that the hypernetwork knows by name.

        Raises:
            TypeError: it knows none, being conditioned on something else.
        """
        table = getattr(self.conditioner, "tasks", self.conditioner)
        if not isinstance(table, TaskConditioner):
            raise TypeError(
                f"the hypernetwork knows no tasks by name; its conditioner is a "
                f"{type(self.conditioner).__name__}"
            )
        return table

    @property
    def task_embedding(self) -> TaskEmbedding:
        """The table of embeddings, one a task.

        Raises:
            TypeError: embeddings are computed from something else.
        """
        if not isinstance(self.conditioner, TaskEmbedding):
            raise TypeError(
                "this needs a hypernetwork whose `conditioner` is a TaskEmbedding, got a "
                f"{type(self.conditioner).__name__}"
            )
        return self.conditioner

    def add_task(self, name: str, init: str | Tensor = "mean") -> int:
        """Add a task and return its number.

        The embedding table becomes a new, longer parameter: make optimisers afterwards.

        Args:
            name: a name no task has yet.
            init: its embedding: ``"mean"`` of the known ones, a known task's name, or ``[dim]``;
                with `TaskFeatures`, its features.
        """
        self.tasks.add(name, init)
        self.target.add_task()
        return len(self.conditioner.names) - 1

    def remove_task(self, name: str) -> None:
        """Forget a task: its embedding and its statistics.

        The numbers of later tasks fall by one, and the embedding table becomes a new parameter.

        Raises:
            KeyError: no such task.
            ValueError: it is the only one.
        """
        row = self.tasks.index(name)
        self.tasks.remove(name)
        self.target.remove_task(row)

    def rename_task(self, name: str, new_name: str) -> None:
        """Give a task another name.

        Raises:
            KeyError: no such task.
            TypeError, ValueError: ``new_name`` is no name, or a task already.
        """
        self.tasks.rename(name, new_name)

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
        saving.save(directory, config, self)

    @classmethod
    def load(
        cls,
        directory: str | PathLike[str],
        target: nn.Module,
        conditioner: Conditioner | None = None,
    ) -> Self:
        """Read what ``save`` wrote; what was frozen then is frozen, and nothing else.

        Args:
            directory: the directory.
            target: a module like the one it was made with; its values do not matter.
            conditioner: one like that it was made with, where that holds a network of your own;
                its values do not matter.

        Raises:
            FileNotFoundError: there is no such directory or it lacks a file.
            ValueError: a damaged file, a target with other parameters, or another conditioner.
        """
        return saving.load(cls, directory, target, conditioner)

    def _is_overwritten(self, around: DistributedDataParallel) -> bool:
        """Whether process 0's buffers will replace these, so that they must be brought together.

        Raises:
            ValueError: they will, where it is not known which processes call this network.
        """
        if not self.target.statistics.names or not around.broadcast_buffers or self._synchronising:
            return False
        if around.module is not self:
            raise ValueError(
                "`DistributedDataParallel` replaces the batch-norm statistics of every task by "
                "those of process 0; give it `broadcast_buffers=False`, and call "
                "`sync_statistics()` on all processes before you save or evaluate"
            )
        return True

    def _run(self, task: Condition, args: Any, kwargs: Any) -> Any:
        """The target's output, for one task or for one model a sample."""
        if is_ids(task) and task.ndim == 1 and isinstance(self.conditioner, TaskConditioner):
            return self._forward_per_task(self.conditioner, task, args, kwargs)
        z, row = self.conditioner.embed(task, args, kwargs)
        z = self._noisy(z)
        if z.ndim == 1:
            return self.target(self._tensors(z), row, args, kwargs)
        if len(z) == 0:  # any model, for an output of the right shape
            return self.target(self._tensors(z.new_zeros(z.shape[1])), None, args, kwargs)
        order, sizes = torch.arange(len(z), device=z.device), [1] * len(z)
        return run_tasks(self.target, self.generated(z), [], sizes, order, (args, kwargs))[0]

    def _tensors(self, z: Tensor) -> tuple[Tensor, ...]:
        """The generated tensors of one embedding ``[latent_dim]``."""
        return self.target.tensors_at(self.generated(z[None])[0])

    def _noisy(self, z: Tensor) -> Tensor:
        """Embeddings with the noise and dropout of training."""
        noise, dropout = self.config["noise"], self.config["dropout"]
        if not self.training or not (noise or dropout):
            return z
        normalised = self.normalise(z)
        return F.dropout(normalised + noise * torch.randn_like(normalised), dropout)

    def _one(self, task: Condition) -> tuple[Tensor, int | None]:
        """Embedding ``[latent_dim]`` of one model, and the row of its statistics."""
        z, row = self.conditioner.embed(task, (), {})
        if z.ndim != 1:
            raise ValueError(f"`task` must stand for one model here, got {len(z)}")
        return z, row

    def _forward_per_task(
        self, conditioner: TaskConditioner, task: Tensor, args: Any, kwargs: Any
    ) -> Any:
        """One task id per sample: parameters and target once per distinct task."""
        if task.is_meta:
            raise ValueError(
                "`task` is on the meta device, where it has no values to tell one model for each "
                "sample by; give one task for the whole batch"
            )
        distinct, inverse, counts = torch.unique(task, return_inverse=True, return_counts=True)
        if len(task) == 0:  # one run of no samples, for an output of the right shape
            distinct = counts = task.new_zeros(1)
        # Tasks with equally many samples stand together, as they may share a run.
        counts, place = counts.sort(stable=True)
        distinct, order = distinct[place], place.argsort()[inverse].argsort(stable=True)
        rows = [conditioner.index(row) for row in distinct.tolist()]
        sizes = counts.tolist()
        generated = self.generated(self._noisy(conditioner(distinct)))
        statistics = self.target.statistics.rows(self.target.module, rows)
        out, changed = run_tasks(self.target, generated, statistics, sizes, order, (args, kwargs))
        if changed is not None:
            self.target.statistics.put(self.target.module, rows, changed)
        return out


def _data_parallel_around() -> DistributedDataParallel | None:
    """The ``DistributedDataParallel`` whose forward pass runs now."""
    return DistributedDataParallel._active_ddp_module
