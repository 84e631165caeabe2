"""The tasks that a hypernetwork knows by name, and their heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.inputs import labelled
from sparsehyper._util.modes import evaluation_mode
from sparsehyper._util.notes import NOTES, as_bytes, from_bytes
from sparsehyper.conditioning import Conditioner, TaskConditioner, TaskEmbedding
from sparsehyper.heads import NonFiniteFeatures, SolvedHead
from sparsehyper.target.target import Target

_TASK_NAMES = "task_names"  # the entry of earlier state dicts, which held these notes alone


class NamedTasks(nn.Module):
    """The part of `HyperNetwork` that manages its tasks.

    A task has a row in the conditioner's table; if the target has batch norms, a row in the tables
    of statistics; and with a head in closed form, a row there. They are added and removed together.
    A state dict holds the names too, and loading one brings its tasks along. It holds the layout
    as well: the numbers of θ mean other tensors where the target declares them in another order.
    """

    conditioner: Conditioner
    head: SolvedHead | None
    target: Target

    @abstractmethod
    def features(self, *args: Any, task: Any = None, **kwargs: Any) -> Tensor:
        """The inputs of the ``head``, ``[batch, features]``."""

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

    @torch.no_grad()
    def known_embeddings(self, rows: Sequence[int]) -> Tensor:
        """Embeddings ``[rows, latent_dim]`` of the tasks with these numbers."""
        return self.tasks(torch.tensor(rows, device=self.target.device))

    def add_task(self, name: str, init: str | Tensor | tuple[Tensor, Tensor] = "mean") -> int:
        """Add a task and return its number.

        The embedding table becomes a new, longer parameter: make optimisers afterwards.

        Args:
            name: a new name.
            init: the task's embedding: ``"mean"`` of the known ones, that of a known task by its
                name, or a vector ``[dim]``; with `TaskFeatures`, the task's features
                ``[n_features]``, and with `TaskExamples`, examples of it, from which it works at
                once.
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

    @torch.no_grad()
    def solve_head(self, task: str | int, examples: Any, *, n_classes: int = 0) -> None:
        """Solve a task's head from its examples, in evaluation mode, and keep it.

        Args:
            task: name or number of the task.
            examples: inputs of n samples, as the target takes them, and class numbers ``[n]``, or
                numbers ``[n, outputs]``; or batches of both. A task may have more classes than the
                target has outputs.
            n_classes: number of classes of the task, if some of them have no example here.

        Raises:
            ValueError: the hypernetwork has no ``head`` in closed form, there are no examples,
                their labels do not fit the head, or features or labels are not finite.
            KeyError, IndexError: an unknown task.
        """
        head = self.own_head()
        solved = head.solve(*self._featured(task, examples), n_classes)
        head.set(self.tasks.index(task), *solved)

    @torch.no_grad()
    def fit_head_prior(self, tasks: Mapping[str, Any]) -> None:
        """Find a normal prior of the heads of regressions from known tasks, and solve these anew.

        Later calls of `solve_head` give the posterior mean, which matters where examples are few.

        Args:
            tasks: examples of known tasks, by name, as `solve_head` takes them; at least 2 tasks.

        Raises:
            ValueError: the ``head`` is not ``Ridge(targets="numbers")``, or as `solve_head`.
            KeyError: an unknown task.
        """
        head = self.own_head()
        found = {name: self._featured(name, examples) for name, examples in tasks.items()}
        head.fit_prior(list(found.values()))
        for name, (features, y) in found.items():
            head.set(self.tasks.index(name), *head.solve(features, y))

    def _featured(self, task: str | int, examples: Any) -> tuple[Tensor, Tensor]:
        """Features ``[n, features]`` and labels of a task's examples, in evaluation mode."""
        row, device = self.tasks.index(task), self.target.device
        found: list[Tensor] = []
        labels: list[Tensor] = []
        with evaluation_mode(self):
            for x, y in labelled(f"`examples` of task {task!r}", examples):
                found.append(x.to(device).call(self.features, task=row))
                labels.append(y.to(device))
        if not sum(map(len, labels)):
            raise ValueError(f"`examples` of task {task!r} must hold at least one, got none")
        features, y = torch.cat(found), torch.cat(labels)
        for what, numbers in (("features", features), ("labels", y)):
            if wrong := int((~numbers.isfinite()).reshape(len(y), -1).any(1).sum()):
                message = (
                    f"{what} of the `examples` of task {task!r} must be finite, got others for "
                    f"{wrong} of {len(numbers)}; look at the samples"
                )
                if numbers is features:
                    raise NonFiniteFeatures(message, str(task))
                raise ValueError(message)
        return features, y

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + NOTES] = self.notes

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # PyTorch gives a shallow copy, and loads the parts afterwards, whose tables then fit.
        notes = {}
        if (names := state_dict.pop(prefix + _TASK_NAMES, None)) is not None:
            notes = {"task_names": from_bytes(names)}
        if (entry := state_dict.pop(prefix + NOTES, None)) is not None:
            notes = from_bytes(entry)
        if "layout" in notes:
            self._check_layout(notes["layout"])
        if self.conditioner.names and notes.get("task_names"):
            self._take_names(notes["task_names"])
        if "conditioner_notes" in notes:
            self.conditioner.take_notes(notes["conditioner_notes"])
        outputs = state_dict.get(f"{prefix}head.bias")
        if self.head is not None and outputs is not None and outputs.ndim == 2:
            self.head.resize(outputs.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def notes(self) -> Tensor:
        """What belongs to the state and is no tensor, as bytes: the names of tasks and others."""
        return as_bytes(
            {
                "layout": self._noted_layout(),
                "task_names": self.conditioner.names,
                "conditioner_notes": self.conditioner.notes(),
            }
        )

    def _noted_layout(self) -> list[list[Any]]:
        return [[spec.name, list(spec.shape)] for spec in self.target.layout]

    def _check_layout(self, noted: Sequence[Any]) -> None:
        """Raise ``ValueError`` if a state is of tensors of other shapes, or in another order.

        Names alone may differ, as where the target is wrapped or a layer renamed.
        """
        own = self._noted_layout()
        both = {name for name, _ in noted} & {name for name, _ in own}
        nothing: list[Any] = ["nothing", []]
        for place, (there, here) in enumerate(zip_longest(noted, own, fillvalue=nothing)):
            moved = there[0] != here[0] and not both.isdisjoint((there[0], here[0]))
            if moved or there[1] != here[1]:
                raise ValueError(
                    f"the state is of another layout: tensor {place} of θ is {there[0]!r} of shape "
                    f"{there[1]} there and {here[0]!r} of shape {here[1]} here; give the "
                    "hypernetwork a target that declares the same parameters in the same order "
                    "(what `save` wrote, `HyperNetwork.load` puts in their order by name)"
                )

    def _take_names(self, names: list[str]) -> None:
        """Have tasks of these names, in this order; new rows hold nothing of use."""
        table = self.tasks
        while len(table.names) > len(names):
            self.remove_task(table.names[-1])
        for name in names[len(table.names) :]:
            self.add_task(f"\0{name}", table.blank())  # a name that is free, for a moment
        table.set_names(names)

    def own_head(self) -> SolvedHead:
        """The ``head``; raises ``ValueError`` if the hypernetwork has none."""
        if self.head is None:
            raise ValueError(
                "this needs a hypernetwork with a `head`, such as Ridge(); it has none"
            )
        return self.head
