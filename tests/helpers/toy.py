"""A model and a source of batches, small enough to follow by hand, as training needs them."""

from __future__ import annotations

import torch
from torch import nn

from sparsehyper import saving

NAMES = ("shoes", "bags", "hats")
N_CLASSES = (2, 3, 2)


class Model(nn.Module):
    """A shared layer with dropout, and one head for each task."""

    def __init__(self, seed: int = 0, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.shared = nn.Linear(4, width)
            self.heads = nn.ModuleList(nn.Linear(width, 3) for _ in NAMES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, task):
        hidden = self.dropout(self.shared(x.flatten(1)).tanh())
        if isinstance(task, int):
            return self.heads[task](hidden)
        logits = hidden.new_zeros(len(x), 3)
        for number in task.unique().tolist():
            rows = task == number
            logits[rows] = self.heads[number](hidden[rows]).to(logits.dtype)
        return logits

    def save(self, directory):
        saving.save(directory, {"kind": "toy"}, self)


class Source:
    """Three tasks, each a fixed linear map; both a stream and a split."""

    steps_per_epoch = 5
    counts = (40, 30, 20)

    def __init__(self, batch_size: int = 12, tasks_per_batch: int = 3, shard=(0, 1)) -> None:
        self.batch_size, self.tasks_per_batch, self.shard = batch_size, tasks_per_batch, shard
        self.maps = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(7))

    def batch(self, epoch, step):
        rng = torch.Generator().manual_seed(1000 * epoch + step)
        tasks = torch.randperm(3, generator=rng)[: self.tasks_per_batch]
        task = tasks.repeat_interleave(self.batch_size // self.tasks_per_batch)
        x, y = self.draw(task, rng)
        rank, count = self.shard
        return x.chunk(count)[rank], y.chunk(count)[rank], task.chunk(count)[rank]

    def batches(self, task, batch_size):
        tasks = torch.full([self.counts[task]], task)
        x, y = self.draw(tasks, torch.Generator().manual_seed(10**6 + task))
        yield from zip(
            x.split(batch_size), y.split(batch_size), tasks.split(batch_size), strict=True
        )

    def draw(self, task, rng):
        x = torch.randn(len(task), 1, 2, 2, generator=rng)
        scores = torch.einsum("bi,bij->bj", x.flatten(1), self.maps[task])
        outputs = torch.arange(3)
        masked = scores.masked_fill(outputs >= torch.tensor(N_CLASSES)[task, None], -torch.inf)
        return x, masked.argmax(1)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two modules hold bit-identical tensors."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
