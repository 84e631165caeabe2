"""The hypernetwork: conditioner, generator and target joined.

    θ(task) = base + scale ⊙ G(normalise(z(task)))        y = target(x; θ)

In code, for one task, a call is

    z, row = conditioner.embed(task, args, kwargs)     z(task), and the row of the task's statistics
    raw = generator(normalise(z[None]))[0]             G(normalise(z)), by `raw_theta`
    tensors = target.unpack(raw)                       θ = base + scale ⊙ raw, tensor by tensor
    y = target(tensors, row, args, kwargs)             target(x; θ)

``theta`` returns θ as flat vectors, and ``generate`` returns the tensors of a task by name. With a
``head`` in closed form, the target lacks its last layer and y are features, to which the task's own
head, which was solved from its examples, is applied (`heads`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparsehyper._util.checks import check_integer, check_number, check_type, is_whole
from sparsehyper._util.fingerprints import fingerprints
from sparsehyper._util.modes import evaluation_mode
from sparsehyper._util.random import spawn_seeds
from sparsehyper.conditioning import Condition, Conditioner, TaskConditioner
from sparsehyper.generators import Generator
from sparsehyper.heads import Head, SolvedHead
from sparsehyper.layout import Select
from sparsehyper.recipes import describe
from sparsehyper.storing import Stored
from sparsehyper.target.adapters import merge
from sparsehyper.target.copying import copy_module
from sparsehyper.target.many_tasks import Grouping, group_samples, run_tasks
from sparsehyper.target.target import Target

Output = TypeVar("Output")
"""What the target returns."""

_Output_co = TypeVar("_Output_co", covariant=True)


class Returns(Protocol[_Output_co]):
    """For type checkers: a module whose ``forward`` returns a known type, or ``Any``."""

    def forward(self, *args: Any, **kwargs: Any) -> _Output_co: ...


class HyperNetwork(Stored, Generic[Output]):
    """One network that produces the parameters of another, for many tasks.

    For type checkers it is generic in what the target's ``forward`` is annotated to return, which a
    call returns too.

    Args:
        target: any module. It is never changed; see ``copy``.
        generator: the kind of generator: ``Sparse(…)``, ``Chunked(…)``, ``Dense(…)``, ….
        conditioner: computes the embedding from a task, an input or examples: ``TaskEmbedding(…)``,
            ``InputEncoder(…)``, …; it is used as it is, not copied.
        generate: trainable parameters of the target to generate: a glob such as
            ``"layer*"``, several, or a predicate ``(name, parameter) -> bool``. Parameters with
            ``requires_grad=False`` are left as they are.
        others: trainable parameters that are not generated are ``"shared"`` by all tasks and
            trained, or ``"frozen"``.
        base: vector that the generated one is added to: ``"learned"``, a trained vector that all
            tasks share, which starts at zeros; ``"zeros"``, nothing; ``"pretrained"``, the target's
            own values; or ``"residual"``, which starts at these and is trained. With the first
            two, norm scales start at 1.
        init: initial variance of generated tensors: ``"torch"``, that of PyTorch's own layers,
            ``"hyperfan_in"`` or ``"hyperfan_out"``; see ``target.initialisation``.
        scale: factor of the initial standard deviation of every generated tensor; None for 1, or
            for 0.1 if the base holds the target's own values, which an addition of full size would
            drown out.
        norm_stats: batch-norm statistics are kept ``"per_task"``, ``"shared"`` by all tasks, or
            taken from the ``"batch"``, in evaluation too.
        noise: standard deviation of the normal noise on normalised embeddings in training.
        dropout: probability, in [0, 1), of setting an element of an embedding to zero in training.
        head: ``Ridge()`` or ``Prototypes()`` to solve the target's last linear layer from a task's
            examples, by `solve_head`; None to generate it like the others.
        copy: copy the whole target. False is for a frozen one that cannot be held twice: what is
            frozen then shares its memory with ``target``, so leave its values alone.
        seed: seed of the generator's wiring and weights.

    Raises:
        ValueError: a setting outside its range, a target with nothing to generate, a target
            with batch norms where every sample has a model of its own, or a ``head`` that the
            target has no layer for.
        TypeError: an argument of a wrong type, or a ``head`` without named tasks.

    Source: D. Ha et al., "HyperNetworks" (ICLR 2017); task embeddings as in J. von Oswald et al.,
    "Continual learning with hypernetworks" (ICLR 2020).

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> hnet(torch.randn(3, 5), task="bags").shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        target: Returns[Output],
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
        head: Head | None = None,
        copy: bool = True,
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
        check_type("target", target, nn.Module, "a Module")
        assert isinstance(target, nn.Module)  # for type checkers
        check_type("generator", generator, Generator, "a Generator")
        check_type("conditioner", conditioner, Conditioner, "a Conditioner")
        self.conditioner = conditioner
        self._recipe = describe(target)
        self.head: SolvedHead | None = None
        self.head_layer = ""  # name of the layer that the head replaces
        if head is not None:
            check_type("head", head, Head, "a head such as Ridge()")
            self.head_layer, layer = head.find(target)
            head = replace(head, layer=self.head_layer)  # "the last" may be another when loaded
            self.head = SolvedHead(head, layer, len(self.tasks.names))
            tensors = [*target.parameters(), *target.buffers()]  # copied below
            target = copy_module(target, tensors)
            target.set_submodule(self.head_layer, nn.Identity())
        self.target = Target(
            target,
            generate=generate,
            others=others,
            base=base,
            init=init,
            scale=scale,
            norm_stats=norm_stats,
            tasks=max(1, len(conditioner.names)),
            copy=copy,
        )
        if conditioner.per_sample:
            _check_per_sample(target, self.target)
        self.generator = generator.build(
            conditioner.dim, self.target.layout, spawn_seeds(seed, 1)[0]
        )
        # Fingerprints of what a file need not hold, by name: `load` is given it again.
        self._given = {f"target.{name}": found for name, found in self.target.given.items()}
        networks = tuple(f"{name}." for name in conditioner.networks)
        self._given |= fingerprints(
            {
                f"conditioner.{name}": parameter
                for name, parameter in conditioner.named_parameters()
                if name.startswith(networks) and not parameter.requires_grad
            }
        )
        self._synchronising = False
        # In place of `raw_theta` for tasks by number, where processes share a gradient.
        self.raw_of_tasks: Callable[[Tensor], Tensor] | None = None
        self.settings: dict[str, Any] = {
            "generator": generator.to_config(),
            "others": others,
            "base": base,
            "init": init,
            "scale": scale,
            "norm_stats": norm_stats,
            "noise": noise,
            "dropout": dropout,
            "head": head and head.to_config(),
            "seed": seed,
        }
        self.generator.to(self.device, self.dtype)
        self.conditioner.to(self.device, self.dtype)
        # Parts of the target, and networks in the conditioner, keep the mode they are in.
        self.training = self.target.training = target.training
        self.generator.train(target.training)
        for name, part in conditioner.named_modules():
            if not f"{name}.".startswith(networks):
                part.training = target.training

    @property
    def device(self) -> torch.device:
        """Where the hypernetwork is, and where inputs and embeddings are wanted."""
        return self.target.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of embeddings and of generated tensors."""
        return self.target.dtype

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the target takes ``num_items_in_batch``, as Hugging Face's ``Trainer`` asks."""
        module = self.target.module
        kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
        return getattr(module, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds)

    if TYPE_CHECKING:  # nn.Module's takes and returns anything

        def __call__(
            self,
            *args: Any,
            task: Condition | Grouping = None,
            solve_for: Tensor | None = None,
            **kwargs: Any,
        ) -> Output: ...

    def forward(
        self,
        *args: Any,
        task: Condition | Grouping = None,
        solve_for: Tensor | None = None,
        **kwargs: Any,
    ) -> Output:
        """The target's output under the parameters generated for ``task``.

        Args:
            *args, **kwargs: arguments of the target.
            task: a condition that the conditioner accepts. With named tasks: a name or number for
                the whole batch; one for each sample, in a list, tuple, array or integer tensor
                ``[batch]``, where the first dimension of every argument that is a tensor or array,
                and of every output, must be the batch (best on the CPU, since the work depends on
                the numbers: a GPU has to be waited for); or an embedding, a float tensor
                ``[latent_dim]``. It can be left out if there is one task, or none. What `group`
                returns stands for the tasks that it was given. An embedding has no head, so that
                with a ``head`` the output is the features.
            solve_for: labels of the samples, class numbers ``[batch]`` or numbers
                ``[batch, outputs]``; only to train a hypernetwork with a ``head``. Each sample is
                then predicted by the head solved from the other samples of its task in this batch,
                which should be no copies of it.
                Without it, the heads are those that `solve_head` kept.

        Raises:
            KeyError, IndexError: an unknown task.
            TypeError: a ``task`` that is none of these.
            ValueError: a ``task`` tensor of a wrong shape or dtype, or, with one model per sample,
                a tensor whose first dimension is not the batch.
        """
        if not isinstance(task, Grouping):
            task = self.conditioner.read(task)
        around = None if torch.compiler.is_compiling() else _data_parallel_around()
        if not (self.training and around is not None and self._is_overwritten(around)):
            return self._outputs(task, solve_for, args, kwargs)
        self._synchronising = True
        try:
            out = self._outputs(task, solve_for, args, kwargs)
        finally:
            self._synchronising = False
        self.sync_statistics(around.process_group)
        return out

    def _outputs(
        self, task: Condition | Grouping, solve_for: Tensor | None, args: Any, kwargs: Any
    ) -> Any:
        """The target's output, or that of the tasks' heads."""
        if self.head is None:
            if solve_for is not None:
                raise ValueError("`solve_for` is for a hypernetwork with a `head`, this has none")
            return self._run(task, args, kwargs)
        features = self._run(task, args, kwargs)
        rows: int | Tensor | None
        if isinstance(task, Grouping):
            rows = task.of_samples()
        elif is_whole(task) and task.ndim == 1:
            rows = task.to(features.device)
        elif isinstance(task, (tuple, list)) or self.tasks.given(task) is not None:
            rows = None  # examples or an embedding, without a name
        else:
            rows = self.tasks.row(task)
        if solve_for is not None:
            own = rows if isinstance(rows, Tensor) else None
            return self.head.leave_one_out(features, solve_for, own)
        return features if rows is None else self.head(features, rows)

    def features(self, *args: Any, task: Condition | Grouping = None, **kwargs: Any) -> Tensor:
        """The inputs of the ``head``, ``[batch, features]``; arguments as for `forward`.

        Raises:
            ValueError: the hypernetwork has no ``head`` in closed form.
        """
        if not isinstance(task, Grouping):
            task = self.conditioner.read(task)
        features = self._run(task, args, kwargs)
        self.own_head().check(features)
        return features

    def group(self, task: Condition, batch: int) -> Grouping:
        """Work out which samples of a batch belong to which task, before the batch is run.

        A call with the result reads nothing back from the device, so that a CUDA graph can capture
        it: it may be replayed with other tasks as long as their numbers of samples are the same.

        Args:
            task: a name or number for the whole batch; or one for each sample, in a list or an
                integer tensor ``[batch]``.
            batch: number of samples.

        Raises:
            KeyError, IndexError: an unknown task.
            TypeError: ``task`` is none of these, or the conditioner knows no tasks by name.
            ValueError: ``task`` does not have one entry per sample.
        """
        if not isinstance(self.conditioner, TaskConditioner):
            raise TypeError(
                "`group` is for a conditioner with named tasks, got a "
                f"{type(self.conditioner).__name__}"
            )
        task = self.conditioner.read(task)
        if not is_whole(task) or task.ndim == 0:
            row = torch.tensor([self.conditioner.row(task)])
            return Grouping(row, (batch,), None).to(self.device)
        if task.shape != (batch,):
            raise ValueError(
                f"`task` must have one entry for each of the {batch} samples, got shape "
                f"{list(task.shape)}"
            )
        return self._group(self.conditioner, task)

    def _group(self, conditioner: TaskConditioner, task: Tensor) -> Grouping:
        grouping = group_samples(task.cpu())
        for number in grouping.tasks.tolist():
            conditioner.index(number)
        return grouping.to(self.device)

    def _run(self, task: Condition | Grouping, args: Any, kwargs: Any) -> Any:
        """The target's output, with one model for the batch or one for each sample."""
        if isinstance(task, Grouping):
            return self._run_grouped(task, args, kwargs)
        if is_whole(task) and task.ndim == 1 and isinstance(self.conditioner, TaskConditioner):
            if task.is_meta:
                raise ValueError(
                    "`task` is on the meta device and has no values, so the task of each sample is "
                    "unknown; give one task for the whole batch"
                )
            return self._run_grouped(self._group(self.conditioner, task), args, kwargs)
        z, row = self.conditioner.embed(task, args, kwargs)
        if row is not None and self.raw_of_tasks is not None:
            raw = self.raw_of_tasks(torch.tensor([row], device=z.device)).squeeze(0)
            return self.target(self.target.unpack(raw), row, args, kwargs)
        z = self._noisy(z)
        if z.ndim == 1:
            return self.target(self._tensors(z), row, args, kwargs)
        if len(z) == 0:  # any model gives an output of the right shape
            return self.target(self._tensors(z.new_zeros(z.shape[1])), None, args, kwargs)
        order, counts = torch.arange(len(z), device=z.device), [1] * len(z)
        return run_tasks(self.target, self.raw_theta(z), [], counts, order, (args, kwargs))[0]

    def _tensors(self, z: Tensor) -> tuple[Tensor, ...]:
        """θ(z) as tensors, for one embedding ``[latent_dim]``."""
        return self.target.unpack(self.raw_theta(z[None]).squeeze(0))

    def raw_theta(self, z: Tensor) -> Tensor:
        """G(normalise(z)) ``[batch, numel]``: θ before scale and base.

        Args:
            z: embeddings ``[batch, latent_dim]``.
        """
        if z.ndim != 2 or z.shape[1] != self.conditioner.dim:
            raise ValueError(
                f"`z` must have shape [batch, {self.conditioner.dim}], got {list(z.shape)}"
            )
        return self.generator(self.normalise(z))

    @staticmethod
    def normalise(z: Tensor) -> Tensor:
        """Embeddings ``[…, latent_dim]`` with mean 0 and variance 1: the generator's input."""
        if forward_ad._current_level < 0:
            return F.layer_norm(z, z.shape[-1:])
        # The forward-mode derivative of PyTorch's own has wrong derivatives.
        z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def theta(self, z: Tensor) -> Tensor:
        """Flat parameter vectors θ ``[batch, numel]`` for embeddings ``[batch, latent_dim]``."""
        tensors = zip(self.target.layout, self.target.unpack(self.raw_theta(z)), strict=True)
        return torch.cat([tensor.reshape(len(z), spec.numel) for spec, tensor in tensors], 1)

    def generate(self, task: Condition = None) -> dict[str, Tensor]:
        """The generated tensors of one task or of several, by the target's own names.

        Args:
            task: a condition that the conditioner accepts for one model; an embedding
                ``[latent_dim]`` always works. Several names or numbers, in a list or an integer
                tensor ``[tasks]``, or embeddings ``[tasks, latent_dim]`` are generated at once.

        Returns:
            New tensors of the target's shapes, differentiable; ``[tasks, *shape]`` for several
            tasks, as ``torch.func.vmap`` and ``torch.func.functional_call`` take them.
        """
        task = self.conditioner.read(task)
        names = [spec.name for spec in self.target.layout]
        if isinstance(task, Tensor) and task.ndim == 2 and task.is_floating_point():
            tensors = self.target.unpack(self.raw_theta(task.to(self.dtype)))
        elif is_whole(task) and task.ndim == 1 and isinstance(self.conditioner, TaskConditioner):
            rows = [self.conditioner.index(number) for number in task.tolist()]
            z = self.conditioner(torch.tensor(rows, device=self.device))
            tensors = self.target.unpack(self.raw_theta(z))
        else:
            tensors = self._tensors(self._embed_one(task)[0])
        return dict(zip(names, tensors, strict=True))

    @torch.no_grad()
    def materialize(self, task: Condition = None, *, head: int | str | None = None) -> nn.Module:
        """An ordinary module for one task, which shares no memory with this one.

        Adapters and masks of `sparsehyper.adapters` are merged into their layers.

        Args:
            task: as `generate` takes it; a module for an embedding gets the mean batch-norm
                statistics of all tasks.
            head: the task whose head ends the module, for a hypernetwork with a ``head``; by
                default that of ``task``. A module for an embedding then returns features.

        Raises:
            ValueError: ``head`` is given, and the hypernetwork has no heads.
        """
        if head is not None and self.head is None:
            raise ValueError(f"`head` must be None without a `head` in closed form, got {head!r}")
        with evaluation_mode(self.conditioner):  # with embeddings that were kept of examples
            z, row = self._embed_one(task)
        statistics = self.target.statistics.row(self.target.module, row)
        module = merge(self.target.materialize(self._tensors(z), statistics))
        last = row if head is None else self.tasks.index(head)
        if self.head is not None and last is not None:
            module.set_submodule(self.head_layer, self.head.linear(last))
        return module

    def embedding(self, task: Condition = None, *args: Any, **kwargs: Any) -> Tensor:
        """The embedding of a task, or of an input: ``[latent_dim]`` or ``[batch, latent_dim]``.

        Means and other mixtures of embeddings are embeddings too, and may be given as ``task``.

        Args:
            task: a condition that the conditioner accepts.
            *args, **kwargs: arguments of the target, if the conditioner looks at them.
        """
        return self.conditioner.embed(task, args, kwargs)[0]

    def sync_statistics(self, group: ProcessGroup | None = None) -> None:
        """Average the batch-norm statistics that several processes have collected.

        A task's statistics become their mean over processes, weighted by the number of the task's
        batches that each has seen since the last call. All processes of the group must call this
        before the model is saved or evaluated. ``DistributedDataParallel(hnet)`` does so by itself
        after every forward pass in training, unless it was told not to broadcast buffers.

        Args:
            group: the processes; None for all.
        """
        self.target.statistics.synchronise(self.target.module, group)

    def _embed_one(self, task: Condition) -> tuple[Tensor, int | None]:
        """The embedding ``[latent_dim]`` of one model, and the row of its statistics."""
        z, row = self.conditioner.embed(self.conditioner.read(task), (), {})
        if z.ndim != 1:
            raise ValueError(f"`task` must stand for one model here, got {len(z)}")
        return z, row

    def _noisy(self, z: Tensor) -> Tensor:
        """Embeddings with the noise and dropout of training."""
        noise, dropout = self.settings["noise"], self.settings["dropout"]
        if not self.training or not (noise or dropout):
            return z
        normalised = self.normalise(z)
        return F.dropout(normalised + noise * torch.randn_like(normalised), dropout)

    def _run_grouped(self, grouping: Grouping, args: Any, kwargs: Any) -> Any:
        """The target's output for a batch of many tasks; every task is generated once."""
        tasks, counts, order = grouping
        if self.raw_of_tasks is None:
            raw = self.raw_theta(self._noisy(self.conditioner(tasks)))
        else:
            raw = self.raw_of_tasks(tasks)
        statistics = self.target.statistics.rows(self.target.module, tasks)
        out, changed = run_tasks(self.target, raw, statistics, counts, order, (args, kwargs))
        if changed is not None:
            self.target.statistics.collect(self.target.module, tasks, changed)
        return out

    def _is_overwritten(self, around: DistributedDataParallel) -> bool:
        """Whether the buffers of process 0 will replace the statistics of this process.

        Raises:
            ValueError: they will, but this network is only a part of the wrapped module, so it
                cannot synchronise by itself.
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


def _data_parallel_around() -> DistributedDataParallel | None:
    """The ``DistributedDataParallel`` whose forward pass is running."""
    return DistributedDataParallel._active_ddp_module


def _check_per_sample(module: nn.Module, target: Target) -> None:
    """Raise ``ValueError`` if a target cannot have a model for each sample."""
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        raise ValueError(
            "`conditioner` gives every sample a model of its own, so the target's batch norms "
            "would see one sample each; use group or layer norms, or none"
        )
    if target.statistics.names:
        raise ValueError(
            "`conditioner` gives every sample a model of its own, so there is no task to keep "
            f"the target's buffer {target.statistics.names[0]!r} for"
        )
