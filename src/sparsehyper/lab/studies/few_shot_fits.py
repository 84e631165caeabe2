"""Models of new tasks that choose what they must by cross-validation on the task's own images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.classifiers import mask_classes
from sparsehyper._util.inputs import Inputs
from sparsehyper.adaptation import fine_tune
from sparsehyper.adaptation.judge import fold_numbers
from sparsehyper.lab.studies.learners import Shots

# How new tasks are learned; part of the settings of every cell.
LEARNING: dict[str, Any] = {
    "folds": 3,  # of the cross-validation
    "epochs": 100,  # no more updates than these, unless they are of the first two numbers
    "lr": 1e-3,
    "batch_size": 64,
    "penalties": (0.1, 1.0, 10.0, 100.0),  # of logistic regressions, to choose from
    "regression": 5000,  # images of a logistic regression, at most
    "iterations": 100,  # of L-BFGS, for a logistic regression
    "inner": 5,  # steps of Reptile
    "known": 200,  # images of each known task for `adapt_task`, at most
}
_MANY = 1000  # images of which a fold is held out, once


def tuned(
    module: nn.Module,
    samples: Shots,
    n_classes: int,
    updates: Sequence[int],
    *,
    seed: int,
    lr: float = LEARNING["lr"],
    batch_size: int = LEARNING["batch_size"],
) -> nn.Module:
    """A copy of a module, all of it trained further for the best number of updates.

    That number is the one of least loss in a cross-validation. With a single image of some class
    there is none, and it is the second of those to choose from.

    Args:
        module: returns logits; it is not changed.
        samples: images and class numbers.
        n_classes: number of classes.
        updates: numbers of updates to choose from, at least two.
        seed: seed of the batches.
        lr, batch_size: as `fine_tune` takes them.
    """
    x, y = samples

    def fit(rows: Tensor, steps: int) -> nn.Module:
        own = copy.deepcopy(module)
        fine_tune(
            own,
            (x[rows], y[rows]),
            n_classes=n_classes,
            norm_stats="renewed",
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
        )
        return own.eval()

    first, usual, *more = updates
    most = LEARNING["epochs"] * len(y) // batch_size
    choices = [first, usual, *(count for count in more if count <= most)]
    every = torch.arange(len(y))
    folds = _folds(x, y)
    if not folds:
        return fit(every, usual)
    losses = {
        steps: sum(_loss(fit(rows, steps), x[rest], y[rest], n_classes) for rows, rest in folds)
        for steps in choices
    }
    return fit(every, min(losses, key=losses.__getitem__))


def logistic(
    features: Tensor, y: Tensor, n_classes: int, penalties: tuple[float, ...]
) -> nn.Linear:
    """Logistic regression on standardised features, with the best of several penalties.

    The penalty is that of least loss in a cross-validation, or the second where there is none.

    Args:
        features: ``[n, F]``; of many, only some are used.
        y: class numbers ``[n]``.
        n_classes: number of classes.
        penalties: factors of half the squared norm of the weights, in units of the summed loss.
    """
    features, y = features[: LEARNING["regression"]], y[: LEARNING["regression"]]
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-6)
    standard = (features - mean) / scale

    def fit(rows: Tensor, penalty: float) -> nn.Linear:
        layer = nn.Linear(features.shape[1], n_classes)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=LEARNING["iterations"], line_search_fn="strong_wolfe"
        )
        x, labels = standard[rows], y[rows]

        def closure() -> Tensor:
            optimizer.zero_grad()
            norm = layer.weight.square().sum() / 2
            loss: Tensor = F.cross_entropy(layer(x), labels) + penalty / len(labels) * norm
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            layer.weight.div_(scale)
            layer.bias.sub_(layer.weight @ mean)
        return layer.requires_grad_(False)

    every = torch.arange(len(y))
    folds = _folds(features, y) if len(penalties) > 1 else []
    if not folds:
        return fit(every, penalties[min(1, len(penalties) - 1)])
    losses = {
        penalty: sum(
            _loss(fit(rows, penalty), features[rest], y[rest], n_classes) for rows, rest in folds
        )
        for penalty in penalties
    }
    return fit(every, min(losses, key=losses.__getitem__))


def _folds(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows to fit to and rows to judge by; every class has some to fit to, or there are none."""
    first_equal = Inputs.of(x).first_equal
    count = min(LEARNING["folds"], int(y[first_equal.unique()].bincount().min()))
    if count < 2:
        return []
    numbers = fold_numbers(y, first_equal, count)
    used = 1 if len(y) >= _MANY else count
    return [((numbers != k).nonzero()[:, 0], (numbers == k).nonzero()[:, 0]) for k in range(used)]


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> float:
    """The summed loss of at most 1000 images."""
    logits = mask_classes(model(x[:1000]), n_classes)
    return float(F.cross_entropy(logits, y[:1000], reduction="sum"))
