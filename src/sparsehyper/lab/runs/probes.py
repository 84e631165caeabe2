"""New tasks for runs without a generator: a fresh last layer, on features that are known.

A shared trunk gives the features, or the expert whose features suit the task best. The last layer
is solved by ridge regression on class numbers as one-hot vectors, for many penalties and scales.
Those are kept under which the leave-one-out predictions have the lowest cross entropy, so that
nothing is held out, and the logits are calibrated. Copies of an image are left out with it. A class
of one image has none left when that is left out, so such images do not count there; if there are no
others, both numbers are those that suited trunks of hand-written characters from one image a class.

Source: a linear classifier on frozen features, as in G. Alain and Y. Bengio, "Understanding
intermediate layers using linear classifier probes" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.inputs import Inputs
from sparsehyper._util.last_layer import features_of, last_layer, linear_layer
from sparsehyper._util.ridge import leave_one_out, solve_ridge

_PENALTIES = [10.0**i for i in range(-6, 3)]
_SCALES = [2.0**i for i in range(8)]
_FROM_ONE_IMAGE = (1.0, 16.0)  # penalty and scale


@torch.no_grad()
def fit_last_layer(module: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> float:
    """Replace a classifier's last linear layer by one that fits a task, in place.

    Args:
        module: the classifier, in evaluation mode; its other layers stay as they are.
        x: images ``[n, channels, height, width]``.
        y: class numbers ``[n]``.
        n_classes: number of classes.

    Returns:
        The mean leave-one-out cross entropy, of images whose class has others; infinity if there
        are none.

    Raises:
        ValueError: the module's last linear layer is not what its output comes from.
    """
    ending = last_layer(module, x[:2])
    if ending is None:
        raise ValueError(
            "`target` must end in an nn.Linear, which a new task replaces, got one that returns "
            f"shape {list(module(x[:2]).shape[1:])} after its last layer"
        )
    name, last = ending
    features = features_of(module, last, x)
    targets = F.one_hot(y, n_classes).to(features)
    first_equal = Inputs.of(x).first_equal
    distinct = torch.stack([y, first_equal]).unique(dim=1)[0]
    counted = distinct.bincount(minlength=n_classes)[y] > 1
    found = [(math.inf, *_FROM_ONE_IMAGE)]
    for penalty in _PENALTIES if counted.any() else ():
        predicted = leave_one_out(features, targets, penalty, first_equal)[counted]
        found += [(float(F.cross_entropy(s * predicted, y[counted])), penalty, s) for s in _SCALES]
    loss, penalty, scale = min(entry for entry in found if not math.isnan(entry[0]))
    weight, bias = solve_ridge(features, targets, penalty)
    layer = linear_layer(scale * weight, scale * bias)
    module.set_submodule(name, layer)
    return loss


def best_of(modules: Iterable[nn.Module], x: Tensor, y: Tensor, n_classes: int) -> nn.Module:
    """The module that `fit_last_layer` fits best; arguments as there."""
    fitted = ((fit_last_layer(module, x, y, n_classes), module) for module in modules)
    return min(fitted, key=lambda pair: pair[0])[1]
