"""The loss and the score of outputs: of class numbers, or of numbers to predict.

Labels that are floating-point numbers make a regression: the loss is the mean squared error, and
the score R², 1 - error / variance of the labels. Others are class numbers: the loss is the cross
entropy of logits, and the score the accuracy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.classifiers import accuracy, mask_classes


def sample_losses(outputs: Tensor, y: Tensor, n_classes: int | Tensor | None) -> Tensor:
    """The loss of each sample.

    Args:
        outputs: ``[batch, outputs]``.
        y: class numbers ``[batch]``, or numbers ``[batch, outputs]``.
        n_classes: as `mask_classes` takes it; for class numbers.

    >>> sample_losses(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), None)
    tensor([1., 4.])
    """
    if y.is_floating_point():
        return (outputs.float() - y).square().flatten(1).mean(1)
    return F.cross_entropy(mask_classes(outputs, n_classes), y, reduction="none")


def r_squared(loss: float, variance: float) -> float:
    """R² of a mean squared error; 0 where there is no variance to explain."""
    return 1 - loss / variance if variance > 0 else 0.0


@torch.no_grad()
def score_of(module: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> float:
    """Accuracy or R² of a module; called with 500 samples at a time.

    >>> score_of(nn.Identity(), torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]), 1)
    -1.0
    """
    if not y.is_floating_point():
        return accuracy(module, x, y, n_classes)
    parts = zip(x.split(500), y.split(500), strict=True)
    losses = [sample_losses(module(a), b, None) for a, b in parts]
    return r_squared(float(torch.cat(losses).mean()), float(y.var(0, correction=0).mean()))
