"""What studies of learners have in common in their results: rows, searches and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsehyper.lab.studies.adaptation_families import Family
from sparsehyper.lab.studies.few_shot import Learner
from sparsehyper.lab.studies.intervals import claim_of, holm, mean_of
from sparsehyper.lab.studies.pages import Table, by_method, percent, shots_text
from sparsehyper.lab.studies.study import Results

EVERYWHERE = "all families"
CellResult = Mapping[str, Any]
# The trials of a family and a learner.
Trials = Mapping[tuple[str, str], Sequence[CellResult]]
# The cells of a family, a learner and a seed; one for each of the settings that were found.
FinalCells = Mapping[tuple[str, str, int], Sequence[CellResult]]


def best_trials(kind: type[Learner], trials: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """The trials to use: by number of the trial, the ways for which it is the best one.

    A learner that is judged by a single way, or has none, uses one trial for all.
    """

    def best(way: str | None) -> int:
        return max(range(len(trials)), key=lambda number: _score(trials[number], way))

    if kind.judged is not None or not kind.ways:
        return {best(kind.judged): list(kind.ways)}
    chosen: dict[int, list[str]] = {}
    for way in kind.ways:
        chosen.setdefault(best(way), []).append(way)
    return chosen


def rows_of(
    families: Mapping[str, Family],
    learners: Mapping[str, type[Learner]],
    seeds: int,
    results: FinalCells,
) -> Iterator[dict[str, Any]]:
    """The accuracies of each way: for each seed the mean over new tasks."""
    for name, family in families.items():
        for learner in family.learners:
            for way in learners[learner].ways:
                own = [
                    next(cell for cell in results[name, learner, seed] if way in cell["accuracies"])
                    for seed in range(seeds)
                ]
                for i, shots in enumerate(family.shots):
                    yield {
                        "family": name,
                        "method": way,
                        "learner": learner,
                        "shots": shots,
                        "accuracy": [
                            statistics.fmean(cell["accuracies"][way][i].values()) for cell in own
                        ],
                        "fit_seconds": [cell["fit_seconds"][way][i] for cell in own],
                    }


def trained_of(
    families: Mapping[str, Family], seeds: int, results: FinalCells
) -> Iterator[dict[str, Any]]:
    """Accuracy on the known tasks; with several pretrainings of a learner, of the best."""
    for name, family in families.items():
        for learner in family.learners:
            own = [results[name, learner, seed] for seed in range(seeds)]
            if own[0][0]["trained"] is not None:
                best = [max(cells, key=lambda cell: cell["validation"]) for cells in own]
                values = [cell["trained"] for cell in best]
                yield {"family": name, "learner": learner, "accuracy": values}


def searches_of(learners: Mapping[str, type[Learner]], tried: Trials) -> list[dict[str, Any]]:
    """The settings found for each way that judges, and what each trial reached."""
    return [
        row
        for (family, learner), trials in tried.items()
        for row in _searches(family, learner, learners[learner], trials)
    ]


def claims_of(
    what: str, pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], **more: Any
) -> Iterator[dict[str, Any]]:
    """The claims that a difference is above zero in each family, and in their mean.

    Those of families are one family for Holm's correction.

    Args:
        what: the difference in words.
        pairs: by family, the two values whose difference it is, for each seed.
        more: further entries.
    """
    yield from holm([claim_of(name, what, *pair, **more) for name, pair in pairs.items()])
    yield from holm([in_the_mean(what, pairs, **more)])


def in_the_mean(
    what: str, pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], **more: Any
) -> dict[str, Any]:
    """The claim of `claims_of` in the mean of all families, before any correction."""
    ours, theirs = map(mean_of, zip(*pairs.values(), strict=True))
    return claim_of(EVERYWHERE, what, ours, theirs, **more)


def accuracy_tables(results: Results) -> Iterator[Table]:
    """Accuracy on new tasks, a table for each family."""
    for name, family in results["study"]["families"].items():
        rows = [
            [method, *(percent(row["accuracy"]) for row in own), _seconds(own)]
            for method, own in by_method(results["rows"], family=name).items()
        ]
        columns = ["method", *map(shots_text, family["shots"]), "seconds"]
        title = f"{name}: accuracy on new tasks, %, by images per class; seconds to learn one"
        yield Table(title, columns, rows)


def trained_table(results: Results) -> Table:
    """Accuracy on the known tasks."""
    rows = [[row["family"], row["learner"], percent(row["accuracy"])] for row in results["trained"]]
    return Table("Accuracy on known tasks, %", ["family", "learner", "accuracy"], rows)


def trials_table(results: Results) -> Table:
    """What the searches found."""
    rows = [
        [
            row["family"],
            row["method"],
            ", ".join(f"{k.rpartition('.')[2]} {v:g}" for k, v in row["settings"].items()),
            " / ".join(f"{100 * value:.1f}" for value in row["validation"]),
        ]
        for row in results["trials"]
    ]
    columns = ["family", "method", "settings found", "validation accuracy of each trial, %"]
    return Table("Settings found", columns, rows)


def _searches(
    family: str, learner: str, kind: type[Learner], trials: Sequence[CellResult]
) -> list[dict[str, Any]]:
    chosen = best_trials(kind, trials)
    rows = []
    for number, ways in chosen.items():
        judged = [kind.judged] if kind.judged or not kind.ways else ways
        rows += [
            {
                "family": family,
                "method": way or learner,
                "settings": kind.trials[number],
                "validation": [_score(trial, way) for trial in trials],
            }
            for way in judged
        ]
    return rows


def _score(trial: Mapping[str, Any], way: str | None) -> float:
    """Validation accuracy of a trial, by a way or, without one, on known tasks."""
    if way is None:
        return float(trial["validation"])
    return statistics.fmean(a for found in trial["accuracies"][way] for a in found.values())


def _seconds(rows: Sequence[Mapping[str, Any]]) -> str:
    return " / ".join(f"{statistics.fmean(row['fit_seconds']):.1f}" for row in rows)
