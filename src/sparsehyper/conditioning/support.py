"""Embeddings from a task's examples: models for new tasks without a gradient step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import WIDEST, check_choice, check_integer, check_size, class_numbers
from sparsehyper.conditioning.base import Conditioner, initialise

POOLS = ("examples", "classes")
_AT_ONCE = 1000  # examples that the encoder gets


class SupportSet(Conditioner):
    """Embeddings of sets of labelled examples; their order does not matter.

    pool         embedding
    "examples"   z = ρ( mean_i φ([e(x_i), onehot(y_i)]) )
    "classes"    z = ρ( mean_c ψ([mean_{i in c} φ(e(x_i)), onehot(c)]) )

    φ, ψ and ρ are networks with one hidden layer, and c goes through the classes of the set. Pooled
    by classes, z does not depend on how many examples each class has, and ψ sees a class as a
    whole. The encoder may be a frozen one; it is not trained then, and needs no place in a file.

    ``task`` is a pair of examples ``[n, …]`` and class numbers ``[n]``, or an embedding ``[dim]``.

    Args:
        encoder: the network e, from examples ``[n, …]`` to ``[n, features]``.
        features: length of the encoder's output.
        n_classes: number of classes of the task with the most classes.
        dim: latent size, at least 2.
        pool: what is averaged, ``"examples"`` or ``"classes"``.
        hidden: width of the hidden layers.
        seed: seed of φ, ψ and ρ.

    Source: M. Zaheer et al., "Deep sets" (NeurIPS 2017); conditioning a generator on a support set
    as in A. Zhmoginov et al., "HyperTransformer" (ICML 2022), there with attention; means of
    classes from J. Requeima et al., "Fast and flexible multi-task classification using conditional
    neural adaptive processes" (NeurIPS 2019), there for the last layer alone.

    >>> conditioner = SupportSet(nn.Linear(5, 16), features=16, n_classes=2, dim=8)
    >>> conditioner.embed((torch.randn(10, 5), torch.arange(10) % 2), (), {})[0].shape
    torch.Size([8])
    """

    kind = "support_set"
    networks = ("encoder",)

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        n_classes: int,
        dim: int = 64,
        *,
        pool: str = "examples",
        hidden: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(dim)
        check_integer("features", features, minimum=1, maximum=WIDEST)
        check_integer("n_classes", n_classes, minimum=2, maximum=WIDEST)
        check_integer("hidden", hidden, minimum=1, maximum=WIDEST)
        check_size("`hidden` units", hidden * max(features + n_classes, hidden, dim))
        check_choice("pool", pool, POOLS)
        self.encoder, self.features, self.n_classes = encoder, features, n_classes
        self.pool = pool

        def network(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

        by_class = pool == "classes"
        self.each = network(features if by_class else features + n_classes)
        self.of_class = network(hidden + n_classes) if by_class else None
        self.whole = nn.Sequential(nn.ReLU(), nn.Linear(hidden, dim))
        parts = [part for part in (self.each, self.of_class, self.whole) if part is not None]
        initialise(nn.ModuleList(parts), seed)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        return self

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
        seen = torch.cat([self.encoder(some) for some in x.split(_AT_ONCE)])
        if seen.shape != (len(y), self.features):
            raise ValueError(
                f"`encoder` must return [{len(y)}, {self.features}], got {list(seen.shape)}"
            )
        labels = F.one_hot(y, self.n_classes).to(seen)
        if self.of_class is None:
            return self.whole(self.each(torch.cat([seen, labels], 1)).mean(0)), 0
        there = labels.sum(0) > 0
        means = (labels.T @ self.each(seen))[there] / labels.sum(0)[there, None]
        classes = torch.eye(self.n_classes).to(seen)[there]
        return self.whole(self.of_class(torch.cat([means, classes], 1)).mean(0)), 0

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, without the encoder."""
        return {
            "kind": self.kind,
            "features": self.features,
            "n_classes": self.n_classes,
            "dim": self.dim,
            "hidden": self.whole[1].in_features,
            **({} if self.of_class is None else {"pool": self.pool}),
        }
