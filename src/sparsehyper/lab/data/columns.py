"""The columns of a table, and how its rows become inputs.

A number x becomes (x - mean) / scale, and a missing one the column's median first. A category
becomes one number for each of its values, a one where the row has it; a missing value is one more
value, and a value that the training rows lack is all zeros. scikit-learn's own transformers find
medians, means, scales and values. They are kept as plain numbers and names, so that nothing of a
run has to be unpickled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsehyper._util.checks import check_number, check_type
from sparsehyper._util.extras import require
from sparsehyper._util.text import listed, says_number
from sparsehyper.lab.data.sequences import Samples, Sequences
from sparsehyper.lab.data.table_files import (
    Table,
    check_complete,
    check_texts,
    column_of,
    is_numbers,
    respelled,
)

TARGETS = ("numbers", "classes")
MISSING = "(missing)"
_MOST_VALUES = 1000  # of a category
_LARGEST = 1e100  # number that can be scaled
_FARTHEST = 1e15  # scaled number to calculate with: its square is far below float32's limit
_LIKE_IDS = 0.8  # share of rows with a text of their own from which on a warning tells of it
_FEWEST_ROWS = 20  # that tell so
_FAR = 10  # standard deviations; of training rows at most one in a hundred is as far


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, an input or the target.

    Attributes:
        name: its name.
        median: what a missing number becomes.
        mean, scale: what is subtracted, and what the rest is divided by.
    """

    name: str
    median: float
    mean: float
    scale: float

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a string")
        for name in ("median", "mean"):
            check_number(name, getattr(self, name))
        check_number("scale", self.scale, above=0)


@dataclass(frozen=True)
class Category:
    """A column of categories; ``values`` are those of the training rows, in order."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        check_type("values", self.values, tuple, "a list")
        for text in (self.name, *self.values):
            check_type("name", text, str, "a string")


@dataclass(frozen=True)
class Columns:
    """The columns of a table, as training rows fitted them.

    Attributes:
        task: the column that names each row's task.
        target: the column to predict.
        numbers, categories: the inputs, in order.
        scaling: how a target of numbers was scaled; None for a target of classes.
        sequences: how rows make sequences; None where every row is a sample.
    """

    task: str
    target: str
    numbers: tuple[Numbers, ...]
    categories: tuple[Category, ...]
    scaling: Numbers | None = None
    sequences: Sequences | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample: the number of inputs, or channels and steps."""
        width = len(self.numbers) + sum(len(category.values) for category in self.categories)
        if self.sequences is None:
            return (width,)
        return (width + self.sequences.padded, self.sequences.length)

    @property
    def used(self) -> list[str]:
        """All columns that count."""
        sequences = self.sequences
        of_sequences = [] if sequences is None else [sequences.column, sequences.order]
        numbers = [one.name for one in self.numbers]
        categories = [one.name for one in self.categories]
        return [self.task, self.target, *filter(None, of_sequences), *numbers, *categories]

    @property
    def texts(self) -> list[str]:
        """Columns to read as text."""
        target = [] if self.scaling else [self.target]
        sequence = [self.sequences.column] if self.sequences else []
        return [self.task, *target, *sequence, *(category.name for category in self.categories)]

    @classmethod
    def fit(
        cls,
        table: Table,
        samples: Samples,
        task: str,
        target: str,
        targets: str,
        sequences: Sequences | None = None,
    ) -> Self:
        """Fit the columns to the training samples of a table.

        Columns with one value in all of them are left out. Warnings tell of these, of ids, and of
        columns that number the rows.

        Args:
            table: the table; all columns but those of task, target and sequences are inputs.
            samples: the training samples.
            task, target: names of these two columns.
            targets: ``"numbers"`` or ``"classes"``.
            sequences: how rows make sequences, if they do.

        Raises:
            ValueError: there is no input whose values differ, or a column of text has too many
                values, or numbers with commas, spaces or signs.
        """
        own = {task, target, *((sequences.column, sequences.order) if sequences else ())}
        inputs = [name for name in table if name not in own]
        numbers = [name for name in inputs if is_numbers(table[name])]
        texts = [name for name in inputs if name not in numbers]
        for name in texts:
            check_texts(table[name], name)
        training = {name: table[name][samples.rows] for name in inputs}
        varied = [name for name in inputs if _varies(training[name])]
        if not varied:
            raise ValueError(
                f"a table needs columns beside {task!r} and {target!r} whose values differ in the "
                f"training rows, got {listed(inputs) or 'none'}"
            )
        if alike := [name for name in inputs if name not in varied]:
            warnings.warn(
                f"all training rows have the same value in {listed(alike)}, which says nothing; "
                "left out",
                stacklevel=3,
            )
        fitted = _fit_numbers({name: training[name] for name in numbers if name in varied})
        if sequences is None:
            _warn_of_counts({one.name: table[one.name] for one in fitted})
        categories = _fit_categories({name: training[name] for name in texts if name in varied})
        for category in categories:
            if len(category.values) > _MOST_VALUES:
                raise ValueError(
                    f"column {category.name!r} has {len(category.values):,} different texts, as an "
                    f"id or a sentence has, and at most {_MOST_VALUES:,} can be categories; leave "
                    "it out of the table, or turn it into numbers"
                )
            _warn_of_ids(category, training[category.name])
        scaling = None
        if targets == "numbers":
            (scaling,) = _fit_numbers({target: table[target][samples.first]})
        return cls(task, target, fitted, categories, scaling, sequences)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or invalid.
        """
        scaling, sequences = values["scaling"], values.get("sequences")
        for name in ("task", "target"):
            check_type(name, values[name], str, "a string")
        return cls(
            values["task"],
            values["target"],
            tuple(Numbers(**one) for one in values["numbers"]),
            tuple(Category(one["name"], tuple(one["values"])) for one in values["categories"]),
            None if scaling is None else Numbers(**scaling),
            None if sequences is None else Sequences(**sequences),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        values = asdict(self)
        if self.sequences is None:
            del values["sequences"]  # records from before there were sequences lack it
        return values

    def encode(self, table: Table) -> Tensor:
        """The rows of a table as inputs, float32 ``[rows, inputs]``.

        A warning tells of a column of categories most of whose values training lacked.

        Raises:
            KeyError: a column is missing.
            ValueError: a column of numbers holds text, or one far beyond those of training.
        """
        parts = []
        for column in self.numbers:
            values = self._numbers(table, column.name)
            values = np.where(np.isnan(values), column.median, values)
            parts.append(_scaled(values, column)[:, None])
        for category in self.categories:
            texts = respelled(column_of(table, category.name), category.values)
            own = np.array([MISSING if text is None else str(text) for text in texts], dtype=object)
            parts.append(own[:, None] == np.array(category.values, dtype=object)[None])
            _warn_of_unknown(category, own[~parts[-1].any(axis=1)], len(own))
        joined = np.concatenate([part.astype(np.float32) for part in parts], axis=1)
        return torch.from_numpy(joined)

    def targets_of(self, table: Table, classes: Sequence[str]) -> Tensor:
        """The targets of a table's rows: class numbers ``[rows]``, or scaled numbers ``[rows, 1]``.

        Raises:
            KeyError: the column is missing.
            ValueError: a target is missing, is none of ``classes``, or is a number far beyond those
                of training.
        """
        values = self._numbers(table, self.target) if self.scaling else table.get(self.target)
        values = column_of(table, self.target) if values is None else values
        check_complete(values, self.target)
        if self.scaling is not None:
            return torch.from_numpy(_scaled(values, self.scaling).astype(np.float32))[:, None]
        values, numbers = respelled(values, classes), {name: i for i, name in enumerate(classes)}
        if unknown := set(values) - numbers.keys():
            raise ValueError(
                f"column {self.target!r} has the class {min(unknown)!r}; the classes are: "
                f"{listed(classes)}"
            )
        return torch.tensor([numbers[text] for text in values])

    def unscaled(self, outputs: Tensor) -> Tensor:
        """A model's outputs ``[rows, 1]`` in the target's own unit, float64 ``[rows]``."""
        assert self.scaling is not None
        return outputs[:, 0].double() * self.scaling.scale + self.scaling.mean

    def describe(self) -> list[str]:
        """How a row becomes an input, step by step, in words."""
        steps = [
            f"{c.name}: (x - {c.mean!r}) / {c.scale!r}; a missing number is {c.median!r}"
            for c in self.numbers
        ]
        steps += [
            f"{c.name}: 1 where it is the value and 0 elsewhere, for each of {', '.join(c.values)}"
            for c in self.categories
        ]
        if self.sequences is not None:
            return [*steps, *self.sequences.describe(self.shape[0])]
        return [*steps, f"float32 [batch, {self.shape[0]}], in this order"]

    def _numbers(self, table: Table, name: str) -> NDArray[np.float64]:
        values = column_of(table, name)
        if not is_numbers(values):
            wrong = next((x for x in values if x is not None and not says_number(x)), values[0])
            raise ValueError(f"column {name!r} must hold numbers, as in training, got {wrong!r}")
        return values


def _scaled(values: NDArray[np.float64], column: Numbers) -> NDArray[np.float64]:
    """Numbers of a column as a model takes them; raises ``ValueError`` for one that it cannot."""
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = (values - column.mean) / column.scale
    far = np.flatnonzero(~(np.abs(scaled) <= _FARTHEST))
    if len(far):
        row = far[0]
        found = f"column {column.name!r} has {values[row]:g} in row {row + 1}, which is too far"
        # A constant column is not divided; one of as many 1 as -1 looks the same here.
        if column.scale == 1 and math.isclose(column.mean, column.median):
            raise ValueError(
                f"{found} to calculate with from the training rows, all of which have "
                f"{column.mean:g}, or nearly; correct it, leave the row out, or, if it is an "
                "input, train without the column"
            )
        raise ValueError(
            f"{found} from the training rows (mean {column.mean:g}, standard deviation "
            f"{column.scale:g}) to calculate with; correct it, or leave the row out"
        )
    far = np.flatnonzero(np.abs(scaled) > _FAR)
    if 2 * len(far) > len(values):  # a few such rows are usual
        warnings.warn(
            f"column {column.name!r}: {len(far)} of {len(values)} rows are far from those of "
            f"training: they have {values[far].min():g} to {values[far].max():g}, and training had "
            f"about {column.mean:g} ± {column.scale:g}; see that the unit is the same",
            stacklevel=4,
        )
    return scaled


def _varies(values: NDArray[Any]) -> bool:
    """Whether a column has more than one value; a missing number becomes one of the others."""
    if values.dtype == object:
        return len(set(values)) > 1
    return len(np.unique(values[~np.isnan(values.astype(float))])) > 1


def _fit_numbers(columns: Table) -> tuple[Numbers, ...]:
    if not columns:
        return ()
    impute, preprocess = require("sklearn.impute", "data"), require("sklearn.preprocessing", "data")
    x = np.stack(list(columns.values()), axis=1)
    for name, values in columns.items():
        largest = np.abs(values[np.isfinite(values)]).max(initial=0)
        if largest > _LARGEST:
            raise ValueError(
                f"column {name!r} must hold numbers of at most {_LARGEST:g}, got {largest:g}; "
                "leave it out, or take its logarithm"
            )
    imputer = impute.SimpleImputer(strategy="median", keep_empty_features=True).fit(x)
    scaler = preprocess.StandardScaler().fit(imputer.transform(x))
    rows = zip(columns, imputer.statistics_, scaler.mean_, scaler.scale_, strict=True)
    return tuple(
        Numbers(name, *(float(value) if math.isfinite(value) else 0.0 for value in values))
        for name, *values in rows
    )


def _warn_of_ids(category: Category, texts: NDArray[Any]) -> None:
    """Warn if nearly every row has a text of its own."""
    given = sum(text is not None for text in texts)
    kinds = len(set(category.values) - {MISSING})
    if given >= _FEWEST_ROWS and kinds > _LIKE_IDS * given:
        warnings.warn(
            f"column {category.name!r} has {kinds} different texts in {given} training rows, as an "
            "id or a sentence has; each becomes an input, which says nothing of other rows: leave "
            "it out of the table, or turn it into numbers",
            stacklevel=3,
        )


def _warn_of_counts(columns: Table) -> None:
    """Warn of columns that number all rows of a table, as an index does."""
    for name, values in columns.items():
        if len(values) < _FEWEST_ROWS or not np.isfinite(values).all():
            continue
        if (np.diff(np.sort(values)) == 1).all():
            warnings.warn(
                f"column {name!r} numbers the rows, from {values.min():,.0f} to "
                f"{values.max():,.0f}, as an id or an index does, and is an input like the others: "
                "if it is one, leave it out of the table",
                stacklevel=4,
            )


def _warn_of_unknown(category: Category, unknown: NDArray[Any], rows: int) -> None:
    """Warn if most of ``rows`` have a value that training lacked; a few such rows are usual."""
    if 2 * len(unknown) > rows:
        warnings.warn(
            f"column {category.name!r}: {len(unknown)} of {rows} rows have a value that training "
            f"had not: {listed(sorted(set(unknown)))}; it had {listed(category.values)}",
            stacklevel=3,
        )


def _fit_categories(columns: Table) -> tuple[Category, ...]:
    if not columns:
        return ()
    impute, preprocess = require("sklearn.impute", "data"), require("sklearn.preprocessing", "data")
    x = np.stack(list(columns.values()), axis=1)
    imputer = impute.SimpleImputer(
        missing_values=None, strategy="constant", fill_value=MISSING, keep_empty_features=True
    )
    encoder = preprocess.OneHotEncoder(handle_unknown="ignore").fit(imputer.fit_transform(x))
    return tuple(
        Category(name, tuple(map(str, values)))
        for name, values in zip(columns, encoder.categories_, strict=True)
    )
