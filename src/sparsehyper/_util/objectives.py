"""The loss and the score of outputs: of class numbers, or of numbers to predict.

Labels that are floating-point numbers make a regression: the loss is the mean squared error, and
the score R², 1 - error / variance of the labels. Others are class numbers: the loss is the cross
entropy of logits, and the score the accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

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

    Raises:
        ValueError: labels of another shape.

    >>> sample_losses(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), None)
    tensor([1., 4.])
    """
    if y.is_floating_point():
        if outputs.shape != y.shape:  # [n, 1] and [n] would broadcast to [n, n]
            raise ValueError(
                "numbers to predict must have the shape of the outputs, got outputs "
                f"{list(outputs.shape)} and labels {list(y.shape)}"
            )
        return (outputs.float() - y).square().flatten(1).mean(1)
    if y.ndim != 1:
        raise ValueError(
            f"class numbers must have shape [n], got labels {list(y.shape)} for outputs "
            f"{list(outputs.shape)}; for labels of pixels or tokens give a `loss`"
        )
    return F.cross_entropy(mask_classes(outputs, n_classes), y.long(), reduction="none")


def own_losses(outputs: Any, y: Tensor, loss: Callable[..., Tensor]) -> Tensor:
    """The losses of samples by a loss of the caller's own.

    Args:
        outputs: outputs of a model.
        y: labels ``[n, …]``.
        loss: called as ``loss(outputs, y)``. One with a ``reduction`` is used without it.

    Returns:
        What it gives for each sample, ``[n]``; or its mean, without dimensions.

    >>> own_losses(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), nn.MSELoss())
    tensor([1., 4.])
    """
    if _reduces(loss):
        loss = copy.copy(loss)
        loss.reduction = "none"  # type: ignore[attr-defined]
    return _each_of(loss(outputs, y), outputs, y)


def loss_as_given(outputs: Any, y: Tensor, loss: Callable[..., Tensor]) -> Tensor:
    """What a loss of the caller's own gives, with its ``reduction`` if it has one.

    Args:
        outputs: outputs of a model.
        y: labels ``[n, …]``.
        loss: called as ``loss(outputs, y)``.

    Returns:
        Its mean, without dimensions, or what it gives for each sample, ``[n]``.

    Raises:
        ValueError: the ``reduction`` is a sum, or what it gives is not of the samples.

    >>> weights = torch.tensor([10.0, 1.0])
    >>> loss_as_given(torch.zeros(2, 2), torch.tensor([0, 1]), nn.CrossEntropyLoss(weights))
    tensor(0.6931)
    """
    if getattr(loss, "reduction", None) == "sum":
        raise ValueError(
            "`loss` has the reduction 'sum', which depends on the size of a batch; give one with "
            "'mean' or 'none'"
        )
    if _reduces(loss) and y.is_floating_point() and getattr(outputs, "shape", None) != y.shape:
        own_losses(outputs, y, loss)  # an error if labels were broadcast; a mean does not show it
    return _each_of(loss(outputs, y), outputs, y)


def _reduces(loss: Callable[..., Tensor]) -> bool:
    return getattr(loss, "reduction", "none") != "none"


def _each_of(each: Tensor, outputs: Any, y: Tensor) -> Tensor:
    """Losses ``[n]`` from ``[n, …]``; a number as it is."""
    if each.ndim == 0:
        return each
    # Outputs [n, 1] and labels [n] broadcast to [n, n].
    most = max(y.numel(), outputs.numel() if isinstance(outputs, Tensor) else each.numel())
    if each.shape[:1] != y.shape[:1] or each.numel() > most:
        # Write n, as the caller does not know how many samples run together.
        found, of_y = (
            ", ".join("n" if size == len(y) else str(size) for size in tensor.shape)
            for tensor in (each, y)
        )
        raise ValueError(
            f"`loss` must return the losses [n] or [n, …] of n samples, got shape [{found}] for "
            f"labels [{of_y}]; see that outputs and labels have one shape"
        )
    return each.flatten(1).mean(1) if each.ndim > 1 else each


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
