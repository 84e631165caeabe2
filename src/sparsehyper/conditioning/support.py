"""Embeddings from a task's examples: models for new tasks without a gradient step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import WIDEST, check_integer, check_size, class_numbers
from sparsehyper.conditioning.base import Conditioner, initialise


class SupportSet(Conditioner):
    """Embeddings of sets of labelled examples; their order does not matter.

    z = ρ( mean_i φ([e(x_i), onehot(y_i)]) ), where φ and ρ are networks with one hidden layer.

    ``task`` is a pair of examples ``[n, …]`` and class numbers ``[n]``, or an embedding ``[dim]``.

    Args:
        encoder: the network e, from examples ``[n, …]`` to ``[n, features]``.
        features: length of the encoder's output.
        n_classes: number of classes of the task with the most classes.
        dim: latent size, at least 2.
        hidden: width of the hidden layers.
        seed: seed of φ and ρ.

    Source: M. Zaheer et al., "Deep sets" (NeurIPS 2017); conditioning a generator on a support set
    as in A. Zhmoginov et al., "HyperTransformer" (ICML 2022), there with attention.

    >>> conditioner = SupportSet(nn.Linear(5, 16), features=16, n_classes=2, dim=8)
    >>> conditioner.embed((torch.randn(10, 5), torch.arange(10) % 2), (), {})[0].shape
    torch.Size([8])
    """

    kind = "support_set"

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        n_classes: int,
        dim: int = 64,
        *,
        hidden: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(dim)
        check_integer("features", features, minimum=1, maximum=WIDEST)
        check_integer("n_classes", n_classes, minimum=2, maximum=WIDEST)
        check_integer("hidden", hidden, minimum=1, maximum=WIDEST)
        check_size("`hidden` units", hidden * max(features + n_classes, hidden, dim))
        self.encoder, self.features, self.n_classes = encoder, features, n_classes
        self.each = nn.Sequential(
            nn.Linear(features + n_classes, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.whole = nn.Sequential(nn.ReLU(), nn.Linear(hidden, dim))
        initialise(nn.ModuleList([self.each, self.whole]), seed)

    def compute(
        self,
        task: Any,
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: Mapping[str, Any],  # noqa: ARG002
    ) -> tuple[Tensor, int | None]:
        """The embedding ``[dim]`` of a support set."""
        if not (isinstance(task, (tuple, list)) and len(task) == 2):
            raise TypeError(
                "`task` must be a support set, a pair of examples and class numbers, got "
                f"{type(task).__name__}"
            )
        x, y = task
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise TypeError(
                f"a support set's examples must be a tensor [n, …], got a {type(x).__name__}"
            )
        y = class_numbers("a support set's labels", y, len(x))
        if len(y) == 0:
            raise ValueError("a support set must have at least one example, got none")
        if int(y.max()) >= self.n_classes:
            raise ValueError(
                f"a support set's labels must be in 0..{self.n_classes - 1}, got {int(y.max())}"
            )
        seen = self.encoder(x)
        if seen.shape != (len(y), self.features):
            raise ValueError(
                f"`encoder` must return [{len(y)}, {self.features}], got {list(seen.shape)}"
            )
        labels = F.one_hot(y, self.n_classes).to(seen)
        return self.whole(self.each(torch.cat([seen, labels], 1)).mean(0)), 0

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, without the encoder."""
        return {
            "kind": self.kind,
            "features": self.features,
            "n_classes": self.n_classes,
            "dim": self.dim,
            "hidden": self.whole[1].in_features,
        }
