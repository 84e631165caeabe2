"""Contexts of evaluation and training mode, and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each submodule is in its previous mode again.

    >>> module = nn.Dropout()
    >>> with evaluation_mode(module):
    ...     print(module.training)
    False
    >>> module.training
    True
    """
    with _mode(module, training=False):
        yield


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into training mode; afterwards each submodule is in its previous mode again.

    >>> module = nn.Sequential(nn.Dropout()).eval()
    >>> with training_mode(module):
    ...     print(module[0].training)
    True
    >>> module[0].training
    False
    """
    with _mode(module, training=True):
        yield


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Context of evaluation mode without gradients for the module's parameters.

    >>> module = nn.Linear(2, 1)
    >>> with frozen(module):
    ...     print(module.weight.requires_grad)
    False
    >>> module.weight.requires_grad
    True
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        with evaluation_mode(module):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
