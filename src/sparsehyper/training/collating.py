"""Batches for trainers that call the model with a dict: Hugging Face's, Accelerate, Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from sparsehyper._util.checks import check_type
from sparsehyper._util.tasks import task_index
from sparsehyper._util.text import listed


class DataCollatorWithTask:
    """A collator that keeps the task of every sample, as task numbers ``[batch]`` in ``"task"``.

    It is a ``collate_fn`` of a ``DataLoader`` and a ``data_collator`` of Hugging Face's Trainer.
    That needs ``TrainingArguments(remove_unused_columns=False, label_names=["labels"])``, because
    it cannot know which columns the target takes.

    Args:
        tasks: names of the tasks, in order: ``hnet.task_names``.
        collator: collates the samples without their task, to a dict; by default PyTorch's, which
            stacks tensors. With text it is one of transformers', such as
            ``DataCollatorWithPadding(tokenizer)``.
        column: name of the column that holds each sample's task, a name or a number.

    Raises:
        KeyError: a sample without the column, or an unknown name.
        IndexError: a number that no task has.
        TypeError: ``collator`` does not return a dict.

    >>> collator = DataCollatorWithTask(["shoes", "bags"])
    >>> collator([{"x": torch.zeros(2), "task": "bags"}, {"x": torch.ones(2), "task": 0}])["task"]
    tensor([1, 0])
    """

    def __init__(
        self,
        tasks: Sequence[str],
        collator: Callable[[list[Any]], Any] = default_collate,
        column: str = "task",
    ) -> None:
        self.tasks, self.collator, self.column = tasks, collator, column

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> MutableMapping[str, Any]:
        """The batch of some samples, each a dict."""
        rows = {name: i for i, name in enumerate(self.tasks)}
        numbers = [task_index(self._task(sample), rows) for sample in features]
        rest = [{k: v for k, v in sample.items() if k != self.column} for sample in features]
        batch = self.collator(rest)
        check_type("collator", batch, MutableMapping, "a function that returns a dict")
        batch["task"] = torch.tensor(numbers)
        return batch

    def _task(self, sample: Mapping[str, Any]) -> Any:
        if self.column not in sample:
            raise KeyError(
                f"a sample has no column {self.column!r}, the `column` of its task; it has: "
                f"{listed(sample)}; Hugging Face's Trainer keeps all columns if it is given "
                "`remove_unused_columns=False`"
            )
        return sample[self.column]
