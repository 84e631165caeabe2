"""Text for people: safe for a terminal, and long lists cut short."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_MAX_LISTED = 10  # most names that an error lists

# Categories of characters to escape: control, format (some reverse the direction of writing) and
# surrogate characters, and separators of lines and paragraphs. Joiners are spared: the spelling of
# some languages and emoji need them.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"


def printable(text: object) -> str:
    r"""Text with escapes for characters that a terminal would obey or could not show.

    Names come from folders and from other people's files. Characters that control a terminal, break
    a line, reverse the direction of writing or have no encoding are escaped.

    >>> print(printable("red \x1b[31m, two\nlines, 日本"))
    red \x1b[31m, two\nlines, 日本
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def listed(names: Iterable[object]) -> str:
    """Names for an error; a long list is cut short.

    >>> listed(["shoes", "bags"])
    "'shoes', 'bags'"
    """
    names = list(names)
    more = f" and {len(names) - _MAX_LISTED:,} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(repr, names[:_MAX_LISTED])) + more


def by_value(name: str) -> tuple[list[str | int], str]:
    """A key to sort names by, with the numbers in them by value.

    >>> sorted(["site 10", "site 9", "hall"], key=by_value)
    ['hall', 'site 9', 'site 10']
    """
    pieces = re.split(r"([0-9]+)", name)
    return [int(p) if i % 2 else p for i, p in enumerate(pieces)], name


def says_number(text: str) -> bool:
    """Whether a text is a number.

    >>> says_number("-1.5"), says_number("-1+1")
    (True, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return True


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _ESCAPED and character not in _JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character
