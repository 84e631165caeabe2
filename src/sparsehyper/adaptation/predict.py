"""Task identification, and predictions averaged over several embeddings of a task.

Source: identification by the entropy of predictions, J. von Oswald et al., "Continual learning with
hypernetworks" (ICLR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.checks import check_integer, check_type, class_numbers
from sparsehyper._util.classifiers import mask_classes
from sparsehyper.adaptation.fit import Fit, frozen
from sparsehyper.hypernetwork import HyperNetwork


@dataclass(frozen=True)
class Identified:
    """Result of `identify_task`.

    Attributes:
        name: name of the likeliest task.
        scores: score of every task, lower is likelier: mean entropy of the predictions as a share
            of the largest possible, or with labels the mean cross entropy in nats.
    """

    name: str
    scores: dict[str, float]


@torch.no_grad()
def identify_task(
    hnet: HyperNetwork,
    x: Tensor,
    y: Tensor | None = None,
    *,
    n_classes: int | Sequence[int] | None = None,
    batch_size: int = 500,
) -> Identified:
    """Identify the known task that samples belong to.

    Without labels this is the task with the most certain predictions, with labels the task that
    makes them likeliest.

    Args:
        hnet: hypernetwork of classifiers; used in evaluation mode.
        x: inputs ``[n, …]`` of one task.
        y: class numbers ``[n]``, if known.
        n_classes: number of classes of all known tasks, or of each; by default the number of
            outputs.
        batch_size: number of samples at a time.

    Raises:
        TypeError: the hypernetwork knows no tasks by name, or ``x`` is not a tensor.
        ValueError: no samples, or arguments whose lengths do not fit.
    """
    check_integer("batch_size", batch_size, minimum=1)
    names = hnet.tasks.names
    if not isinstance(x, Tensor):
        raise TypeError(
            f"`x` must be a tensor of inputs, got a {type(x).__name__}; give x and y apart, as in "
            "identify_task(hnet, x, y)"
        )
    if x.ndim == 0 or len(x) == 0:
        raise ValueError("`x` must hold at least one sample, got none")
    if y is not None:
        y = class_numbers("`y`", y, len(x))
    if isinstance(n_classes, int):
        n_classes = [n_classes] * len(names)
    if n_classes is not None:
        check_type("n_classes", n_classes, Sequence, "a number, or one for each task")
    if n_classes is not None and len(n_classes) != len(names):
        raise ValueError(f"`n_classes` must have {len(names)} entries, got {len(n_classes)}")
    for count in n_classes or ():
        check_integer("n_classes", count, minimum=2)
    totals = [0.0] * len(names)
    with frozen(hnet):
        for task in range(len(names)):
            for some in torch.arange(len(x)).split(batch_size):
                logits = hnet(x[some], task=task).float()
                if n_classes is not None:
                    logits = logits[:, : n_classes[task]]
                _check_logits(logits)
                if y is not None:
                    known = y[some] < logits.shape[1]  # the task cannot have other labels
                    totals[task] += math.inf if not known.all() else 0.0
                    labels = y[some][known]
                    totals[task] += float(F.cross_entropy(logits[known], labels, reduction="sum"))
                    continue
                entropies = torch.special.entr(logits.softmax(1)).sum(1)
                totals[task] += float(entropies.sum()) / math.log(logits.shape[1])
    scores = {name: total / len(x) for name, total in zip(names, totals, strict=True)}
    return Identified(min(scores, key=scores.__getitem__), scores)


@torch.no_grad()
def average_predictions(
    hnet: HyperNetwork, fit: Fit, x: Tensor, *, n_classes: int | None = None
) -> Tensor:
    """Class probabilities averaged over all restarts of a fit.

    Args:
        hnet: hypernetwork that was fitted; used in evaluation mode.
        fit: fit of a task, with several restarts.
        x: inputs ``[n, …]``.
        n_classes: number of classes of the task; outputs beyond it get probability 0.

    Returns:
        Probabilities ``[n, outputs]``.

    Raises:
        TypeError: ``fit`` is not what `fit_embedding` returned.
        ValueError: the target does not return logits of at least 2 classes.

    Source: B. Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using
    deep ensembles" (NeurIPS 2017), here with embeddings in place of networks.
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"`fit` must be what `fit_embedding` returned, got a {type(fit).__name__}")
    if n_classes is not None:
        check_integer("n_classes", n_classes, minimum=2)
    target, members = hnet.target, []
    with frozen(hnet):
        for generated, *statistics in zip(
            hnet.raw_theta(fit.embeddings), *fit.statistics, strict=True
        ):
            logits, _ = target.run(target.unpack(generated), statistics, (x,), {})
            _check_logits(logits)
            members.append(mask_classes(logits, n_classes).softmax(1))
    return torch.stack(members).mean(0)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            "`hnet` must give logits [n, outputs] of at least 2 classes, got shape "
            f"{list(logits.shape)}"
        )
