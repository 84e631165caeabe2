"""Models of added tasks that no generator makes: kept whole, in a closed set of forms.

A new task of an adapted run may have a model of its own. Whatever route finds it, it is

    member_i    the run's target without a mask, built for some number of outputs
    model(x)    log Σ_i weight_i · softmax(member_i(x) over the task's classes) / temperature

A `ModelForm` holds the numbers of this equation, and goes into ``tasks.json``; all tensors of every
member go into ``tasks.safetensors``, as ``model/<i>/<name>``. A model of one member at temperature
1 is that member itself. So nothing that comes from a file is executed: the run's own target is
built, and given tensors of its own names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import WIDEST, check_integer, check_number

_MOST_MEMBERS = 1000


@dataclass(frozen=True)
class ModelForm:
    """The numbers that describe a model.

    Attributes:
        outputs: number of outputs of each member, at least the number of the task's classes.
        weights: weight of each member, above 0; they sum to 1.
        temperature: what the logits are divided by, above 0.

    Raises:
        ValueError: there are no members, or a number is out of range.
    """

    outputs: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < len(self.outputs) == len(self.weights) <= _MOST_MEMBERS:
            raise ValueError(
                "`weights` must have one entry for each of `outputs`, got "
                f"{len(self.weights)} and {len(self.outputs)}"
            )
        for count in self.outputs:
            check_integer("outputs", count, minimum=1, maximum=WIDEST)
        for weight in self.weights:
            check_number("weights", weight, above=0)
        if not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise ValueError(f"`weights` must sum to 1, got {sum(self.weights)}")
        check_number("temperature", self.temperature, above=0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also after a round trip through JSON."""
        return cls(tuple(values["outputs"]), tuple(values["weights"]), values["temperature"])

    def build(
        self, target: Callable[[int], nn.Module], n_classes: int, tensors: Mapping[str, Tensor]
    ) -> nn.Module:
        """The model, in evaluation mode.

        Args:
            target: builds the run's target for a number of outputs.
            n_classes: number of the task's classes.
            tensors: as `tensors_of` returns them.
        """
        members = []
        for i, outputs in enumerate(self.outputs):
            member, prefix = target(outputs), f"model/{i}/"
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            member.load_state_dict(own)
            members.append(member)
        if len(members) == 1 and self.temperature == 1:
            return members[0].eval()
        return Average(members, self.weights, self.temperature, n_classes).eval()


class Average(nn.Module):
    """The average of classifiers' probabilities, as logits ``[batch, n_classes]``.

    >>> half = Average([nn.Identity(), nn.Identity()], [0.5, 0.5], 2.0, n_classes=2)
    >>> half(torch.tensor([[2.0, 0.0, 5.0]])).softmax(1).allclose(torch.tensor([1.0, 0]).softmax(0))
    True
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float],
        temperature: float,
        n_classes: int,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.logarithms = [math.log(weight) for weight in weights]
        self.temperature, self.n_classes = temperature, n_classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images ``[batch, channels, height, width]``."""
        parts = [
            member(x)[:, : self.n_classes].float().log_softmax(1) + logarithm
            for member, logarithm in zip(self.members, self.logarithms, strict=True)
        ]
        return torch.stack(parts).logsumexp(0) / self.temperature


def tensors_of(members: Sequence[nn.Module]) -> dict[str, Tensor]:
    """All tensors of a model's members, by the names they have in a file."""
    return {
        f"model/{i}/{name}": tensor.detach()
        for i, member in enumerate(members)
        for name, tensor in member.state_dict().items()
    }
