"""CSV and parquet files, read as columns of numbers or text."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsehyper._util.extras import require
from sparsehyper._util.text import listed, says_number

SUFFIXES = (".csv", ".parquet")
_LONGEST_HEAD = 2**20  # bytes
_SAVE_AS = "save it as CSV with commas and UTF-8, or as parquet"
_REFUSED = (
    "column {!r} must hold numbers or text, got {}; turn it into numbers, such as days, or leave "
    "it out"
)
_BOOLEANS = {"true", "false"}
_DATE = re.compile(r"(\d{1,2}([./-])\d{1,2}\2\d{4}|\d{4}([./-])\d{1,2}\3\d{1,2})([T,\s]+\d.*)?")
_OF_INDEX = re.compile(r"__index_level_\d+__")
# 1,5 and 1,000 or 1.000.000,5; 48.1,2.3 and 1,0,0 are no numbers
_WITH_COMMAS = re.compile(r"[-+]?(\d+,\d+|\d{1,3}([.,'\s])\d{3}(\2\d{3})*([.,]\d+)?)")

Table = dict[str, NDArray[Any]]
"""Columns by name: float64, where missing numbers are NaN; or objects, texts or None."""


def is_table(source: str) -> bool:
    """Whether a source is a table, by its suffix.

    >>> is_table("sites.csv"), is_table("photos")
    (True, False)
    """
    return Path(source).suffix.lower() in SUFFIXES


def read_table(
    path: Path,
    texts: Collection[str] = (),
    order: str | None = None,
    used: Collection[str] | None = None,
    index: Collection[str] | None = None,
) -> Table:
    """Read a CSV or parquet file.

    The index that pandas writes beside the columns says nothing of a row and is left out: a first
    column without a name in CSV, ``__index_level_0__`` in parquet.

    Args:
        path: the file.
        texts: columns to read as text, whatever they hold.
        order: a column to sort by, of numbers, dates or times; it becomes their ranks.
        used: columns that are needed, of a model; others may hold anything, and come without
            values. None for all of a table to train on: then a column of true and false is written
            so, in small letters.
        index: columns of an index to read all the same, for a run that exists; None for a new one,
            which a warning tells of those that are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no rows, has a column twice, or one that holds neither
            numbers nor text.
        ImportError: the ``data`` extra is not installed.
    """
    found, is_csv = _open(path, texts), path.suffix.lower() == ".csv"
    table = {}
    if used is None:
        of_index = [name for i, name in enumerate(found.column_names) if _is_index(name, i)]
        left_out = [name for name in of_index if name not in (*texts, order, *(index or ()))]
        found = found.drop_columns(left_out)
        if left_out and index is None:
            warnings.warn(
                f"{path} has the index that pandas writes, in {listed(left_out)}; left out",
                stacklevel=3,
            )
    for name, column in zip(found.column_names, found.columns, strict=True):
        if used is not None and name not in used:
            table[name] = np.full(len(column), None)
        elif name == order:
            table[name] = _ranks(name, column)
        else:
            values = _values(name, column, name in texts, is_csv)
            if used is None and values.dtype == object and _are_booleans(values):
                values = respelled(values, _BOOLEANS)
            table[name] = values
    return table


def respelled(texts: NDArray[Any], known: Collection[str]) -> NDArray[Any]:
    """Texts of a column with true and false in the letters of ``known``, which has them otherwise.

    pandas writes True and False, and parquet has true and false.

    >>> respelled(np.array(["TRUE", "False", "b"], dtype=object), ["True", "a", "B"]).tolist()
    ['True', 'False', 'b']
    """
    spelling = {text.lower(): text for text in known if text.lower() in _BOOLEANS}
    if not spelling:
        return texts
    kept = {None, *known}
    changed = [x if x in kept else spelling.get(x.lower(), x) for x in texts.tolist()]
    return np.array(changed, dtype=object)


def read_cells(path: Path, texts: Collection[str] = ()) -> dict[str, list[Any]]:
    """The cells of a CSV or parquet file as they are, by column; as `read_table` otherwise.

    Those of a CSV file are text.
    """
    found: dict[str, list[Any]] = _open(path, texts, as_they_are=True).to_pydict()
    return found


def names_of_columns(path: Path) -> list[str]:
    """The names of a file's columns; raises as `read_table`."""
    names: list[str] = _open(path, ()).column_names
    return names


def column_of(table: Table, name: str) -> NDArray[Any]:
    """A column; raises ``KeyError`` if there is none of this name."""
    if name not in table:
        raise KeyError(f"the table has no column {name!r}; it has: {listed(table)}")
    return table[name]


def is_numbers(values: NDArray[Any]) -> bool:
    """Whether a column holds numbers, or true and false, which count as 1 and 0."""
    return values.dtype != object


def check_complete(values: NDArray[Any], name: str) -> None:
    """Raise ``ValueError`` if a column lacks a value."""
    lacking = [i for i, value in enumerate(values) if value is None or value != value]
    if lacking:
        raise ValueError(
            f"column {name!r} must have a value in every row, got none in row {lacking[0] + 1} "
            f"(and {len(lacking) - 1} others); leave those rows out"
        )


def check_texts(values: NDArray[Any], name: str, *, is_target: bool = False) -> None:
    """Raise ``ValueError`` if all texts of a column are dates, or numbers written otherwise.

    These have commas, spaces or signs, of percent and currencies. Words for missing values do not
    count.
    """
    missing = {"-", *require("pyarrow.csv", "data").ConvertOptions().null_values}
    texts = [text for text in values if text is not None and text.strip() not in missing]
    if texts and all(_DATE.fullmatch(text.strip()) for text in texts):
        raise ValueError(_REFUSED.format(name, f"dates such as {texts[0]!r}"))
    odd = [text for text in texts if not says_number(text)]
    if odd and all(_may_be_number(text) for text in texts):
        otherwise = "write them otherwise, such as 1;5"
        if is_target:
            otherwise = "give `targets` 'classes'"
        raise ValueError(
            f"column {name!r} has numbers with commas, spaces or signs, such as {odd[0]!r}, which "
            f"are read as text; write 1.5 and 1000.5, or, if they are no numbers, {otherwise}"
        )


def _may_be_number(text: str) -> bool:
    bare = "".join(x for x in text if x != "%" and unicodedata.category(x) != "Sc").strip()
    return says_number(bare) or _WITH_COMMAS.fullmatch(bare) is not None


def _open(path: Path, texts: Collection[str], *, as_they_are: bool = False) -> Any:
    """The file as an Arrow table; ``as_they_are`` takes all cells of a CSV file as text."""
    pa = require("pyarrow", "data")
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}; give one file, *.csv or *.parquet")
    try:
        if path.suffix.lower() == ".csv":
            _check_head(path)
            csv = require("pyarrow.csv", "data")
            if as_they_are:
                with csv.open_csv(path) as head:
                    texts = head.schema.names
            options = csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
            found = csv.read_csv(path, convert_options=options)
        else:
            found = require("pyarrow.parquet", "data").read_table(path)
    except pa.ArrowException as error:
        remedy = f"; {_SAVE_AS}" if "UTF8" in str(error) else ""
        raise ValueError(f"{path} cannot be read as a table: {error}{remedy}") from error
    if not len(found):
        raise ValueError(f"{path} must have at least one row, got none")
    if len(set(found.column_names)) < len(found.column_names):
        raise ValueError(f"{path} has a column twice: {listed(found.column_names)}")
    return found


def _are_booleans(texts: NDArray[Any]) -> bool:
    return {text.lower() for text in texts if text} <= _BOOLEANS


def _is_index(name: str, place: int) -> bool:
    return _OF_INDEX.fullmatch(name) is not None or (not name and place == 0)


def _check_head(path: Path) -> None:
    """Raise ``ValueError`` for a CSV file of another encoding or separator, as programs write."""
    with path.open("rb") as file:
        head = file.readline(_LONGEST_HEAD)
    try:
        text = head.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; {_SAVE_AS}") from None
    if "," not in text and (";" in text or "\t" in text):
        raise ValueError(
            f"{path} must have commas between its columns, and decimal points, but begins with "
            f"{text.strip()[:80]!r}; {_SAVE_AS}"
        )


def _values(name: str, column: Any, text: bool, is_csv: bool) -> NDArray[Any]:
    pa = require("pyarrow", "data")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    refused = _REFUSED.format(name, kind)
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if text or is_bytes or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            column = column.cast(pa.string())
        except pa.ArrowException as error:
            if is_csv:
                refused = f"column {name!r} holds bytes that are no text in UTF-8; {_SAVE_AS}"
            raise ValueError(refused) from error
        # pyarrow leaves an empty cell of a CSV file as empty text.
        texts = [x or None for x in column.to_pylist()]
        return np.array(texts, dtype=object)
    if pa.types.is_boolean(kind):
        if not column.null_count:
            return np.array(column.to_pylist())
        column = column.cast(pa.int8())
    try:
        values = column.cast(pa.float64(), safe=False).to_numpy()  # rounds large integers
    except pa.ArrowException:
        values = None
    if values is None or not _is_number(pa.types, kind):
        raise ValueError(refused)
    if np.isinf(values).any():
        raise ValueError(f"column {name!r} must hold finite numbers, got an infinite one")
    return values


def _ranks(name: str, column: Any) -> NDArray[np.float64]:
    types = require("pyarrow", "data").types
    if not (_is_number(types, column.type) or types.is_temporal(column.type)):
        raise ValueError(
            f"column {name!r} must hold numbers, dates or times to sort by, got {column.type}"
        )
    values = column.to_numpy()
    if column.null_count or (values != values).any():
        raise ValueError(f"column {name!r} must have a value in every row; leave out those without")
    return np.unique(values, return_inverse=True)[1].astype(np.float64)


def _is_number(types: Any, kind: Any) -> bool:
    tests: tuple[Callable[[Any], bool], ...] = (
        *(types.is_integer, types.is_floating, types.is_decimal),
        *(types.is_boolean, types.is_null),
    )
    return any(test(kind) for test in tests)
