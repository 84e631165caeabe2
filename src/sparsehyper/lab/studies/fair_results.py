"""What the fair comparison concludes from its cells, and the tables that show it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsehyper.lab.studies.fair_sets import (
    CHUNKED,
    FRAME,
    SPARSE,
    THESIS_BUDGET,
    THESIS_CHUNKED,
    THESIS_SPARSE,
    VARIANTS,
)
from sparsehyper.lab.studies.intervals import claim_of, holm
from sparsehyper.lab.studies.pages import Table, percent, searches_table

Row = Mapping[str, Any]


def conclusions(
    searches: Mapping[str, Any], rows: Sequence[Row], lengths: Sequence[Row]
) -> dict[str, Any]:
    """The results of the study.

    Args:
        searches: the searches, by name of the cell.
        rows: a row for each method at each budget on each set.
        lengths: the same for longer trainings.
    """
    families = [
        _at_budgets(rows),
        _thesis(rows),
        _by_length(lengths),
        _variants(rows),
        _frame(rows),
    ]
    claims = [claim for family in families for claim in holm(family)]
    return {
        "searches": searches,
        "rows": rows,
        "lengths": lengths,
        "claims": claims,
        "ends": _ends(lengths, claims),
        "causes": _causes(rows),
    }


def _ends(lengths: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where the lead of sparse ends, for each set of tasks and budget.

    ``updates`` is the shortest training longer than all trainings after which sparse is ahead
    (claim "supported"); None if it is ahead after the longest one. Trainings without a fixed number
    of updates do not count.
    """
    verdicts = {(c["family"], c["claim"]): c["verdict"] for c in claims if c["question"] == 3}
    ends = []
    for family, budget in dict.fromkeys((row["family"], row["budget"]) for row in lengths):
        own = [row for row, _ in _pairs(lengths, SPARSE, CHUNKED) if row["updates"] is not None]
        own = [row for row in own if (row["family"], row["budget"]) == (family, budget)]
        ahead = [row["updates"] for row in own if verdicts[family, _words(row)] == "supported"]
        later = [row["updates"] for row in own if row["updates"] > max(ahead, default=0)]
        ends.append({"family": family, "budget": budget, "updates": min(later, default=None)})
    return ends


def _causes(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How much of the gap between chunked and sparse each variant of sparse closes, the most first.

    ``closed`` is a share of the gap; None where sparse is not behind.
    """
    found = []
    for method in VARIANTS:
        for one, chunked in _pairs(rows, method, CHUNKED, THESIS_BUDGET):
            (sparse,) = [
                row
                for row in rows
                if row["method"] == SPARSE
                and (row["family"], row["budget"]) == (one["family"], chunked["budget"])
            ]
            means = [statistics.fmean(row["accuracy"]) for row in (one, sparse, chunked)]
            gap = means[2] - means[1]
            closed = (means[0] - means[1]) / gap if gap > 0 else None
            found.append({"family": one["family"], "method": method, "closed": closed})
    return sorted(found, key=lambda row: -(row["closed"] or 0))


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The accuracies of every set and of longer trainings, and the settings found."""
    found = accuracy_tables(results)
    if results["lengths"]:
        columns = ["method", "set", "budget ÷ N", "updates", *_COLUMNS]
        cells = [
            [row["method"], row["family"], _budget(row), _updates(row), *_measured(row)]
            for row in results["lengths"]
        ]
        found.append(Table("Longer trainings", columns, cells))
        cells = [
            [row["family"], f"{row['budget']:g}", _end(row["updates"])] for row in results["ends"]
        ]
        columns = ["set", "budget ÷ N", "from this many updates on no verdict falls for sparse"]
        found.append(Table("Where the lead of sparse ends", columns, cells))
    if results["causes"]:
        cells = [
            [row["family"], row["method"], "–" if row["closed"] is None else f"{row['closed']:.0%}"]
            for row in results["causes"]
        ]
        columns = ["set", "variant of sparse", "of the gap to chunked it closes"]
        found.append(Table(f"Variants of sparse at {THESIS_BUDGET:g} N", columns, cells))
    return [*found, searches_table(results)]


def accuracy_tables(results: Mapping[str, Any]) -> list[Table]:
    """The accuracies of every set of tasks."""
    columns = ["method", "budget ÷ N", *_COLUMNS]
    return [
        Table(
            family,
            columns,
            [
                [row["method"], _budget(row), *_measured(row)]
                for row in results["rows"]
                if row["family"] == family
            ],
        )
        for family in results["study"]["sets"]
    ]


_COLUMNS = ("trainable ÷ N", "accuracy, %", "on training images, %", "difference", "step, ms")


def _end(updates: int | None) -> str:
    return "none of these" if updates is None else f"{updates:,}"


def _measured(row: Row) -> list[str]:
    return [
        f"{row['parameters']:.2f}",
        percent(row["accuracy"]),
        percent(row["trained"]),
        f"{100 * (statistics.fmean(row['trained']) - statistics.fmean(row['accuracy'])):.2f}",
        f"{statistics.median(row['step_ms']):.1f}",
    ]


def _budget(row: Row) -> str:
    return "–" if row["budget"] is None else f"{row['budget']:g}"


def _updates(row: Row) -> str:
    return "until it stops" if row["updates"] is None else f"{row['updates']:,}"


def _pairs(
    rows: Sequence[Row], ours: str, theirs: str, budget: float | None = None
) -> list[tuple[Row, Row]]:
    """Rows of two methods on the same set, with one budget if both have one, and of one length.

    Args:
        rows: rows to pair.
        ours, theirs: the two methods.
        budget: the budget of a method that has several; None pairs those of the same budget.
    """

    def fits(row: Row, method: str) -> bool:
        several = budget is not None and method in (SPARSE, CHUNKED)
        return row["method"] == method and (not several or row["budget"] == budget)

    return [
        (one, other)
        for one in rows
        for other in rows
        if fits(one, ours)
        and fits(other, theirs)
        and (one["family"], one["updates"]) == (other["family"], other["updates"])
        and (budget is not None or one["budget"] == other["budget"])
    ]


def difference(question: int | None, one: Row, other: Row, words: str) -> dict[str, Any]:
    """The claim that the first of two rows is more accurate."""
    values = one["accuracy"], other["accuracy"]
    return claim_of(one["family"], words, *values, question=question)


def _at_budgets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        difference(1, *pair, f"{SPARSE} − {CHUNKED}, {pair[0]['budget']:g} N")
        for pair in _pairs(rows, SPARSE, CHUNKED)
    ]


def _thesis(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        difference(2, *pair, f"{method} − {THESIS_CHUNKED}")
        for method in THESIS_SPARSE
        for pair in _pairs(rows, method, THESIS_CHUNKED, THESIS_BUDGET)
    ]


def _words(row: Row) -> str:
    return f"{SPARSE} − {CHUNKED}, {row['budget']:g} N, updates: {_updates(row)}"


def _by_length(lengths: Sequence[Row]) -> list[dict[str, Any]]:
    return [difference(3, *pair, _words(pair[0])) for pair in _pairs(lengths, SPARSE, CHUNKED)]


def _variants(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        difference(4, *pair, f"{method} − {CHUNKED}, {THESIS_BUDGET:g} N")
        for method in VARIANTS
        for pair in _pairs(rows, method, CHUNKED, THESIS_BUDGET)
    ]


def _frame(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        difference(None, *pair, f"{SPARSE}, {THESIS_BUDGET:g} N − {other}")
        for other in FRAME
        for pair in _pairs(rows, SPARSE, other, THESIS_BUDGET)
    ]
