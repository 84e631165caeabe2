"""Classifiers that several tasks share: class masks and accuracy.

A target has as many outputs as its largest task has classes. A task with fewer classes ignores the
outputs beyond its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mask_classes(logits: Tensor, n_classes: int | Tensor | None) -> Tensor:
    """Convert logits to float32 and set the outputs beyond the task's classes to -inf.

    Args:
        logits: ``[batch, outputs]``.
        n_classes: number of classes of the batch's task, or of each sample's task ``[batch]``;
            None keeps every output.

    >>> mask_classes(torch.zeros(2, 3), torch.tensor([2, 3]))
    tensor([[0., 0., -inf],
            [0., 0., 0.]])
    """
    logits = logits.float()
    if n_classes is None:
        return logits
    if isinstance(n_classes, Tensor):
        n_classes = n_classes.unsqueeze(-1)
    outputs = torch.arange(logits.shape[1], device=logits.device)
    return logits.masked_fill(outputs >= n_classes, -torch.inf)


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, n_classes: int) -> float:
    """Share of samples that a model classifies correctly.

    Args:
        model: returns logits ``[batch, outputs]``; called with 500 samples at a time.
        x: inputs ``[n, …]``.
        y: class numbers ``[n]``.
        n_classes: number of classes; outputs beyond it are ignored.

    >>> accuracy(torch.nn.Identity(), torch.eye(3), torch.tensor([0, 1, 1]), n_classes=2)
    0.6666666666666666
    """
    batches = zip(x.split(500), y.split(500), strict=True)
    right = sum(int((mask_classes(model(a), n_classes).argmax(1) == b).sum()) for a, b in batches)
    return right / len(y)
