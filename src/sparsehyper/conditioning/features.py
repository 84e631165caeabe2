"""Tasks described by given vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import WIDEST, check_integer, check_size, check_vector
from sparsehyper.conditioning.base import TaskConditioner, initialise


class TaskFeatures(TaskConditioner):
    """Embeddings computed from a vector for each task, such as the embedding of a text.

    z(task) = W₂ ReLU(W₁ f(task) + b₁) + b₂ + o(task), where the features f are given, not trained.
    A task that was never seen needs only its features: ``hnet.add_task(name, features)``, or
    ``hnet(x, task=conditioner.of(features))``. Its offset o is 0 until `fit_embedding` refines the
    task by examples, after which z is the embedding that was fitted.

    Tasks in words: with any encoder from a list of sentences to ``[n, n_features]``,
    ``TaskFeatures(dict(zip(names, encode(sentences))))`` describes the tasks, and
    ``hnet.add_task(name, encode([sentence])[0])`` adds one.

    ``task`` is a name, a number, an integer tensor ``[batch]`` of one task per sample, or an
    embedding ``[dim]``.

    Args:
        features: features of each task, by name: finite floating-point ``[n_features]``.
        dim: latent size, at least 2.
        hidden: width of the hidden layer.
        refined: make a table of offsets, all 0; for loading.
        seed: seed of the initial weights.

    Attributes:
        features: Features of all tasks, a buffer ``[tasks, n_features]``.
        offsets: Offsets of all tasks, a buffer ``[tasks, dim]``; None if no task was refined.

    Raises:
        TypeError, ValueError: no tasks, or features of other shapes or dtypes.

    >>> descriptors = {"shoes": torch.tensor([1.0, 0.0]), "bags": torch.tensor([0.0, 1.0])}
    >>> TaskFeatures(descriptors, dim=8)(torch.tensor([1, 0, 0])).shape
    torch.Size([3, 8])
    """

    kind = "task_features"
    by_task_alone = True
    described = True

    features: Tensor
    offsets: Tensor | None

    def __init__(
        self,
        features: Mapping[str, Tensor],
        dim: int = 64,
        *,
        hidden: int = 64,
        refined: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(features, Mapping):
            raise TypeError(f"`features` must map names to vectors, got {features!r}")
        super().__init__(list(features), dim)
        check_integer("hidden", hidden, minimum=1, maximum=WIDEST)
        rows: list[Tensor] = []
        for name, row in features.items():
            rows.append(self._checked(name, row, len(rows[0]) if rows else None))
        check_size("`hidden` units of `dim` outputs", hidden * max(dim, len(rows[0])))
        self.register_buffer("features", torch.stack(rows))
        self.register_buffer("offsets", torch.zeros(len(rows), dim) if refined else None)
        self.first, self.last = nn.Linear(len(rows[0]), hidden), nn.Linear(hidden, dim)
        initialise(self, seed)

    def forward(self, task: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of task ids ``[batch]``."""
        z = self.of(self.features[task.long()])
        return z if self.offsets is None else z + self.offsets[task.long()]

    def of(self, features: Tensor) -> Tensor:
        """Embeddings ``[…, dim]`` of features ``[…, n_features]``."""
        if features.shape[-1:] != self.features.shape[1:]:
            raise ValueError(
                f"`features` must have length {self.features.shape[1]}, got {list(features.shape)}"
            )
        return self.last(self.first(features).relu())

    def add(self, name: str, init: Any) -> None:
        """Add a task by its features ``[n_features]``."""
        self.check_new("name", name)
        if isinstance(init, str):
            raise TypeError(
                f"`init` must be the features of {name!r}, got {init!r}; give its vector of "
                f"{self.features.shape[1]} numbers"
            )
        row = self._checked(name, init, self.features.shape[1])
        self.features = torch.cat([self.features, row[None].to(self.features)])
        if self.offsets is not None:
            self.offsets = torch.cat([self.offsets, self.offsets.new_zeros(1, self.dim)])
        self.append_name(name)

    def blank(self) -> Tensor:
        """Features ``[n_features]`` for a task whose own are loaded afterwards."""
        return self.features[0]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        offsets = state.get(f"{prefix}offsets")
        self.offsets = None if offsets is None else self.features.new_zeros(offsets.shape)
        super()._load_from_state_dict(state, prefix, *rest)

    @torch.no_grad()
    def refine(self, row: int, z: Tensor) -> None:
        """Set the offset of the task with this number so that its embedding is z ``[dim]``."""
        check_vector("z", z, self.dim)
        if self.offsets is None:
            self.offsets = self.features.new_zeros(len(self.names), self.dim)
        self.offsets[row] = z - self.of(self.features[row])

    def drop(self, row: int) -> None:
        """Drop the features and the offset of a task."""
        self.features = torch.cat([self.features[:row], self.features[row + 1 :]])
        if self.offsets is not None:
            self.offsets = torch.cat([self.offsets[:row], self.offsets[row + 1 :]])

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, without the features, which are in the state dict."""
        refined = {} if self.offsets is None else {"refined": True}
        return {
            "kind": self.kind,
            "tasks": self.names,
            "n_features": self.features.shape[1],
            "dim": self.dim,
            "hidden": self.first.out_features,
            **refined,
        }

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> Self:
        """As `Conditioner.from_config`; the features are zeros."""
        given = dict(settings)
        length = given.pop("n_features")
        return cls({name: torch.zeros(length) for name in given.pop("tasks")}, **given)

    @staticmethod
    def _checked(name: str, row: Any, length: int | None) -> Tensor:
        if not isinstance(row, Tensor) or row.ndim != 1 or not row.is_floating_point():
            found = f"{row.dtype} {list(row.shape)}" if isinstance(row, Tensor) else repr(row)
            raise TypeError(f"features of {name!r} must be a floating-point vector, got {found}")
        if length is not None and len(row) != length:
            raise ValueError(f"features of {name!r} must have length {length}, got {len(row)}")
        if not row.isfinite().all():
            raise ValueError(f"features of {name!r} must be finite, got {row.tolist()}")
        return row.detach()
