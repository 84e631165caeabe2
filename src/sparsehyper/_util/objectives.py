"""The loss and the score of outputs: of class numbers, or of numbers to predict.

Labels that are floating-point numbers make a regression: the loss is the mean squared error, and
the score R², 1 - error / variance of the labels within tasks. Others are class numbers: the loss is
the cross entropy of logits, and the score the accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.classifiers import accuracy, mask_classes


def sample_losses(outputs: Tensor, y: Tensor, n_classes: int | Tensor | None) -> Tensor:
    """The loss of each sample.

    Args:
        outputs: ``[batch, outputs]``.
        y: class numbers ``[batch]``, or numbers of the shape of the outputs.
        n_classes: as `mask_classes` takes it; for class numbers.

    Raises:
        ValueError: labels of another shape.

    >>> sample_losses(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), None)
    tensor([1., 4.])
    """
    if y.is_floating_point():
        check_numbers(outputs, y)
        squares = (outputs.float() - y).square()
        return squares.flatten(1).mean(1) if squares.ndim > 1 else squares
    if y.ndim != 1:
        raise ValueError(
            f"class numbers must have shape [n], got labels {list(y.shape)} for outputs "
            f"{list(outputs.shape)}; for labels of pixels or tokens give a `loss`"
        )
    if outputs.ndim != 2:
        raise ValueError(
            f"class numbers need logits [n, classes], got outputs {_of_n(outputs, len(y))}; give "
            "numbers to predict as floating-point labels, or a `loss`"
        )
    y = y.long()
    if y.is_cpu:
        _check_below(y, outputs.shape[1], "outputs of the model")
    losses = F.cross_entropy(mask_classes(outputs, n_classes), y, reduction="none")
    return losses.masked_fill(y < 0, torch.nan)  # PyTorch counts -100 as a loss of 0


def check_numbers(outputs: Any, y: Tensor, of: str = "labels") -> None:
    """Raise ``ValueError`` unless numbers to predict have the shape of the outputs.

    Args:
        outputs: outputs of a model.
        y: the numbers.
        of: name of the numbers, at the beginning of the error.

    >>> check_numbers(torch.zeros(2, 3), torch.zeros(2))
    Traceback (most recent call last):
    ValueError: labels that are floating-point numbers must have the shape of the outputs, got [n]
    for outputs [n, 3]; class numbers must be integers [n]
    """
    if isinstance(outputs, Tensor) and outputs.shape == y.shape:
        return  # [n, 1] and [n] would broadcast to [n, n]
    found, remedy = f"of type {type(outputs).__name__!r}", "give a `loss`"
    if isinstance(outputs, Tensor):
        found = _of_n(outputs, len(y))
        if outputs.numel() == y.numel():
            remedy = f"give them as {found}"
        elif outputs.ndim == 2 and y.numel() == len(y) == len(outputs):
            remedy = "class numbers must be integers [n]"
    raise ValueError(
        f"{of} that are floating-point numbers must have the shape of the outputs, got "
        f"{_of_n(y, len(y))} for outputs {found}; {remedy}"
    )


def _of_n(tensor: Tensor, count: int) -> str:
    """The shape with n for ``count`` samples: a caller does not know how many run together."""
    first = ["n" if size == count else str(size) for size in tensor.shape[:1]]
    return f"[{', '.join([*first, *map(str, tensor.shape[1:])])}]"


def check_class_numbers(y: Tensor, n_classes: int | Tensor | None) -> None:
    """Raise ``ValueError`` if labels are no class numbers of their tasks, such as -100 for none.

    Labels on a device are not looked at, which would wait for it; `sample_losses` makes negative
    ones NaN.

    Args:
        y: class numbers ``[n]``; numbers to predict are not looked at.
        n_classes: as `mask_classes` takes it.
    """
    if not y.is_cpu or y.is_floating_point() or not len(y):
        return
    y = y.long()  # PyTorch hardly compares the larger unsigned types
    if n_classes is not None:
        _check_below(y, n_classes, "classes of the task")
    if y.min() < 0:
        raise ValueError(
            f"class numbers must be from 0, got {int(y.min())}; for samples without a label give "
            "a `loss` that leaves them out, such as nn.CrossEntropyLoss(), and a `metric` likewise"
        )


def _check_below(y: Tensor, limit: int | Tensor, what: str) -> None:
    if y.ndim == 1 and bool((over := y >= limit).any()):
        first = int(over.int().argmax())
        most = limit if isinstance(limit, int) else int(limit[first])
        raise ValueError(f"class numbers must be below the {most} {what}, got {int(y[first])}")


def own_losses(outputs: Any, y: Tensor, loss: Callable[..., Tensor], name: str = "loss") -> Tensor:
    """The losses of samples by a loss of the caller's own.

    Args:
        outputs: outputs of a model.
        y: labels ``[n, …]``.
        loss: called as ``loss(outputs, y)``. One with a ``reduction`` is used without it.
        name: its name, for errors.

    Returns:
        What it gives for each sample, ``[n]``; or its mean, without dimensions.

    >>> own_losses(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), nn.MSELoss())
    tensor([1., 4.])
    """
    if _reduces(loss):
        loss = copy.copy(loss)
        loss.reduction = "none"  # type: ignore[attr-defined]
    return _each_of(loss(outputs, y), outputs, y, name)


def value_as_given(outputs: Any, y: Tensor, of: Callable[..., Any], name: str) -> Tensor:
    """What a loss or metric of the caller's own gives, with its ``reduction`` if it has one.

    Args:
        outputs: outputs of a model.
        y: labels ``[n, …]``.
        of: called as ``of(outputs, y)``.
        name: its name, for errors: ``"loss"`` or ``"metric"``.

    Returns:
        Its mean, without dimensions, or what it gives for each sample, ``[n]``.

    Raises:
        ValueError: the ``reduction`` is a sum, or what it gives is not of the samples.

    >>> weights = torch.tensor([10.0, 1.0])
    >>> y = torch.tensor([0, 1])
    >>> value_as_given(torch.zeros(2, 2), y, nn.CrossEntropyLoss(weights), "loss")
    tensor(0.6931)
    """
    if getattr(of, "reduction", None) == "sum":
        raise ValueError(
            f"`{name}` has the reduction 'sum', which depends on the size of a batch; give one "
            "with 'mean' or 'none'"
        )
    if _reduces(of) and _may_broadcast(outputs, y):
        own_losses(outputs, y, of, name)  # raises if they do; a mean does not show it
    value = of(outputs, y)
    if name == "metric":  # a number, or whether each is right
        value = torch.as_tensor(value, device=y.device).float()
    return _each_of(value, outputs, y, name)


def mean_weight(loss: Callable[..., Tensor], y: Tensor) -> Tensor | None:
    """By what PyTorch divides the sum over samples in the mean of a loss.

    Args:
        loss: a loss.
        y: labels.

    Returns:
        The class weights of the labels that count, summed up, for a cross entropy of class numbers
        (of NLLLoss too); None for the number of samples.

    >>> loss = nn.CrossEntropyLoss(torch.tensor([10.0, 1.0]))
    >>> mean_weight(loss, torch.tensor([0, 1, 1, -100]))
    tensor(12.)
    """
    if type(loss) not in (nn.CrossEntropyLoss, nn.NLLLoss) or y.is_floating_point():
        return None
    if not _reduces(loss):
        return None
    counted = y != loss.ignore_index  # type: ignore[attr-defined]
    weight: Tensor | None = loss.weight  # type: ignore[attr-defined]
    if weight is None:
        return counted.sum()
    return (weight[torch.where(counted, y, 0).long()] * counted).sum()


def _reduces(loss: Callable[..., Any]) -> bool:
    return getattr(loss, "reduction", "none") != "none"


def _may_broadcast(outputs: Any, y: Tensor) -> bool:
    """Whether outputs and labels may have been brought to one shape that neither has."""
    shape = getattr(outputs, "shape", None)
    if shape == y.shape:
        return False
    if y.is_floating_point() or shape is None:
        return y.is_floating_point()
    pairs = zip(reversed(shape), reversed(y.shape), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)  # class numbers, beside logits, do not


def _each_of(each: Tensor, outputs: Any, y: Tensor, name: str) -> Tensor:
    """Numbers ``[n]`` from ``[n, …]``; a single one as it is."""
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
        what = "losses" if name == "loss" else "values"
        raise ValueError(
            f"`{name}` must return the {what} [n] or [n, …] of n samples, got shape [{found}] for "
            f"labels [{of_y}]; see that outputs and labels have one shape"
        )
    return each.flatten(1).mean(1) if each.ndim > 1 else each


def squares_within(y: Tensor) -> Tensor:
    """The squared distances of numbers ``[n, …]`` from their mean, summed over n.

    Those of equal numbers are exactly 0, which those from a rounded mean are not.
    """
    y = y - y[:1]
    return (y - y.mean(0)).square().flatten(1).mean(1).sum()


def variance_within(squares: float, counts: Sequence[int]) -> float | None:
    """The variance of numbers within tasks, unbiased, pooled over the tasks.

    Args:
        squares: the sum of `squares_within` over the tasks.
        counts: number of samples of each task.

    Returns:
        The variance; None where no task has two numbers that differ.

    >>> variance_within(2.0, [2, 3, 1]), variance_within(0.0, [1, 1])
    (0.6666666666666666, None)
    """
    return squares / (sum(counts) - len(counts)) if squares > 0 else None


def variance_of(y: Tensor) -> float | None:
    """`variance_within` of the numbers ``[n, …]`` of one task."""
    return variance_within(float(squares_within(y)), [len(y)])


@torch.no_grad()
def score_of(module: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> float | None:
    """Accuracy or R² of a module; called with 500 samples at a time.

    R² is None where no two numbers differ, as of one sample.

    >>> score_of(nn.Identity(), torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]), 1)
    0.0
    """
    if not y.is_floating_point():
        return accuracy(module, x, y, n_classes)
    parts = zip(x.split(500), y.split(500), strict=True)
    variance = variance_of(y)
    if variance is None:
        return None
    losses = [sample_losses(module(a), b, None) for a, b in parts]
    return 1 - float(torch.cat(losses).mean()) / variance
