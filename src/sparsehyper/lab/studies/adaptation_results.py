"""What the study of adaptation concludes from its cells: rows, claims, goals and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsehyper.adaptation.ways import WAYS
from sparsehyper.lab.studies.adaptation_families import Family
from sparsehyper.lab.studies.few_shot import AUTO, HYPERNETWORK, LEARNERS, SINGLE
from sparsehyper.lab.studies.few_shot_results import (
    EVERYWHERE,
    FinalCells,
    Trials,
    accuracy_tables,
    rows_of,
    searches_of,
    trained_of,
    trained_table,
    trials_table,
)
from sparsehyper.lab.studies.intervals import claim_of, mean_of
from sparsehyper.lab.studies.pages import (
    Table,
    goal_row,
    goals_table,
    interval_text,
    shots_text,
)
from sparsehyper.lab.studies.study import Results

_BEST_WAY = "best way"
_RIVALS = ("linear probe", "scratch", "Prototypical Networks")
_TOLERANCE, _COVERED = -0.005, 0.9  # goals


def conclusions(
    families: Mapping[str, Family],
    seeds: int,
    tried: Trials,
    cells: FinalCells,
) -> dict[str, Any]:
    """What `Adaptation` says that its results hold.

    Args:
        families: families by name.
        seeds: number of seeds.
        tried: results of the trials of each family and learner.
        cells: results of the cells that have the settings found.
    """
    rows = list(rows_of(families, LEARNERS, seeds, cells))
    best = [_best(rows, name, s) for name, family in families.items() for s in family.shots]
    claims = _claims(families, rows, best)
    stated = list(_stated(families, seeds, cells))
    return {
        "rows": rows,
        "best": best,
        "stated": stated,
        "trained": list(trained_of(families, seeds, cells)),
        "trials": searches_of(LEARNERS, tried),
        "figures": _figures(claims, stated),
        "claims": claims,
    }


def tables(results: Results) -> list[Table]:
    """Tables of the results, the goals first."""
    return [
        goals_table(results, ["Differences are in points."]),
        _best_table(results),
        *accuracy_tables(results),
        _stated_table(results),
        trained_table(results),
        trials_table(results),
    ]


def _best(rows: Sequence[Mapping[str, Any]], family: str, shots: int | None) -> dict[str, Any]:
    """The best way and the best method of a family and number of images, with hindsight."""
    own = {
        row["method"]: statistics.fmean(row["accuracy"])
        for row in rows
        if (row["family"], row["shots"]) == (family, shots)
    }
    ours = own.pop(AUTO)
    way, method = (max(some, key=own.__getitem__) for some in (SINGLE, own))
    return {
        "family": family,
        "shots": shots,
        "auto": ours,
        "way": way,
        "way_accuracy": own[way],
        "method": method,
        "method_accuracy": own[method],
    }


def _claims(
    families: Mapping[str, Family],
    rows: Sequence[Mapping[str, Any]],
    best: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Differences between `adapt_task` and others, paired over seeds; at last those of all."""
    accuracy_of = {(r["family"], r["method"], r["shots"]): r["accuracy"] for r in rows}
    hindsight = {(b["family"], b["shots"]): b["way"] for b in best}
    claims, everywhere = [], []
    for rival in (_BEST_WAY, *_RIVALS):
        pairs = []
        for name, family in families.items():
            for shots in family.shots:
                method = hindsight[name, shots] if rival == _BEST_WAY else rival
                pair = accuracy_of[name, AUTO, shots], accuracy_of[name, method, shots]
                claims.append(claim_of(name, f"{AUTO} − {rival}", *pair, shots=shots))
                pairs.append(pair)
        ours, theirs = (mean_of(some) for some in zip(*pairs, strict=True))
        what = f"{AUTO} − {rival}"
        everywhere.append(claim_of(EVERYWHERE, what, ours, theirs, shots="mean"))
    return [*claims, *everywhere]


def _stated(
    families: Mapping[str, Family], seeds: int, results: FinalCells
) -> Iterator[dict[str, Any]]:
    """What `adapt_task` stated and chose, by family and number of images."""
    for name, family in families.items():
        cells = [cell for seed in range(seeds) for cell in results[name, HYPERNETWORK, seed]]
        for i, shots in enumerate(family.shots):
            said = [one for cell in cells for one in cell["stated"][i].values()]
            yield {
                "family": name,
                "shots": shots,
                "tasks": len(said),
                "within": sum(
                    one["interval"][0] <= one["measured"] <= one["interval"][1] for one in said
                ),
                **{
                    key: statistics.fmean(one[key] for one in said)
                    for key in ("accuracy", "measured")
                },
                "width": statistics.fmean(one["interval"][1] - one["interval"][0] for one in said),
                "weights": {
                    way: statistics.fmean(one["weights"].get(way, 0.0) for one in said)
                    for way in WAYS
                },
            }


def _figures(
    claims: Sequence[Mapping[str, Any]], stated: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The goals, what was found, and whether they were reached."""
    figures = []
    for rival in (_BEST_WAY, *_RIVALS):
        own = [claim for claim in claims if claim["claim"] == f"{AUTO} − {rival}"]
        *places, whole = own
        if rival == _BEST_WAY:
            worst = min(places, key=lambda claim: claim["mean"])
            least = f"{100 * worst['mean']:+.2f} ({worst['family']}, {shots_text(worst['shots'])})"
            figures += [
                goal_row(
                    f"{AUTO} − {rival}, everywhere", "≥ −0.5", least, worst["mean"] >= _TOLERANCE
                ),
                goal_row(f"{AUTO} − {rival}, on average", "> 0", _points(whole), whole["mean"] > 0),
            ]
        else:
            ahead = [c for c in places if c["low"] is not None and c["low"] >= 0]
            behind = [c for c in places if c["high"] is not None and c["high"] < 0]
            text = f"{len(ahead)} of {len(places)}, {len(behind)} behind; mean {_points(whole)}"
            reached = len(ahead) == len(places)
            figures.append(goal_row(f"{AUTO} − {rival}, at 95%", "≥ 0 everywhere", text, reached))
    tasks, within = (sum(row[key] for row in stated) for key in ("tasks", "within"))
    goal = f"{_COVERED:.0%} of tasks"
    text = f"{within / tasks:.1%} of {tasks:,}"
    reached = within >= _COVERED * tasks
    figures.append(goal_row("stated accuracy within its 95% interval", goal, text, reached))
    return figures


def _points(claim: Mapping[str, Any]) -> str:
    return f"{100 * claim['mean']:+.2f} ({interval_text(claim)})"


def _best_table(results: Results) -> Table:
    rows = [
        [
            b["family"],
            shots_text(b["shots"]),
            f"{100 * b['auto']:.2f}",
            f"{b['way']} {100 * b['way_accuracy']:.2f}",
            f"{b['method']} {100 * b['method_accuracy']:.2f}",
            f"{100 * (b['auto'] - b['way_accuracy']):+.2f}",
            f"{100 * (b['auto'] - b['method_accuracy']):+.2f}",
        ]
        for b in results["best"]
    ]
    columns = [
        *("family", "images per class", AUTO, _BEST_WAY, "best method"),
        *("− best way", "− best method"),
    ]
    return Table("The best single methods, with hindsight; accuracies in %", columns, rows)


def _stated_table(results: Results) -> Table:
    rows = [
        [
            row["family"],
            shots_text(row["shots"]),
            f"{row['within']} of {row['tasks']}",
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['measured']:.1f}",
            f"{100 * row['width']:.1f}",
            *(f"{100 * weight:.0f}" for weight in row["weights"].values()),
        ]
        for row in results["stated"]
    ]
    columns = [
        *("family", "images per class", "within", "stated, %", "measured, %", "interval's width"),
        *WAYS,
    ]
    title = "Stated accuracies: tasks within their 95% interval, and mean weights of the ways, %"
    return Table(title, columns, rows)
