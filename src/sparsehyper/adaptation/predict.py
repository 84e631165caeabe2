"""Predictions averaged over several embeddings of a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsehyper._util.checks import check_integer
from sparsehyper._util.classifiers import mask_classes
from sparsehyper._util.inputs import Inputs, logits_of
from sparsehyper._util.modes import frozen
from sparsehyper.adaptation.fit import Fit
from sparsehyper.hypernetwork import HyperNetwork


@torch.no_grad()
def average_predictions(
    hnet: HyperNetwork, fit: Fit, x: Any, *, n_classes: int | None = None
) -> Tensor:
    """Class probabilities averaged over all restarts of a fit.

    Args:
        hnet: hypernetwork that was fitted; used in evaluation mode.
        fit: fit of a task, with several restarts.
        x: inputs of n samples, as `fit_embedding` takes them.
        n_classes: number of classes of the task; outputs beyond it get probability 0.

    Returns:
        Probabilities ``[n, outputs]``.

    Raises:
        TypeError: ``fit`` is not what `fit_embedding` returned.
        ValueError: the target does not return logits of at least 2 classes, or the hypernetwork has
            a ``head`` in closed form.

    Source: B. Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using
    deep ensembles" (NeurIPS 2017), here with embeddings in place of networks.
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"`fit` must be what `fit_embedding` returned, got a {type(fit).__name__}")
    if n_classes is not None:
        check_integer("n_classes", n_classes, minimum=2)
    if hnet.head is not None:
        raise ValueError(
            "`hnet` has a `head` in closed form, which is solved for the best restart alone; call "
            "`hnet(x, task=…)`, or average materialised models"
        )
    target, members = hnet.target, []
    inputs = Inputs.of(x, "`x`").to(target.device)
    with frozen(hnet):
        for generated, *statistics in zip(
            hnet.raw_theta(fit.embeddings), *fit.statistics, strict=True
        ):
            outputs, _ = target.run(
                target.unpack(generated), statistics, inputs.args, inputs.kwargs
            )
            _check_logits(logits := logits_of(outputs))
            members.append(mask_classes(logits, n_classes).softmax(1))
    return torch.stack(members).mean(0)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            "`hnet` must give logits [n, outputs] of at least 2 classes, got shape "
            f"{list(logits.shape)}"
        )
