"""LoRA: layers with a trainable change of low rank."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper.target.adapters.layers import Layers, is_adaptable, is_quantised
from sparsehyper.target.adapters.low_rank import Dora, LowRank, adapt
from sparsehyper.target.adapters.parametrized import copy_with_layers, offset_seeded
from sparsehyper.target.adapters.peft_settings import settings_of


def lora(
    module: nn.Module,
    rank: Any,
    layers: Layers = "*",
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A frozen copy whose weights W0 have a trainable change of low rank.

    W = W0 + (alpha / rank) · (B @ A).view_as(W0). A ``[rank, in · kernel]`` starts from Kaiming's
    uniform distribution with variance 1 / (3 · in · kernel), as in the authors' code; the paper
    says Gaussian. B ``[out, rank]`` starts at zero. Their names end in ``.A`` and ``.B``. For the
    shapes in other layers than Linear and Conv see `low_rank`.

    Layers are Linear, Conv1d to 3d and their transposes, with groups too, MultiheadAttention,
    Embedding, transformers' Conv1D, and linear layers with quantised weights. The weight of a
    quantised layer stays as it is: the layer's change lies beside it, in ``.lora``, and `merge`
    leaves it there.

    Args:
        module: any module; copied.
        rank: rank of the change, at least 1; or a ``peft.LoraConfig``, whose settings are then used
            instead of the other arguments.
        layers: layers to change: a glob on their names, or several. One that matches no full name
            may match the end of names, after a dot: ``"query"``. ``"*"`` stands for all layers but
            embeddings and the output layer that a model of transformers or timm names.
            ``"all-linear"`` stands for all linear layers but that one; in other modules but the
            last, if it is not part of one of several equal blocks. A compiled regular expression
            must match the full name.
        alpha: the change is multiplied by ``alpha / rank``; None for a factor of 1.
        rslora: multiply by ``alpha / √rank`` instead.
        dora: rescale the changed weight to the norms of W0 times a trainable ``.magnitude``.
        seed: seed of A.

    Returns:
        A copy in which only A, B and magnitudes are trainable; call ``requires_grad_()`` on
        anything else to train or generate, such as the last layer.

    Raises:
        TypeError, ValueError: a setting of a wrong type or outside its range, a pattern that
            matches no layer, ``"*"`` or ``"all-linear"`` in a module most of whose weights lie in
            layers of unknown kinds, a layer that cannot be adapted, or a ``LoraConfig`` with
            settings for which there is nothing here.

    Source: E. Hu et al., "LoRA: Low-rank adaptation of large language models" (ICLR 2022);
    D. Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA" (2023) for
    ``rslora``; for ``dora`` see `Dora`.

    >>> adapted = lora(nn.Linear(5, 3), rank=2)
    >>> [(name[-1:], *p.shape) for name, p in adapted.named_parameters() if p.requires_grad]
    [('A', 2, 5), ('B', 3, 2)]
    """
    if not isinstance(rank, int | float):
        rank, layers, alpha, rslora, dora = settings_of(rank)
    check_integer("rank", rank, minimum=1)
    check_integer("seed", seed, minimum=0)
    factor = 1.0
    if alpha is not None:
        check_number("alpha", alpha, above=0)
        factor = alpha / (math.sqrt(rank) if rslora else rank)
    adapted, chosen = copy_with_layers(module, layers, is_adaptable, "Linear or Conv")
    adapted.requires_grad_(False)
    rng = offset_seeded(seed)
    for name, layer in chosen.items():
        if dora and is_quantised(layer):
            raise ValueError(
                f"`dora` needs the weight of layer {name!r}, which is quantised; leave it out of "
                "`layers` or do without `dora`"
            )
        adapt(layer, Dora if dora else LowRank, rank, factor, rng)
    return adapted
