"""The change of a layer by two factors A and B, in the weight or beside the layer.

    in the weight    W = W0 + factor · (B A).view_as(W0)
    beside           y = layer(x) + factor · B (A x)

Both are the same function. Beside, no weight is made and the backward pass makes no gradient of
one; and A and B may have a first dimension of samples, so that one run of a layer serves samples of
many tasks. Whoever reads the weight of such a layer, as attention does with its output projection,
still gets the changed one; for samples of many tasks there is none, but its dtype, device and shape
can be asked for, as models of transformers do.

    layer                      A                     B                       beside
    Linear                     [r, in]               [out, r]                yes
    Conv                       [r, in · kernel]      [out, r]                if out ≥ 16 r, or for
                                                                             samples of their own
    transformers' Conv1D       [r, in]               [out, r]                yes
    Embedding                  [r, numbers]          [dim, r]                yes
    ConvTranspose              [r, in]               [out · kernel, r]       no
    MultiheadAttention         [r, in]               [out, r], each weight   no
    quantised                  [r, in]               [out, r]                always

``in`` is that of one group. Conv1D, Embedding and ConvTranspose hold their weights the other way
round, so that these change by (B A)ᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from sparsehyper.target.adapters.layers import (
    TRANSPOSED,
    is_conv1d,
    is_quantised,
    weights_of,
)
from sparsehyper.target.adapters.parametrized import Adapter, kaiming_uniform, parametrizations
from sparsehyper.target.initialisation import padding_row

# On a CPU, a convolution with fewer outputs a group is slower beside: 1.2 times with 64 outputs at
# rank 8, 9.5 times if depthwise; and 0.4 times with 512.
_LEAST_OUTPUTS = 16  # for each of the rank

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class LowRank(Adapter):
    """A change of low rank: A starts at random and B at zero.

    Args:
        layer: the layer.
        tensor: name of its weight; its shape does not matter if the layer is quantised.
        rank: rank of the change.
        factor: the change is multiplied by it.
        rng: random generator of A.
    """

    def __init__(
        self, layer: Any, tensor: str, rank: int, factor: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.rank, self.factor = rank, factor
        self.transposed = isinstance(layer, (nn.Embedding, *TRANSPOSED)) or is_conv1d(layer)
        self.padding = padding_row(layer, tensor)
        convolved = isinstance(layer, tuple(_CONVOLUTIONS))
        self.faster_beside = (
            not convolved or layer.out_channels >= _LEAST_OUTPUTS * rank * layer.groups
        )
        if is_quantised(layer):
            n_out, n_in, weight = layer.out_features, layer.in_features, _like(layer)
        else:
            weight = getattr(layer, tensor).detach()
            n_out, n_in = len(weight), weight[0].numel()
            if self.transposed:
                n_out, n_in = n_in, n_out
        A = kaiming_uniform(weight, (rank, n_in), rng)
        if isinstance(layer, nn.Embedding):
            # It looks A up, so that a fan-in means nothing; the change is as large beside the
            # embeddings as a linear layer's beside its outputs.
            A *= n_in**0.5 * weight.std()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(weight.new_zeros(n_out, rank))

    def extra_repr(self) -> str:
        """The rank and the factor."""
        return f"rank={self.rank}, factor={self.factor:g}"

    def change(self) -> Tensor:
        """The change as a matrix, as the weight has it: ``[rows, elements of a row]``."""
        change = self.factor * (self.B @ self.A)
        if self.padding is not None:
            change = change.index_fill(1, torch.tensor(self.padding, device=change.device), 0)
        return change.T if self.transposed else change

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight; a `_NoWeight` if A and B are those of many samples."""
        if self.A.ndim != 2:
            return weight.detach().as_subclass(_NoWeight)
        return weight + self.change().reshape(weight.shape)

    def add(self, layer: Any, x: Tensor, y: Tensor) -> Tensor:
        """The output of a layer, ``y + factor · B (A x)``.

        A and B may have a first dimension of samples: a change for each. The result then equals a
        loop over them.

        Args:
            layer: the layer.
            x: its input. If every sample has a change of its own, its first dimension is that of
                the samples, or 1 for an input that all share, such as positions.
            y: its output without the change.

        Raises:
            ValueError: ``x`` has another number of samples than A and B.
        """
        if self.A.ndim == 3:
            samples = len(self.A)
            if x.shape[0] not in (1, samples):
                raise ValueError(
                    f"a layer with changes of its own for each of {samples} samples must get an "
                    f"input with these in the first dimension, got shape {list(x.shape)}"
                )
            x, y = x.expand(samples, *x.shape[1:]), y.expand(samples, *y.shape[1:])
        if isinstance(layer, tuple(_CONVOLUTIONS)):
            return self._add_convolved(layer, x, y)
        if isinstance(layer, nn.Embedding):
            low = self._looked_up(x)
        else:
            x = x if x.dtype == self.A.dtype else x.to(self.A.dtype)
            low = F.linear(x, self.A) if self.A.ndim == 2 else _rows(x) @ self.A.mT
        if self.B.ndim == 2:
            low = low.reshape(-1, low.shape[-1])
            if y.dtype == low.dtype:
                flat = y.reshape(-1, y.shape[-1])
                return torch.addmm(flat, low, self.B.T, alpha=self.factor).view(y.shape)
        else:
            low = _rows(low)
        return y + (self.factor * (low @ self.B.mT)).view(y.shape).to(y.dtype)

    def _looked_up(self, x: Tensor) -> Tensor:
        """The columns of A for indices ``[batch, …]``: ``[batch, …, rank]``."""
        if self.A.ndim == 2:
            low = F.embedding(x, self.A.T)
        else:
            index = x.reshape(len(x), 1, -1).expand(-1, self.A.shape[1], -1)
            low = self.A.gather(2, index).mT.reshape(*x.shape, -1)
        return low if self.padding is None else low.masked_fill((x == self.padding)[..., None], 0)

    def _add_convolved(self, layer: Any, x: Tensor, y: Tensor) -> Tensor:
        # The groups share A, and each has its own rows of B. Samples with factors of their own are
        # groups too.
        kernel, groups, rank = layer.kernel_size, layer.groups, self.rank
        x = x[None] if x.ndim == len(kernel) + 1 else x
        if layer.padding_mode == "zeros":
            padding = layer.padding
        else:
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, layer.padding_mode), 0
        A = self.A.view(-1, 1, rank, layer.in_channels // groups, *kernel)
        A = A.expand(-1, groups, *A.shape[2:]).flatten(0, 2)
        samples = len(x)
        if self.A.ndim == 3:
            x, groups = x.reshape(1, -1, *x.shape[2:]), groups * samples
        convolve = next(of for kind, of in _CONVOLUTIONS.items() if isinstance(layer, kind))
        low = convolve(x, A, None, layer.stride, padding, layer.dilation, groups)
        low = low.reshape(samples, layer.groups, rank, -1)
        B = self.B.view(*self.B.shape[:-2], layer.groups, -1, rank)
        return y + (self.factor * (B @ low)).view(y.shape)


class _NoWeight(Tensor):
    """Has dtype, device and shape of a weight of which every sample has another."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ASKED:
            raise ValueError(
                "every sample has factors of its own here, so that there is no one weight; only "
                "the layer's own forward can be called"
            )
        return super().__torch_function__(func, types, args, kwargs or {})


_ATTRIBUTES = ("dtype", "device", "shape", "ndim", "is_cuda", "layout", "is_sparse")
ASKED = {
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__),
}


class Dora(LowRank):
    """As `LowRank`, and the weight's columns keep their norms, times a trainable ``magnitude``.

        W = magnitude ⊙ ‖W0‖ ⊙ V / ‖V‖,   V = W0 + factor · B A

    Norms are those of the weights of one output. ‖V‖ has no gradient, as in section 4.3 of the
    paper; there the magnitude is ours times ‖W0‖.

    Source: S.-Y. Liu et al., "DoRA: Weight-decomposed low-rank adaptation" (ICML 2024).
    """

    def __init__(
        self, layer: Any, tensor: str, rank: int, factor: float, rng: torch.Generator
    ) -> None:
        super().__init__(layer, tensor, rank, factor, rng)
        weight = getattr(layer, tensor)
        # A transposed convolution has [in, out / groups, …]; group after group of outputs.
        self.groups = layer.groups if isinstance(layer, TRANSPOSED) else 1
        outputs = self.groups * weight.shape[self.transposed]
        self.magnitude = nn.Parameter(weight.new_ones(outputs))

    def forward(self, weight: Tensor) -> Tensor:
        changed = super().forward(weight)
        norms = self.norms(weight) / self.norms(changed.detach()).clamp(min=1e-12)
        parts = self._in_groups(changed)
        sizes = [self.groups] + [
            -1 if dim == 1 + self.transposed else 1 for dim in range(1, parts.ndim)
        ]
        return (parts * (self.magnitude * norms).view(sizes)).view_as(changed)

    def norms(self, weight: Tensor) -> Tensor:
        """The norm of each output's weights, ``[out]``."""
        parts = self._in_groups(weight).transpose(1, 1 + int(self.transposed))
        return parts.flatten(0, 1).flatten(1).norm(dim=1)

    def _in_groups(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.groups, -1))


def adapt(layer: Any, kind: type[LowRank], rank: int, factor: float, rng: torch.Generator) -> None:
    """Give a layer a change of low rank, in place; beside it where that is possible."""
    if is_quantised(layer):
        layer.lora = kind(layer, "weight", rank, factor, rng)
        cls = type(layer)
        layer.__class__ = type(cls.__name__, (cls,), {"forward": _beside_packed(cls.forward)})
        return
    for tensor in weights_of(layer):
        register_parametrization(layer, tensor, kind(layer, tensor, rank, factor, rng))
    base: Any = type(layer).__bases__[0]  # PyTorch has made a class for this layer alone
    own = base.forward
    if (product := _product(layer, own)) is not None:
        type(layer).forward = _beside(own, product)


class Change(NamedTuple):
    """A change of low rank in a module.

    Attributes:
        name: Name of the layer.
        layer: The layer.
        tensor: Name of the weight that it changes.
        part: The change.
        path: Name of the change.
        beside: Whether A and B may have a first dimension of samples, for which the layer's own
            forward then computes the change beside.
    """

    name: str
    layer: Any
    tensor: str
    part: LowRank
    path: str
    beside: bool


def changes(module: nn.Module) -> list[Change]:
    """All changes of low rank in a module."""
    found = []
    paths = {part: path for path, part in module.named_modules()}
    for name, layer in module.named_modules():
        if isinstance(packed := layer._modules.get("lora"), LowRank):
            found.append(Change(name, layer, "weight", packed, paths[packed], True))
        beside = getattr(type(layer).forward, "beside", False)
        for tensor, parts in parametrizations(layer).items():
            found += [
                Change(
                    name,
                    layer,
                    tensor,
                    part,
                    paths[part],
                    beside and _is_plain(part) and part is parts[-1],
                )
                for part in parts
                if isinstance(part, LowRank)
            ]
    return found


def _is_plain(part: nn.Module | None) -> bool:
    return type(part) is LowRank  # Dora needs the changed weight


_Product = Callable[[Any, Tensor, Tensor], Tensor]


def _beside(own: Callable[..., Tensor], product: _Product) -> Callable[..., Tensor]:
    """The forward pass ``own`` of a layer, with the last change of the weight beside it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        parts: Any = parametrizations(self).get("weight", (None,))
        *before, last = parts
        # Another parametrization may have followed.
        if not _is_plain(last) or not (last.faster_beside or last.A.ndim == 3):
            return own(self, x)
        weight = parts.original
        for part in before:
            weight = part(weight)
        return last.add(self, x, product(self, x, weight))

    forward.beside = True  # type: ignore[attr-defined]
    return forward


def _beside_packed(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward pass ``own`` of a quantised layer, with the change beside it."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.lora.add(self, x, own(self, x, *args, **kwargs))

    return forward


def _rows(x: Tensor) -> Tensor:
    """``[batch, …, n]`` as ``[batch, rows, n]``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _product(layer: nn.Module, own: Callable[..., Tensor]) -> _Product | None:
    """What the forward pass ``own`` of a layer computes with a weight; None if that is unknown."""
    if is_conv1d(layer) and own.__module__ == "transformers.pytorch_utils":
        return _conv1d
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # attention reads its weight
    return _PRODUCTS.get(own)


def _linear(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight, layer.bias)


def _conv1d(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(layer.bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], layer.nf)


def _convolution(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return layer._conv_forward(x, weight, layer.bias)


def _embedding(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(x, weight, layer.padding_idx)


_PRODUCTS: dict[Any, _Product] = {
    nn.Linear.forward: _linear,
    nn.Embedding.forward: _embedding,
    **{kind.forward: _convolution for kind in _CONVOLUTIONS},
}


def _like(layer: nn.Module) -> Tensor:
    """An empty tensor of the dtype and on the device that a quantised layer computes with."""
    tensors = [*layer.parameters(), *layer.buffers()]
    floating = [t for t in tensors if t.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    return torch.empty(0, dtype=dtype, device=tensors[0].device if tensors else None)
