"""Optional dependencies: import one, or name the extra that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted module name, such as ``"PIL.Image"``.
        extra: the extra of this package that installs it, such as ``"data"``.

    Raises:
        MissingExtraError: the module is not installed; the message gives the remedy.

    >>> require("math", "data").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"`{module}` is needed here and is not installed; "
            f'install it with: pip install "sparsehyper[{extra}]"'
        ) from error
