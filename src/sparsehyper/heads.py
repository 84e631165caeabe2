"""Heads in closed form: a task's last layer is solved from its examples instead of generated.

With features φ ``[features]``, the inputs of the target's last linear layer:

    Ridge        W, b = argmin Σ_i |y_i - W φ_i / √F - b|² + λ |W|²,  outputs s (W φ / √F + b)
    Prototypes   outputs -s |φ - μ_c|² / √F up to a term that all classes share, where μ_c is the
                 mean of φ over the examples of class c

Choose one where the classes of tasks are their own, so that their numbering means nothing and an
embedding would have to spell out the layer; or where the tasks are regressions of one kind. The
embedding then shapes the features. A new task may have any number of classes. For regressions,
`HyperNetwork.fit_head_prior` finds a normal prior of the heads from the known tasks, which a new
task with few rows then starts from.

In training, every sample of a batch is predicted by the head that is solved from the other samples
of its task in the batch. Those predictions are differentiable and cost no second fit, so that the
hypernetwork is trained for what a new task will do. λ and s are trained too. Each of several
processes solves heads from its own part of a batch.

Source: L. Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (ICLR 2019);
J. Snell et al., "Prototypical networks for few-shot learning" (NIPS 2017). Deviation: each sample
is left out in turn, in place of a division of the batch into support and query samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import check_choice, check_type, class_numbers, read_kind
from sparsehyper._util.last_layer import last_layer, linear_layer
from sparsehyper._util.ridge import (
    LayerPrior,
    fit_prior,
    leave_one_out,
    leave_one_out_under_prior,
    solve_ridge,
    solve_under_prior,
)
from sparsehyper._util.text import listed

TARGETS = ("classes", "numbers")
_ABSENT = -1e4  # logit of a class without examples


@dataclass(frozen=True)
class Head:
    """A head in closed form, as `HyperNetwork` takes it.

    Args:
        layer: name of the target's last linear layer, whose output must be the target's; None for
            the ``nn.Linear`` that the target declares last.
    """

    layer: str | None = None
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_type("layer", self.layer, str, "the name of a layer")

    @property
    def classes(self) -> bool:
        """Whether labels are class numbers, and outputs logits."""
        return True

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict, which `head_from_config` reads."""
        return {"kind": self.kind, **asdict(self)}

    def find(self, target: nn.Module) -> tuple[str, nn.Linear]:
        """The layer that the head replaces, and its name.

        Raises:
            ValueError: there is no such layer, it is not an ``nn.Linear``, or it is all of
                ``target``.
        """
        linear = {name: m for name, m in target.named_modules() if isinstance(m, nn.Linear)}
        name = next(reversed(linear), "") if self.layer is None else self.layer
        if name not in linear or not name:
            wanted = "" if self.layer is None else f" named {self.layer!r}"
            inside = listed(filter(None, linear))
            remedy = f"name one of {inside} by `layer`" if inside else "it has none"
            raise ValueError(
                f"`head` needs an nn.Linear{wanted} inside the target, to replace it; {remedy}"
            )
        return name, linear[name]


@dataclass(frozen=True)
class Ridge(Head):
    """Ridge regression on the features; of the classes as one-hot vectors, or of numbers.

    Args:
        layer: as for `Head`.
        targets: ``"classes"``: class numbers ``[n]``, and outputs are logits; or ``"numbers"``:
            numbers ``[n, outputs]``, and outputs are predictions of them.
    """

    targets: str = "classes"
    kind = "ridge"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("targets", self.targets, TARGETS)

    @property
    def classes(self) -> bool:
        return self.targets == "classes"


@dataclass(frozen=True)
class Prototypes(Head):
    """The distance to the mean features of each class."""

    kind = "prototypes"


HEADS: dict[str, type[Head]] = {Ridge.kind: Ridge, Prototypes.kind: Prototypes}


def head_from_config(config: dict[str, Any] | None) -> Head | None:
    """The inverse of `Head.to_config`; None for None.

    Raises:
        TypeError, ValueError: not the configuration of a head.
    """
    if config is None:
        return None
    kind, settings = read_kind("head", config, HEADS)
    return kind(**settings)


class NonFiniteFeatures(ValueError):
    """Features of a ``task`` that its head is to be solved from are infinite or NaN."""

    def __init__(self, message: str, task: str) -> None:
        super().__init__(message)
        self.task = task


class SolvedHead(nn.Module):
    """The heads of all tasks.

    Args:
        kind: how they are solved.
        layer: the layer that they replace.
        tasks: number of tasks.

    Attributes:
        weight: Weights ``[tasks, outputs, features]``; zeros until they are solved.
        bias: Biases ``[tasks, outputs]``.
        prior_mean, prior_covariance, prior_noise: Of heads of numbers, as `LayerPrior` has them;
            the noise is 0 while there is no prior.
    """

    weight: Tensor
    bias: Tensor
    prior_mean: Tensor
    prior_covariance: Tensor
    prior_noise: Tensor

    def __init__(self, kind: Head, layer: nn.Linear, tasks: int) -> None:
        super().__init__()
        self.kind = kind
        self.features = layer.in_features
        self.classes = kind.classes
        like = layer.weight.detach()
        self.register_buffer("weight", like.new_zeros(tasks, *like.shape))
        self.register_buffer("bias", like.new_zeros(tasks, len(like)))
        ridge = isinstance(kind, Ridge)
        if ridge:
            self.log_penalty = nn.Parameter(like.new_zeros(()))
        if not self.classes:
            width = self.features + 1
            self.register_buffer("prior_mean", like.new_zeros(len(like), width))
            self.register_buffer("prior_covariance", like.new_zeros(len(like), width, width))
            self.register_buffer("prior_noise", like.new_zeros(len(like)))
        else:
            self.log_scale = nn.Parameter(like.new_tensor(math.log(10) if ridge else 0.0))

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Outputs ``[n, outputs]``.

        Args:
            features: ``[n, features]``.
            task: number of the task, or one for each sample, ``[n]``.
        """
        self.check(features)
        if isinstance(task, int):
            return F.linear(features, self.weight[task], self.bias[task])
        task = task.to(self.weight.device)
        return torch.einsum("nf,ncf->nc", features, self.weight[task]) + self.bias[task]

    def solve(self, features: Tensor, y: Tensor, n_classes: int = 0) -> tuple[Tensor, Tensor]:
        """The head that follows from one task's examples.

        Args:
            features: ``[n, features]``.
            y: class numbers ``[n]``, or numbers ``[n, outputs]``.
            n_classes: number of classes of the task, if some of them have no example here.

        Returns:
            Weight ``[outputs, features]`` and bias ``[outputs]``; at least one output for each
            class.

        Raises:
            ValueError: labels that are neither, or not those of the head.
        """
        y = self._labels(y, len(features))
        targets, present = self._targets(y, n_classes)
        if (prior := self._prior()) is not None:
            return solve_under_prior(features, targets, prior)
        if isinstance(self.kind, Ridge):
            weight, bias = solve_ridge(features, targets, self.log_penalty.exp())
        else:
            wide = _wide(features)
            means = _class_means(wide, targets)
            root = features.shape[1] ** 0.5
            # Distances from their centre, which leaves differences of logits as they are: in
            # bfloat16 those of large numbers would be lost.
            centre = means[present].mean(0)
            means = means - centre
            weight = 2 * means / root
            bias = -means.square().sum(1) / root - weight @ centre
        if not self.classes:
            return weight, bias
        scale = self.log_scale.exp()
        weight = (scale * weight).to(features).masked_fill(~present[:, None], 0)
        bias = (scale * bias).to(features)
        return weight, bias.masked_fill(~present, _ABSENT)

    def leave_one_out(
        self, features: Tensor, y: Tensor, task: Tensor | None = None, n_classes: int = 0
    ) -> Tensor:
        """Outputs ``[n, outputs]`` for each sample by the head of all other samples of its task.

        Samples whose class has no other sample cannot be predicted: their outputs are zeros.

        Args:
            features, y, n_classes: as for `solve`.
            task: task of each sample, ``[n]``; None if all are of one.
        """
        self.check(features)
        y = self._labels(y, len(features))
        if task is None:
            return self._leave_one_out(features, y, n_classes)
        if self.classes and len(y):
            n_classes = max(n_classes, int(y.max()) + 1)  # outputs of all tasks are of one width
        order = task.argsort(stable=True)
        counts = task[order].unique_consecutive(return_counts=True)[1]
        groups = order.split(counts.tolist())
        outputs = [self._leave_one_out(features[own], y[own], n_classes) for own in groups]
        return torch.cat(outputs)[order.argsort()]

    @torch.no_grad()
    def numbers_left_out(self, features: Tensor, y: Tensor, first_equal: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` for each sample by the head that `solve` finds from all others.

        Unlike those of `leave_one_out`, which train the features, they are under the prior.

        Args:
            features: ``[n, features]`` of one task, not trained on its samples.
            y: numbers ``[n, outputs]``.
            first_equal: as `Inputs.first_equal`, to leave out the equals of a sample too; at least
                2 samples differ.
        """
        targets = self._labels(y, len(features))
        if (prior := self._prior()) is not None:
            return leave_one_out_under_prior(features, targets, prior, first_equal)
        return leave_one_out(features, targets, self.log_penalty.exp(), first_equal)

    def _leave_one_out(self, features: Tensor, y: Tensor, n_classes: int) -> Tensor:
        targets, present = self._targets(y, n_classes)
        if len(features) < 2:
            return features.new_zeros(targets.shape) + 0 * features.sum()
        if isinstance(self.kind, Ridge):
            out = leave_one_out(features, targets, self.log_penalty.exp())
        else:
            given, targets = features, targets.to(_wide(features))
            counts = targets.sum(0)
            features = _wide(features)
            features = features - _class_means(features, targets)[present].mean(0)  # as in `solve`
            sums = targets.T @ features
            means = sums / counts.clamp(min=1)[:, None]
            out = 2 * features @ means.T - means.square().sum(1)
            own = (sums[y] - features) / (counts[y] - 1).clamp(min=1)[:, None]
            own_out = (2 * features * own - own.square()).sum(1, keepdim=True)
            out = (out.scatter(1, y[:, None], own_out) / features.shape[1] ** 0.5).to(given)
        if not self.classes:
            return out
        single = targets.sum(0)[y] < 2
        logits = (self.log_scale.exp() * out).masked_fill(~present, _ABSENT)
        return logits.masked_fill(single[:, None], 0)

    @torch.no_grad()
    def fit_prior(self, tasks: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Find the prior of heads of numbers from features and labels of several tasks.

        Raises:
            ValueError: heads are of classes, or there is one task only.
        """
        if self.classes or len(tasks) < 2:
            raise ValueError(
                "a prior of heads needs `Ridge(targets='numbers')` and at least 2 tasks, got "
                f"{self.kind} and {len(tasks)}"
            )
        prior = fit_prior([(features, self._labels(y, len(features))) for features, y in tasks])
        self.prior_mean.copy_(prior.mean)
        self.prior_covariance.copy_(prior.covariance)
        self.prior_noise.copy_(prior.noise)

    @torch.no_grad()
    def set(self, task: int, weight: Tensor, bias: Tensor) -> None:
        """Keep a task's head; all tasks get more outputs if it has more than they."""
        self.widen(len(bias))
        self.weight[task] = 0
        self.bias[task] = _ABSENT
        self.weight[task, : len(bias)] = weight
        self.bias[task, : len(bias)] = bias

    def widen(self, outputs: int) -> None:
        """Give all tasks at least this many outputs."""
        more = max(0, outputs - self.bias.shape[1])
        self.weight = F.pad(self.weight, (0, 0, 0, more))
        self.bias = F.pad(self.bias, (0, more), value=_ABSENT)

    def resize(self, outputs: int) -> None:
        """Give all tasks this many outputs; the last ones are dropped."""
        self.widen(outputs)
        self.weight, self.bias = self.weight[:, :outputs], self.bias[:, :outputs]

    def add_row(self) -> None:
        """Add a head of zeros for one more task."""
        self.weight = torch.cat([self.weight, torch.zeros_like(self.weight[:1])])
        self.bias = torch.cat([self.bias, torch.zeros_like(self.bias[:1])])

    def remove_row(self, task: int) -> None:
        """Remove a task's head."""
        self.weight = torch.cat([self.weight[:task], self.weight[task + 1 :]])
        self.bias = torch.cat([self.bias[:task], self.bias[task + 1 :]])

    def linear(self, task: int) -> nn.Linear:
        """A task's head as an ordinary layer."""
        return linear_layer(self.weight[task], self.bias[task])

    def check(self, features: Any) -> None:
        """Raise ``ValueError`` unless these are the inputs of the layer."""
        if not isinstance(features, Tensor) or features.ndim != 2:
            found = list(features.shape) if isinstance(features, Tensor) else type(features)
        elif features.shape[1] != self.features:
            found = list(features.shape)
        else:
            return
        raise ValueError(
            "`head` replaces the layer whose output is the target's; without it the target must "
            f"return its {self.features} features, [n, {self.features}], got {found}; name the "
            "layer by `layer`"
        )

    def _prior(self) -> LayerPrior | None:
        """The prior of heads of numbers, if one was found."""
        if self.classes or not self.prior_noise.all():
            return None
        return LayerPrior(self.prior_mean, self.prior_covariance, self.prior_noise)

    def _labels(self, y: Tensor, count: int) -> Tensor:
        """Labels as class numbers, int64 ``[n]``, or as numbers ``[n, outputs]``; ``count`` is n.

        Raises:
            ValueError: they are neither.
        """
        if self.classes:
            remedy = "; for numbers use `Ridge(targets='numbers')`" if y.is_floating_point() else ""
            return class_numbers("labels of a head of classes", y, count, remedy)
        outputs = self.bias.shape[1]
        targets = y[:, None] if y.ndim == 1 else y
        if targets.shape != (count, outputs):
            raise ValueError(
                f"labels of a regression must have shape [n, {outputs}], as the target's "
                f"outputs, got {list(y.shape)}; for class numbers use `Ridge()`"
            )
        return targets

    def _targets(self, y: Tensor, n_classes: int = 0) -> tuple[Tensor, Tensor]:
        """What the head regresses to, ``[n, outputs]``, and which outputs have examples."""
        outputs = self.bias.shape[1]
        if not self.classes:
            return y, torch.ones(outputs, dtype=torch.bool, device=y.device)
        outputs = max(outputs, n_classes, int(y.max()) + 1 if len(y) else 0)
        targets = F.one_hot(y, outputs).to(self.weight.dtype)
        return targets, targets.sum(0) > 0


def ends_in_linear(target: nn.Module, *args: Any) -> bool:
    """Whether the linear layer that a target declares last follows others and is its output.

    Args:
        target: the target, in evaluation mode.
        *args: its arguments.
    """
    try:
        name, _ = Head().find(target)
    except ValueError:
        return False
    found = last_layer(target, *args)
    trained = [n for n, p in target.named_parameters() if p.requires_grad]
    return (
        found is not None
        and found[0] == name
        and any(not n.startswith(f"{name}.") for n in trained)
    )


def _class_means(features: Tensor, targets: Tensor) -> Tensor:
    """Mean features ``[classes, F]`` of one-hot classes ``[n, classes]``; 0 without an example."""
    targets = targets.to(features)
    return targets.T @ features / targets.sum(0).clamp(min=1)[:, None]


def _wide(features: Tensor) -> Tensor:
    """The features in float32 at least: sums and squares of float16 overflow."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
