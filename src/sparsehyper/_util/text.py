"""Text for people: what a terminal may be shown, and long lists cut short."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_LISTED = 10  # names in an error

# Control, format (which turn the direction of writing) and surrogate characters, and separators of
# lines and paragraphs; joiners belong to the spelling of some languages and to emoji.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"


def printable(text: object) -> str:
    r"""Text in which every character that is no writing stands as its escape.

    Names come from folders and from other people's files. What controls a terminal, breaks a line,
    turns the direction of writing or has no encoding is shown, and not done.

    >>> print(printable("red \x1b[31m, two\nlines, 日本"))
    red \x1b[31m, two\nlines, 日本
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def listed(names: Iterable[object]) -> str:
    """Names for an error, cut short where they are many.

    >>> listed(["shoes", "bags"])
    "'shoes', 'bags'"
    """
    names = list(names)
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more


def _shown(character: str) -> str:
    if unicodedata.category(character) in _HIDDEN and character not in _JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character
