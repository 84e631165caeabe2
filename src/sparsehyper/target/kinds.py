"""Kinds of batches, so that a trial with one batch tells of the next ones of its kind.

Batches of a kind have equal arguments beside tensors. A number that changes with every batch, such
as a step or a length, would make each a kind of its own, with a trial each: after 8 numbers all
further ones are one kind, of which the least that those 8 gave is known. Objects are compared by
weak references, which keep nothing alive; where they change with every batch, nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from numbers import Number
from typing import Any
from weakref import ref

_MOST = 64  # kinds to remember that differ in more than numbers and objects
_MOST_VALUES = 8  # to tell apart, of numbers, and of objects
_OTHERS = "others"


class Kinds:
    """What trials found out: for each kind of batch a dict, in which a smaller value is safer."""

    def __init__(self) -> None:
        # By what must be equal, by objects, and by numbers.
        self._found: dict[Any, dict[Any, dict[Any, dict[Any, int]]]] = {}

    def of(self, fixed: Any, values: Iterable[Any]) -> dict[Any, int]:
        """What is known of a kind, to be read and added to.

        Args:
            fixed: what must be equal.
            values: arguments that are no tensors, and other numbers that may change.

        Raises:
            TypeError: an argument without a hash, or objects that are new again and again.
        """
        types: list[tuple[type, Any]] = []
        objects, numbers = [], []
        for value in values:
            if isinstance(value, bool | str | Enum):
                types.append((type(value), value))
            elif isinstance(value, Number):
                types.append((type(value), None))
                numbers.append(value)
            else:
                try:
                    objects.append(ref(value))
                    types.append((type(value), None))
                except TypeError:  # None, a dtype, a device
                    types.append((type(value), value))
        kind = (fixed, *types)
        if kind not in self._found and len(self._found) >= _MOST:
            self._found.clear()
        by_object = self._found.setdefault(kind, {})
        same = tuple(objects)
        if same not in by_object and len(by_object) >= _MOST_VALUES:
            raise TypeError("the objects among the arguments are others in every batch")
        by_number = by_object.setdefault(same, {})
        key: Any = tuple(numbers)
        if key not in by_number and _OTHERS not in by_number and len(by_number) >= _MOST_VALUES:
            for each, found in list(by_number.items()):
                if not found:  # there was no trial
                    by_number.pop(each, None)
            if len(by_number) >= _MOST_VALUES:
                by_number[_OTHERS] = _least(list(by_number.values()))
        if key not in by_number and _OTHERS in by_number:
            key = _OTHERS
        return by_number.setdefault(key, {})


def _least(found: Iterable[dict[Any, int]]) -> dict[Any, int]:
    least: dict[Any, int] = {}
    for each in found:
        for name, value in list(each.items()):
            least[name] = min(value, least.get(name, value))
    return least
