"""Several models as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.inputs import Inputs


class Mixture(nn.Module):
    """A weighted average of models: of the class probabilities of classifiers, else of outputs.

    Args:
        models: models with outputs, or ``logits`` among them, ``[n, outputs]``; they take the
            same arguments.
        weights: a weight for each; by default equal ones. They are scaled to sum to 1.
        temperatures: numbers to divide each classifier's logits by; by default 1.
        n_classes: number of classes; outputs beyond it are left out. None for numbers.

    Returns:
        Log-probabilities ``[n, n_classes]``, which are logits too; or numbers ``[n, outputs]``.
    """

    weights: Tensor
    temperatures: Tensor

    def __init__(
        self,
        models: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        n_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        device = next(self.models.parameters()).device
        ones = [1.0] * len(models)
        some = torch.tensor(weights or ones, device=device)
        self.register_buffer("weights", some / some.sum())
        self.register_buffer("temperatures", torch.tensor(temperatures or ones, device=device))
        self.n_classes = n_classes

    # With ``x`` rather than in ``args``, one tensor is exported as for any other module.
    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Tensor:
        inputs = Inputs(args if x is None else (x, *args), kwargs)
        if self.n_classes is None:
            outputs = [
                w * inputs.call(model) for w, model in zip(self.weights, self.models, strict=True)
            ]
            return torch.stack(outputs).sum(0)
        members = [
            (inputs.call(model)[:, : self.n_classes].float() / temperature).log_softmax(1)
            + weight.log()
            for model, weight, temperature in zip(
                self.models, self.weights, self.temperatures, strict=True
            )
        ]
        return torch.stack(members).logsumexp(0) if len(members) > 1 else members[0]
