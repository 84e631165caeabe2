"""Adapters: targets in which only a change of a module is generated.

Each function returns an adapted copy of a module. Its trainable parameters are those to generate,
so ``HyperNetwork(lora(module, 4), …)`` needs no other setting.

    function   weight and bias of an adapted layer                  generated, per layer
    lora       W0 + (alpha / rank) · B A,  b0                       rank · (out + in · kernel)
    film       gamma ⊙ W0,  gamma ⊙ b0 + beta                       2 · out
    masked     values at random places, zeros elsewhere,  b         (1 - sparsity) · numel(W) + out

`film` and `masked` change ``nn.Linear`` and ``nn.Conv1d``, ``2d`` and ``3d``, with groups too, and
subclasses; `lora` changes more kinds (`layers`). Adapters are parametrizations of
``torch.nn.utils.parametrize``: layers keep their names, and remain instances of their classes.
`merge` turns the parametrizations into ordinary weights.

Two layers with a tied weight are adapted separately, and `merge` unties them.

    layers.py         kinds of layers, and which of a module's are meant
    lora.py           lora
    low_rank.py       the change of a weight, or of what a layer returns, by two factors
    film.py, masks.py film, masked
    parametrized.py   what adapters have in common; merge
    peft_settings.py  settings of the package peft
"""

from sparsehyper.target.adapters.film import film
from sparsehyper.target.adapters.lora import lora
from sparsehyper.target.adapters.masks import masked
from sparsehyper.target.adapters.parametrized import merge

__all__ = ["film", "lora", "masked", "merge"]
