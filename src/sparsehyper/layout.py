"""The layout of θ: which tensors of a module are generated, and where each lies in the vector."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from sparsehyper._util.checks import check_integer

Select = str | Sequence[str] | Mapping[str, torch.Size] | Callable[[str, nn.Parameter], bool]


class TensorSpec(NamedTuple):
    """One generated tensor and its place in θ.

    Attributes:
        name: Name in the target's ``named_parameters()``.
        shape: Shape of the tensor.
        offset: Index of its first element in θ.
        numel: Number of its elements.
        aliases: Other names of the tensor, if it is tied.
    """

    name: str
    shape: torch.Size
    offset: int
    numel: int
    aliases: tuple[str, ...]


Layout = Sequence[TensorSpec] | int
"""The tensors that make up θ, in order; or the length of θ, where shapes do not matter."""


def as_tensors(layout: Layout) -> tuple[TensorSpec, ...]:
    """The non-empty tensors of a layout; an integer stands for one flat tensor of that length.

    Raises:
        ValueError: an empty layout.

    >>> as_tensors(7)[0].shape
    torch.Size([7])
    """
    if not isinstance(layout, Sequence):
        check_integer("layout", layout, minimum=1)
        return (TensorSpec("theta", torch.Size([layout]), 0, layout, ()),)
    tensors = tuple(spec for spec in layout if spec.numel)
    if not tensors:
        raise ValueError("`layout` must hold at least one number, got none")
    return tensors


def count_numbers(layout: Layout) -> int:
    """Length of θ, at least 1."""
    return sum(spec.numel for spec in as_tensors(layout))


def pack(
    tensors: Iterable[tuple[str, torch.Size] | tuple[str, torch.Size, tuple[str, ...]]],
) -> tuple[TensorSpec, ...]:
    """The layout of consecutive tensors, given by names, shapes and other names, if any.

    >>> [spec.offset for spec in pack([("a", torch.Size([2, 3])), ("b", torch.Size([4]))])]
    [0, 6]
    """
    layout, offset = [], 0
    for name, shape, *aliases in tensors:
        layout.append(TensorSpec(name, shape, offset, shape.numel(), *(aliases or [()])))
        offset += shape.numel()
    return tuple(layout)


def plan_layout(module: nn.Module, generate: Select = "*") -> tuple[TensorSpec, ...]:
    """The layout of the parameters of ``module`` to generate.

    Args:
        module: any module.
        generate: a glob on parameter names, several, or a predicate of name and parameter. A tied
            parameter is selected by a glob on any of its names; a predicate gets the first. Or the
            shapes of a layout that was saved, by name: their order is then that of θ, in whatever
            order the module declares its parameters.

    Raises:
        TypeError, ValueError: a selection of a wrong type or that selects nothing, parameters
            without a shape, of several dtypes, complex, or of a ScriptModule; or others than those
            that were saved.

    >>> [tuple(spec[:4]) for spec in plan_layout(nn.Linear(3, 2), "w*")]
    [('weight', torch.Size([2, 3]), 0, 6)]
    """
    names: dict[nn.Parameter, list[str]] = {}
    scripted: set[str] = set()
    for kind in ("parameter", "buffer"):
        for name, owner, _, tensor in slots(module, f"_{kind}s"):
            if isinstance(owner, torch.jit.ScriptModule):
                scripted.add(name)
            if isinstance(tensor, nn.parameter.UninitializedParameter | nn.UninitializedBuffer):
                raise ValueError(
                    f"{kind} {name!r} of `target` has no shape yet; "
                    "run the module once on an example before giving it to a hypernetwork"
                )
            if kind == "parameter" and tensor.requires_grad:
                names.setdefault(tensor, []).append(name)
    every: dict[int, list[str]] = {}  # slots give those of a module that is used twice once
    for name, parameter in module.named_parameters(remove_duplicate=False):
        every.setdefault(id(parameter), []).append(name)
    if isinstance(generate, Mapping) and generate:
        chosen = _saved(generate, {parameter: every[id(parameter)] for parameter in names})
    else:
        chosen = _select(
            generate,
            {first: parameter for parameter, (first, *_) in names.items()},
            {first: every[id(parameter)] for parameter, (first, *_) in names.items()},
        )
    for name in chosen:
        if name in scripted:
            raise TypeError(
                f"parameter {name!r} of `target` is a ScriptModule's, where a generated one cannot "
                "be put; give the module that was scripted or traced, or leave its parameters out "
                "by `generate`"
            )
    dtypes = {parameter.dtype: name for name, parameter in chosen.items()}
    if len(dtypes) > 1 or any(dtype.is_complex for dtype in dtypes):
        found = ", ".join(f"{dtype} ({name!r})" for dtype, name in dtypes.items())
        remedy = (
            "select the real ones by `generate`, or have the module keep real parameters and view "
            "them by torch.view_as_complex in `forward`"
            if any(dtype.is_complex for dtype in dtypes)
            else "convert the module, or select those of one dtype by `generate`"
        )
        raise ValueError(
            f"`generate` must select parameters of one real dtype, got {found}; {remedy}"
        )
    return pack(
        (name, parameter.shape, _others(module, name, names[parameter]))
        for name, parameter in chosen.items()
    )


def slots(module: nn.Module, kind: str) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Places of parameters (``"_parameters"``) or buffers (``"_buffers"``), each once.

    Yields:
        Full name, module that holds the tensor, name there, and tensor.
    """
    for prefix, owner in module.named_modules():
        for attribute, value in getattr(owner, kind).items():
            if value is not None:
                yield f"{prefix}.{attribute}" if prefix else attribute, owner, attribute, value


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the tensor ``name``, and its name there."""
    prefix, _, attribute = name.rpartition(".")
    return module.get_submodule(prefix), attribute


def matches(names: Iterable[str], pattern: str) -> bool:
    """Whether a glob matches one of the names of a tensor."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _others(module: nn.Module, name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names of a tensor in other places than that of ``name``."""
    place = owner_of(module, name)
    return tuple(other for other in names if owner_of(module, other) != place)


def _select(
    generate: Select, parameters: dict[str, nn.Parameter], names: dict[str, list[str]]
) -> dict[str, nn.Parameter]:
    """The selected of the parameters, which are given by their first names."""
    if not parameters:
        raise ValueError("`target` has no trainable parameter to generate")
    known = ", ".join(" = ".join(names[first]) for first in parameters)
    if callable(generate):
        selected = [first for first, p in parameters.items() if generate(first, p)]
    elif not isinstance(generate, Iterable):
        raise TypeError(f"`generate` must be a glob, several, or a predicate, got {generate!r}")
    else:
        patterns = [generate] if isinstance(generate, str) else list(generate)
        for pattern in patterns:
            if not any(matches(names[first], pattern) for first in parameters):
                raise ValueError(
                    f"`generate` pattern {pattern!r} matches no trainable parameter of the "
                    f"target; it has: {known}"
                )
        selected = [
            first for first in parameters if any(matches(names[first], each) for each in patterns)
        ]
    if not selected:
        raise ValueError(f"`generate` selects no parameter of the target; it has: {known}")
    return {first: parameters[first] for first in selected}


def _saved(
    shapes: Mapping[str, torch.Size], names: Mapping[nn.Parameter, Sequence[str]]
) -> dict[str, nn.Parameter]:
    """The parameters of a saved layout, in its order; each has all its names."""
    found = {name: parameter for parameter, every in names.items() for name in every}
    chosen: dict[nn.Parameter, str] = {}
    for name, shape in shapes.items():
        parameter = found.get(name)
        if parameter is None:
            instead = "no such parameter"
        elif parameter.shape != shape:
            instead = f"shape {list(parameter.shape)}"
        elif parameter in chosen:
            instead = f"tied it to {chosen[parameter]!r}"
        else:
            chosen[parameter] = name
            continue
        raise ValueError(
            f"`target` does not fit: the saved hypernetwork generates {name!r} of shape "
            f"{list(shape)}, this target has {instead}"
        )
    return {name: parameter for parameter, name in chosen.items()}
