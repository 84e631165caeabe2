"""Models of added tasks that are kept whole, in a closed set of forms.

A new task of an adapted run may have a model of its own. Whatever route finds it, it is a `Leaf`,

    target      the run's target without a mask, built for some number of outputs
    linear      one linear layer of the images' pixels

or a `Mixture` of such models, whose members may be mixtures too. The form goes into ``tasks.json``;
all tensors of leaf number i, counted as they are written, go into ``tasks.safetensors`` as
``model/<i>/<name>``. So nothing that comes from a file is executed: known modules are built, and
given tensors of their own names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import WIDEST, check_choice, check_integer, check_number
from sparsehyper.adaptation.mixture import Mixture

KINDS = ("target", "linear")
_DEEPEST, _MOST_LEAVES = 4, 1000


@dataclass(frozen=True)
class Leaf:
    """A model that is no mixture.

    Attributes:
        kind: one of `KINDS`.
        outputs: its number of outputs.

    Raises:
        ValueError: an unknown kind, or a number out of range.
    """

    kind: str
    outputs: int

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_integer("outputs", self.outputs, minimum=1, maximum=WIDEST)

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaf itself."""
        yield self

    @property
    def depth(self) -> int:
        """Number of mixtures within one another."""
        return 0

    def build(self, leaves: Iterator[nn.Module]) -> nn.Module:
        """The model; it takes the next of ``leaves``."""
        return next(leaves)


@dataclass(frozen=True)
class MixtureForm:
    """A `Mixture`.

    Attributes:
        members: the forms of its models.
        weights, temperatures: a number above 0 for each; weights sum to 1.
        n_classes: as `Mixture` takes it.

    Raises:
        ValueError: there are no members, or too many; members have too few outputs, or different
            numbers of them without ``n_classes``; or a number is out of range.
    """

    members: tuple[Form, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    n_classes: int | None = None

    def __post_init__(self) -> None:
        count = len(self.members)
        if not 0 < count == len(self.weights) == len(self.temperatures):
            raise ValueError(
                "`weights` and `temperatures` must have one entry for each of `members`, got "
                f"{len(self.weights)}, {len(self.temperatures)} and {count}"
            )
        for name, values in (("weights", self.weights), ("temperatures", self.temperatures)):
            for value in values:
                check_number(name, value, above=0)
        if not math.isclose(sum(self.weights), 1, abs_tol=1e-5):
            raise ValueError(f"`weights` must sum to 1, got {sum(self.weights)}")
        outputs = [member.outputs for member in self.members]
        if self.n_classes is not None:
            check_integer("n_classes", self.n_classes, minimum=1, maximum=min(outputs))
        elif len(set(outputs)) > 1:
            raise ValueError(f"`members` must have as many outputs, got {outputs}")
        if self.depth > _DEEPEST or sum(1 for _ in self.leaves) > _MOST_LEAVES:
            raise ValueError(
                f"`members` must be at most {_MOST_LEAVES} models, and mixtures at most {_DEEPEST} "
                "deep"
            )

    @property
    def outputs(self) -> int:
        """The model's number of outputs."""
        return self.members[0].outputs if self.n_classes is None else self.n_classes

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaves, in order."""
        for member in self.members:
            yield from member.leaves

    @property
    def depth(self) -> int:
        """Number of mixtures within one another."""
        return 1 + max(member.depth for member in self.members)

    def build(self, leaves: Iterator[nn.Module]) -> nn.Module:
        """The model of some leaves."""
        members = [member.build(leaves) for member in self.members]
        return Mixture(members, self.weights, self.temperatures, self.n_classes)


Form = Leaf | MixtureForm


def form_from_dict(values: Mapping[str, Any], depth: int = 0) -> Form:
    """The inverse of ``dataclasses.asdict``, also after a round trip through JSON.

    Raises:
        KeyError, TypeError, ValueError: the values do not describe a form.
    """
    if "members" not in values:
        return Leaf(**values)
    if depth == _DEEPEST:
        raise ValueError(f"`members` must be at most {_DEEPEST} mixtures deep")
    return MixtureForm(
        **{
            **values,
            "members": tuple(form_from_dict(member, depth + 1) for member in values["members"]),
            "weights": tuple(values["weights"]),
            "temperatures": tuple(values["temperatures"]),
        }
    )


@torch.no_grad()
def form_of(model: nn.Module, image_shape: Sequence[int]) -> tuple[Form, list[nn.Module]]:
    """The form of a model, and its leaves.

    Args:
        model: the run's target, a linear layer of flattened images, or a `Mixture` of such.
        image_shape: ``(channels, height, width)``.
    """
    if not isinstance(model, Mixture):
        tensor = next(model.parameters())
        outputs = model(tensor.new_zeros(2, *image_shape)).shape[1]
        parts = list(map(type, model)) if isinstance(model, nn.Sequential) else []
        kind = "linear" if parts == [nn.Flatten, nn.Linear] else "target"
        return Leaf(kind, outputs), [model]
    forms, leaves = [], []
    for member in model.models:
        form, own = form_of(member, image_shape)
        forms.append(form)
        leaves += own
    weights, temperatures = tuple(model.weights.tolist()), tuple(model.temperatures.tolist())
    return MixtureForm(tuple(forms), weights, temperatures, model.n_classes), leaves


def build_leaf(
    leaf: Leaf,
    target: Callable[[int], nn.Module],
    image_shape: Sequence[int],
    names: Sequence[str],
) -> nn.Module:
    """The module of a leaf; its values do not matter.

    Args:
        leaf: the leaf.
        target: builds the run's target for a number of outputs.
        image_shape: ``(channels, height, width)``.
        names: names of the tensors that it will be given. A last layer that was solved has a bias,
            whether the target's own has one or not.
    """
    if leaf.kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), leaf.outputs))
    module = target(leaf.outputs)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer.bias is None and f"{name}.bias" in names:
            layer.bias = nn.Parameter(layer.weight.detach().new_zeros(layer.out_features))
    return module


def tensors_of(leaves: Sequence[nn.Module]) -> dict[str, Tensor]:
    """All tensors of a model's leaves, by the names they have in a file."""
    return {
        f"model/{i}/{name}": tensor.detach()
        for i, leaf in enumerate(leaves)
        for name, tensor in leaf.state_dict().items()
    }


def tensors_of_leaf(tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The tensors of one leaf, by its own names."""
    prefix = f"model/{number}/"
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
