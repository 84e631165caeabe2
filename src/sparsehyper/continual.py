"""Continual learning: tasks one after another, without the data of those before.

While task T is learned, the models of the tasks before are held where they are,

    loss(task T) + β / (T - 1) · Σ_{t < T} ‖θ*(t) - θ(t)‖²

with θ(t) all generated parameters of task t, and θ*(t) those before task T was begun. These targets
are generated when they are needed, by a frozen copy of the generator. So memory grows by one
embedding a task, not by the N parameters of its model.

Source: J. von Oswald et al., "Continual learning with hypernetworks" (ICLR 2020), eq. 2, with two
deviations. Theirs takes θ(t) after the step Δ that the loss of task T alone would make, which
costs a copy of the optimiser's state. Theirs fixes the embeddings of earlier tasks; here they may
move as long as the models stay, whatever an optimiser's momentum or decay does. Neither made a
difference on split MNIST (``benchmarks/continual``).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sparsehyper._util.checks import check_integer, check_number, check_type
from sparsehyper._util.random import seeded
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.norm_statistics import is_statistic


class OutputRegulariser:
    """A penalty on changes of the models of tasks that were learned before.

    Add it to the loss at every step, and call `hold` when a task is learned. Make a new
    optimiser for each task, since an old one keeps the momentum of the task before. Start each task
    from an embedding of its own: at that of an earlier task the penalty would hold it there.

    Batch-norm statistics and heads in closed form belong to each task and need no penalty.
    What all tasks share and a later one would change cannot be held, and is refused.

    Args:
        hnet: a hypernetwork that makes one model for each named task.
        beta: strength β of the penalty, at least 0.
        tasks_per_step: number of earlier tasks to penalise in each step, drawn at random; None for
            all. The penalty is a mean over them, so ``beta`` need not be changed.
        seed: seed of these draws.

    Attributes:
        tasks: Names of the tasks that are held; remove one to let it go.

    Raises:
        TypeError: the conditioner makes models of something other than named tasks.
        ValueError: a setting out of range; or all tasks share trained parameters or batch-norm
            statistics.

    Source: J. von Oswald et al., "Continual learning with hypernetworks" (ICLR 2020); see the
    module for what differs.

    >>> from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
    >>> hnet = HyperNetwork(torch.nn.Linear(5, 2), Sparse(), TaskEmbedding(["shoes"], dim=8))
    >>> regulariser = OutputRegulariser(hnet)
    >>> regulariser.hold("shoes")  # once it is learned
    >>> number = hnet.add_task("bags", torch.randn(8))
    >>> regulariser()  # to add to the loss of the bags
    tensor(0., grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        hnet: HyperNetwork,
        beta: float = 0.01,
        *,
        tasks_per_step: int | None = None,
        seed: int = 0,
    ) -> None:
        check_type("hnet", hnet, HyperNetwork, "a HyperNetwork")
        check_number("beta", beta, minimum=0)
        if tasks_per_step is not None:
            check_integer("tasks_per_step", tasks_per_step, minimum=1)
        check_integer("seed", seed, minimum=0)
        _check_nothing_shared(hnet)
        self.hnet, self.beta, self.tasks_per_step = hnet, beta, tasks_per_step
        self.tasks: list[str] = []
        self._before: HyperNetwork | None = None  # as it was at the last `hold`
        self._rng = seeded(seed)

    def hold(self, *tasks: str | int) -> None:
        """Hold tasks that are learned now, and all that were held before, at their present models.

        Args:
            *tasks: their names or numbers.

        Raises:
            KeyError, IndexError: an unknown task.
        """
        table = self.hnet.tasks
        for name in [table.names[table.index(task)] for task in tasks]:
            if name not in self.tasks:
                self.tasks.append(name)
        # What takes no part in making θ is not copied.
        shared = {id(part): part for part in (self.hnet.target.module, self.hnet.head)}
        self._before = copy.deepcopy(self.hnet, shared)

    def __call__(self) -> Tensor:
        """The penalty, a number; 0 if no task is held.

        Raises:
            KeyError: a task that is held was removed or renamed.
        """
        if self._before is None or not self.tasks:
            return torch.zeros((), device=self.hnet.device, dtype=self.hnet.dtype)
        chosen = self.tasks
        if self.tasks_per_step is not None:
            drawn = torch.randperm(len(chosen), generator=self._rng)[: self.tasks_per_step]
            chosen = [chosen[i] for i in drawn.tolist()]
        with torch.no_grad():
            targets = _models(self._before, chosen)
        changes = zip(_models(self.hnet, chosen), targets, strict=True)
        squares = torch.stack([(now - before).square().sum() for now, before in changes])
        return self.beta / len(chosen) * squares.sum()


def _models(hnet: HyperNetwork, tasks: list[str]) -> tuple[Tensor, ...]:
    """The generated tensors ``[tasks, *shape]`` of several tasks."""
    table = hnet.tasks
    rows = torch.tensor([table.index(name) for name in tasks], device=hnet.device)
    return hnet.target.unpack(hnet.raw_theta(table(rows)))


def _check_nothing_shared(hnet: HyperNetwork) -> None:
    """Raise if later tasks would change earlier ones by more than what is generated."""
    if not hnet.conditioner.by_task_alone:
        raise TypeError(
            "`hnet` must make one model for each named task, as with a TaskEmbedding; its "
            f"conditioner is a {type(hnet.conditioner).__name__}"
        )
    module, own = hnet.target.module, hnet.target.statistics.names
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            raise ValueError(
                f"all tasks of `hnet` share the parameter {name!r}, which a later task would "
                'change; generate it too, or make the hypernetwork with `others="frozen"`'
            )
    for name, _ in module.named_buffers():
        if is_statistic(name.rpartition(".")[2]) and name not in own:
            raise ValueError(
                f"all tasks of `hnet` share the statistics {name!r}, which a later task would "
                'change; make the hypernetwork with `norm_stats="per_task"`'
            )
