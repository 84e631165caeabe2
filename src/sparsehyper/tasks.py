"""The tasks that a hypernetwork knows by name: list, add, remove and rename them."""

from __future__ import annotations

from torch import Tensor, nn

from sparsehyper.conditioning import Conditioner, TaskConditioner, TaskEmbedding
from sparsehyper.heads import SolvedHead
from sparsehyper.target.target import Target


class NamedTasks(nn.Module):
    """The part of `HyperNetwork` that manages its tasks.

    A task has a row in the conditioner's table; if the target has batch norms, a row in the tables
    of statistics; and with a head in closed form, a row there. They are added and removed together.
    """

    conditioner: Conditioner
    head: SolvedHead | None
    target: Target

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(self.conditioner.names)

    @property
    def tasks(self) -> TaskConditioner:
        """The conditioner's table of tasks.

        Raises:
            TypeError: the hypernetwork is conditioned on something other than named tasks.
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
        """The conditioner, where it is a table with one embedding per task.

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
            name: a new name.
            init: the task's embedding: ``"mean"`` of the known ones, that of a known task by its
                name, or a vector ``[dim]``; with `TaskFeatures`, the task's features.
        """
        self.tasks.add(name, init)
        self.target.statistics.add_row(self.target.module)
        if self.head is not None:
            self.head.add_row()
        return len(self.conditioner.names) - 1

    def remove_task(self, name: str) -> None:
        """Remove a task: its embedding, its statistics and its head.

        The numbers of later tasks fall by one, and the embedding table becomes a new parameter.

        Raises:
            KeyError: an unknown task.
            ValueError: the only task.
        """
        row = self.tasks.index(name)
        self.tasks.remove(name)
        self.target.statistics.remove_row(self.target.module, row)
        if self.head is not None:
            self.head.remove_row(row)

    def rename_task(self, name: str, new_name: str) -> None:
        """Give a task another name.

        Raises:
            KeyError: an unknown task.
            TypeError, ValueError: ``new_name`` is not a name, or is the name of a task.
        """
        self.tasks.rename(name, new_name)
