"""Checks of a caller's arguments, with one wording for the errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def check_choice(argument: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        valid = ", ".join(map(repr, choices))
        raise ValueError(f"`{argument}` must be one of {valid}; got {value!r}")


def check_integer(argument: str, value: Any, *, minimum: int, context: str = "") -> None:
    """Raise unless ``value`` is an ``int`` (not a ``bool``) of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}{context}")
    if value < minimum:
        raise ValueError(f"`{argument}` must be at least {minimum}, got {value}{context}")


def check_number(
    argument: str, value: Any, *, above: float | None = None, minimum: float | None = None
) -> None:
    """Raise unless ``value`` is a finite number within the given bound."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{argument}` must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"`{argument}` must be finite, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"`{argument}` must be greater than {above}, got {value}")
    if minimum is not None and value < minimum:
        raise ValueError(f"`{argument}` must be at least {minimum}, got {value}")
