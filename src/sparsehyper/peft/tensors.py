"""The factors of one layer as peft's files hold them, and back.

    layer                   lora_A.weight                lora_B.weight
    Linear, Conv1D          [r, in]                      [out, r]
    Conv                    [r, in, *kernel]             [out, r / groups, 1, …]
    MultiheadAttention      [r, in]                      [3 · out, r]; and zeros for the output's
    Embedding               lora_embedding_A [r, n]      lora_embedding_B [dim, r]

In peft, A of a convolution with groups sees the input of all groups, and each group has r / groups
of its outputs. A change here then becomes one of rank r · groups, in which each group has a copy
of A that sees the group's own input.

Up to version 0.21 peft adds the change of an attention's output projection twice
(https://github.com/huggingface/peft/pull/3774), so that no file means the same to all versions.
Such changes are refused both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparsehyper.target.adapters.layers import PLAIN, is_conv1d, is_quantised
from sparsehyper.target.adapters.low_rank import Change, Dora

_CONVOLUTIONS = PLAIN[1:]
_TWICE = "the output projection of an attention, whose change peft may add twice"
_OUTPUT = "base_layer.out_proj"  # of an attention


def to_peft(
    change: Change, A: Tensor, B: Tensor, magnitude: Tensor | None = None
) -> tuple[dict[str, Tensor], int]:
    """The tensors of a change by the ends of their names in a file, and the rank there.

    Args:
        change: the change, whose own tensors are not used.
        A, B, magnitude: its tensors; ``magnitude`` with `Dora`.

    Raises:
        ValueError: peft has nothing for such a layer; the error names it.
    """
    layer, rank = change.layer, len(A)
    if reason := _unknown(change):
        raise ValueError(
            f"peft has nothing for {reason}: layer {change.name!r}; use `materialize`, "
            "or leave the layer out of `layers`"
        )
    if change.part.padding is not None:
        A = A.index_fill(1, torch.tensor(change.part.padding, device=A.device), 0)
    if isinstance(layer, nn.Embedding):
        tensors = {"lora_embedding_A": A, "lora_embedding_B": B}
    elif isinstance(layer, _CONVOLUTIONS):
        groups, kernel = layer.groups, layer.kernel_size
        rank = rank * groups
        spread = A.new_zeros(groups, len(A), groups, A.shape[1])
        for group in range(groups):
            spread[group, :, group] = A
        ones = [1] * len(kernel)
        tensors = {
            "lora_A.weight": spread.reshape(rank, layer.in_channels, *kernel),
            "lora_B.weight": B.reshape(*B.shape, *ones),
        }
    else:
        tensors = {"lora_A.weight": A, "lora_B.weight": B}
    if isinstance(layer, nn.MultiheadAttention):
        tensors[f"{_OUTPUT}.lora_A.weight"] = torch.zeros_like(A)
        tensors[f"{_OUTPUT}.lora_B.weight"] = torch.zeros_like(B[: layer.embed_dim])
    if magnitude is not None:
        assert isinstance(change.part, Dora)
        norms = change.part.norms(_original(change))
        dims = [1] * len(getattr(layer, "kernel_size", ()))
        shape = [1, -1, *dims] if dims else [-1]
        tensors["lora_magnitude_vector"] = (magnitude * norms).reshape(shape)
    return tensors, rank


def from_peft(change: Change, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A and B of a change from the tensors of its layer in a file.

    Raises:
        ValueError: tensors that the layer does not have, or of other sizes.
    """
    names = ["lora_A.weight", "lora_B.weight"]
    if isinstance(change.layer, nn.Embedding):
        names = ["lora_embedding_A", "lora_embedding_B"]
    if reason := _unknown(change) or (
        "a convolution with groups" if getattr(change.layer, "groups", 1) > 1 else ""
    ):
        raise ValueError(f"{reason} cannot be read from a file of peft: layer {change.name!r}")
    if isinstance(change.layer, nn.MultiheadAttention):
        output = [tensors.pop(f"{_OUTPUT}.{name}", None) for name in names][1]
        if output is not None and output.any():
            raise ValueError(f"{_TWICE} cannot be read: layer {change.name!r}")
    if sorted(tensors) != names:
        raise ValueError(
            f"layer {change.name!r} needs the tensors {names}, the file has {sorted(tensors)}"
        )
    A, B = (tensors[name] for name in names)
    expected = change.part.A.shape[1], change.part.B.shape[0]
    found = A[:1].numel(), B.shape[0]
    if found != expected or B[:1].numel() != A.shape[0] or not A.shape[0]:
        raise ValueError(
            f"layer {change.name!r} has {expected[0]} inputs and {expected[1]} outputs, the file's "
            f"tensors have shapes {list(A.shape)} and {list(B.shape)}"
        )
    return A.flatten(1), B.flatten(1)


def _original(change: Change) -> Tensor:
    """The weight of a layer without its changes."""
    parts: Any = change.layer.parametrizations[change.tensor]
    return parts.original


def _unknown(change: Change) -> str:
    """Why peft has nothing for a layer; empty if it has."""
    layer, dora = change.layer, isinstance(change.part, Dora)
    if isinstance(layer, nn.MultiheadAttention):
        if dora:
            return "DoRA of an attention"
        return "" if change.tensor == "in_proj_weight" else "projections with weights of their own"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return _TWICE
    kind: Any = type_before_parametrizations(layer)
    if (
        isinstance(layer, PLAIN)
        and not is_quantised(layer)
        and kind.forward not in (plain.forward for plain in PLAIN)
    ):
        return f"a {kind.__name__}, which has a forward pass of its own"
    if isinstance(layer, _CONVOLUTIONS):
        if layer.padding_mode != "zeros" or any(size != 1 for size in layer.dilation):
            return "a convolution with dilation or another padding than zeros"
        return "DoRA of a convolution with groups" if dora and layer.groups > 1 else ""
    known = isinstance(layer, (nn.Linear, nn.Embedding)) or is_conv1d(layer) or is_quantised(layer)
    return "" if known else f"a {type(layer).__name__.removeprefix('Parametrized')}"
