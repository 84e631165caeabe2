"""Checks of a caller's arguments, with consistent errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# The largest int64: PyTorch's sizes, seeds and counts.
LARGEST = 2**63 - 1

# Limits far beyond any use. A larger value is a typo, and would exhaust time or memory
# before anything could fail.
MOST_TASKS = 1_000_000
MOST_WORKERS = 1_000
MOST_REPEATS = 10_000  # seeds, restarts, rounds
WIDEST = 2**20  # units of a layer, elements of an embedding, images of a batch
MOST_NUMBERS = 2**31  # elements of one tensor
LARGEST_SIDE = 8192  # side of a picture, in pixels


def check_choice(argument: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    # Compare types first: comparing a tensor or an array gives no bool.
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        valid = ", ".join(map(repr, choices))
        raise ValueError(f"`{argument}` must be one of {valid}; got {value!r}")


def check_settings(owner: str, settings: Any, known: Iterable[str]) -> None:
    """Raise unless ``settings`` is a mapping whose keys are all ``known``."""
    check_type(owner, settings, Mapping, "settings by name")
    known = list(known)
    for name in settings:
        if name not in known:
            valid = ", ".join(map(repr, known)) or "none"
            raise ValueError(f"{owner} has no setting {name!r}; it has: {valid}")


def read_kind(
    argument: str, config: Any, kinds: Mapping[str, type[T]]
) -> tuple[type[T], dict[str, Any]]:
    """The dataclass that a configuration names as its ``kind``, and the other settings.

    Args:
        argument: what is described, for errors.
        config: the configuration.
        kinds: the dataclasses, by kind.

    Raises:
        TypeError, ValueError: not a configuration, an unknown kind, or an unknown setting; the
            message names the valid ones.
    """
    check_type(argument, config, Mapping, "a configuration")
    settings = dict(config)
    kind = settings.pop("kind", None)
    check_choice(argument, kind, kinds)
    known = [field.name for field in dataclasses.fields(kinds[kind])]  # type: ignore[arg-type]
    check_settings(f"`{argument}` of kind {kind!r}", settings, known)
    return kinds[kind], settings


def check_type(argument: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise ``TypeError`` unless ``value`` is of type ``kind``; ``what`` names it in the error."""
    if not isinstance(value, kind):
        raise TypeError(f"`{argument}` must be {what}, got {value!r}")


def check_integer(
    argument: str, value: Any, *, minimum: int, maximum: int = LARGEST, context: str = ""
) -> None:
    """Raise unless ``value`` is an ``int`` (not a ``bool``) from ``minimum`` to ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}{context}")
    if value < minimum:
        raise ValueError(f"`{argument}` must be at least {minimum}, got {_shown(value)}{context}")
    if value > maximum:
        raise ValueError(f"`{argument}` must be at most {maximum}, got {_shown(value)}{context}")


def check_number(
    argument: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> None:
    """Raise unless ``value`` is a finite number within the given bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{argument}` must be a number, got {value!r}")
    if not abs(value) <= _LARGEST_FLOAT:
        raise ValueError(f"`{argument}` must be finite, got {_shown(value)}")
    if above is not None and value <= above:
        raise ValueError(f"`{argument}` must be greater than {above}, got {_shown(value)}")
    if minimum is not None and value < minimum:
        raise ValueError(f"`{argument}` must be at least {minimum}, got {_shown(value)}")
    if maximum is not None and value > maximum:
        raise ValueError(f"`{argument}` must be at most {maximum:g}, got {_shown(value)}")


def check_size(what: str, count: int) -> None:
    """Raise ``ValueError`` if a tensor would hold more than ``MOST_NUMBERS`` elements."""
    if count > MOST_NUMBERS:
        raise ValueError(
            f"{what} would take {count:,} numbers; at most {MOST_NUMBERS:,} are allowed"
        )


def is_whole(value: Any) -> TypeGuard[Tensor]:
    """Whether ``value`` is a tensor of integers of any size; booleans are not integers."""
    return (
        isinstance(value, Tensor)
        and not value.is_floating_point()
        and not value.is_complex()
        and not value.is_quantized
        and value.dtype != torch.bool
    )


def check_vector(argument: str, value: Tensor, length: int) -> None:
    """Raise ``ValueError`` unless a tensor is a dense vector of finite real numbers."""
    real = value.is_floating_point() or is_whole(value)
    if value.shape != (length,) or value.layout is not torch.strided or not real:
        raise ValueError(
            f"`{argument}` must have shape [{length}], got {list(value.shape)} of "
            f"{value.dtype}, {value.layout}"
        )
    if not value.is_meta and not bool(value.isfinite().all()):
        raise ValueError(f"`{argument}` must be finite numbers, got NaN or infinity")


def class_numbers(of: str, y: Any, count: int, remedy: str = "") -> Tensor:
    """Labels of any integer dtype, or booleans, as int64 ``[count]``.

    Args:
        of: name of the labels, at the beginning of the error.
        y: the labels.
        count: number of samples.
        remedy: advice, at the end of the error.

    Raises:
        ValueError: labels that are not integers, negative, or not one per sample.
    """
    if isinstance(y, Tensor) and y.dtype == torch.bool:
        y = y.long()
    if not is_whole(y) or y.ndim != 1 or len(y) != count:
        found = (
            f"shape {list(y.shape)} and dtype {y.dtype}" if isinstance(y, Tensor) else repr(type(y))
        )
        if is_one_hot(y):
            remedy = "; they are one-hot, so give their `argmax(1)`"
        elif is_whole(y) and y.shape == (count, 1):
            remedy = "; give their only column, `[:, 0]`"
        raise ValueError(
            f"{of} must be class numbers, a tensor of integers [{count}], got {found}{remedy}"
        )
    y = y.long()
    if count and int(y.min()) < 0:
        raise ValueError(f"{of} must be class numbers from 0, got {int(y.min())}{remedy}")
    return y


def is_one_hot(y: Any) -> bool:
    """Whether it is a matrix of at least 2 columns whose rows are zeros but for a single 1."""
    if not isinstance(y, Tensor) or y.ndim != 2 or y.shape[1] < 2:
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())


_LARGEST_FLOAT = 1.7976931348623157e308


def _shown(value: float) -> str:
    if isinstance(value, int) and abs(value) > 10**50:
        digits = int(value.bit_length() * math.log10(2)) + 1
        return f"a number of about {digits} digits"
    return str(value)
