"""What the study of adapters concludes from its cells: rows, claims, goals and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsehyper.lab.studies.adapter_methods import METHODS
from sparsehyper.lab.studies.intervals import claim_of, mean_of, paired
from sparsehyper.lab.studies.pages import (
    Table,
    by_method,
    goal_row,
    goals_table,
    interval_text,
    percent,
)
from sparsehyper.lab.studies.study import Results

GENERATED = ("LoRA from an embedding", "LoRA from the description", "LoRA from examples")
REFINED = "LoRA from the description, refined"
SCRATCH, LOGISTIC = "LoRA from scratch", "logistic regression"
_RIVALS = ("nearest mean", LOGISTIC, SCRATCH, "shared LoRA")
_DESCRIBED = (10, 0.75)  # intents of a task of one domain, and the goal for their names alone
_LEADS = {LOGISTIC: ((5,), 0.03), SCRATCH: ((1, 5), 0.05)}  # numbers of examples, and the goal
_NUMBERS, _MIXED, _STEP, _CHECKPOINT = 50, 3.0, 1.1, 1.1  # goals

CellResult = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def conclusions(
    cells: Mapping[tuple[str, int], CellResult],
    costs: Mapping[str, Any],
    seeds: int,
    families: Mapping[str, Sequence[int]],
    shots: Sequence[int],
) -> dict[str, Any]:
    """What `Adapters` says that its results hold.

    Args:
        cells: results by method and seed.
        costs: as `costs` returns them.
        seeds: number of seeds.
        families: numbers of intents of new tasks, by family.
        shots: numbers of examples.
    """
    rows = list(_rows(cells, seeds, families, shots))
    measured = {key: value for key, value in costs.items() if key not in ("settings", "seconds")}
    return {
        "rows": rows,
        "costs": measured,
        "figures": [
            *_leads(rows, shots),
            *_described(cells, seeds, families, shots),
            *_cost_figures(measured),
        ],
        "claims": list(_claims(rows, shots)),
    }


def tables(results: Results) -> list[Table]:
    """Tables of the results, the goals first."""
    notes = ["Intervals in brackets are at 95%; those of ratios are quartiles."]
    return [goals_table(results, notes), *_accuracy_tables(results), _stored_table(results)]


def _rows(
    cells: Mapping[tuple[str, int], CellResult],
    seeds: int,
    families: Mapping[str, Sequence[int]],
    shots: Sequence[int],
) -> Iterator[dict[str, Any]]:
    for family in families:
        for method, kind in METHODS.items():
            own = [cells[method, seed] for seed in range(seeds)]
            for way in kind.ways:
                for i, number in enumerate(shots):
                    yield {
                        "family": family,
                        "method": way,
                        "shots": number,
                        "accuracy": [
                            statistics.fmean(cell["accuracies"][way][family][i]) for cell in own
                        ],
                        "fit_seconds": [cell["fit_seconds"][way][family][i] for cell in own],
                    }


def _overall(rows: Rows, method: str, shots: int) -> list[float]:
    """Accuracy of each seed, the mean over families."""
    own = [r["accuracy"] for r in rows if (r["method"], r["shots"]) == (method, shots)]
    return mean_of(own)


def _best(rows: Rows, shots: int) -> str:
    """The generated LoRA of the highest mean accuracy, with hindsight."""
    return max(GENERATED, key=lambda way: statistics.fmean(_overall(rows, way, shots)))


def _claims(rows: Rows, shots: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Differences between generated LoRA and others, paired over seeds, on all new tasks."""
    for number in shots:
        where = _examples(number)
        for way in (*GENERATED, *([REFINED] if number else [])):
            for rival in _RIVALS:
                pair = _overall(rows, way, number), _overall(rows, rival, number)
                yield claim_of(where, f"{way} − {rival}", *pair)
        if number:
            refined = _overall(rows, REFINED, number)
            plain = _overall(rows, GENERATED[1], number)
            yield claim_of(where, f"{REFINED} − {GENERATED[1]}", refined, plain)


def _leads(rows: Rows, shots: Sequence[int]) -> Iterator[dict[str, Any]]:
    for rival, (numbers, goal) in _LEADS.items():
        for number in numbers:
            if number in shots:
                best = _best(rows, number)
                ours, theirs = _overall(rows, best, number), _overall(rows, rival, number)
                lead = paired([a - b for a, b in zip(ours, theirs, strict=True)])
                yield goal_row(
                    f"best generated LoRA − {rival}, {_examples(number)}",
                    f"≥ +{100 * goal:.0f} points at 95%",
                    f"{100 * lead['mean']:+.2f} ({interval_text(lead)}; {best})",
                    lead["low"] is not None and lead["low"] >= goal,
                )


def _described(
    cells: Mapping[tuple[str, int], CellResult],
    seeds: int,
    families: Mapping[str, Sequence[int]],
    shots: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """From names alone, on the tasks of one domain and the goal's number of intents."""
    intents, goal = _DESCRIBED
    family, sizes = next(iter(families.items()))
    chosen = [place for place, size in enumerate(sizes) if size == intents]
    if not chosen or 0 not in shots:
        return
    way = GENERATED[1]
    values = [
        statistics.fmean(
            cells["description", seed]["accuracies"][way][family][shots.index(0)][place]
            for place in chosen
        )
        for seed in range(seeds)
    ]
    found = statistics.fmean(values)
    yield goal_row(
        f"names alone, {intents} intents of an unseen domain",
        f"≥ {goal:.0%}",
        f"{percent(values)}%",
        found >= goal,
    )


def _cost_figures(costs: Mapping[str, Any]) -> list[dict[str, Any]]:
    share = costs["lora"] / costs["embedding"]
    size = costs["checkpoint"] / (4 * costs["trained"])
    slowest = min(costs["mixed"].values(), key=lambda ratio: ratio["median"])
    texts = ", ".join(f"{_times(r)} for {n} sentences" for n, r in costs["mixed"].items())
    step = costs["step"]
    return [
        goal_row(
            "numbers stored a new task",
            f"≤ 1/{_NUMBERS} of a LoRA's",
            f"1/{share:.0f} ({costs['embedding']} of {costs['lora']:,})",
            share >= _NUMBERS,
        ),
        goal_row(
            "mixed batch of 8 tasks, trunk once, against a loop",
            f"≥ {_MIXED:g} × as fast",
            texts,
            slowest["median"] >= _MIXED,
        ),
        goal_row(
            "step of generated LoRA against peft's own",
            f"≤ {_STEP} ×",
            _times(step),
            step["median"] <= _STEP,
        ),
        goal_row(
            "checkpoint", f"≤ {_CHECKPOINT} × what is trained", f"{size:.3f} ×", size <= _CHECKPOINT
        ),
    ]


def _times(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _examples(number: int) -> str:
    return "names alone" if number == 0 else f"{number} example{'s' * (number > 1)}"


def _accuracy_tables(results: Results) -> Iterator[Table]:
    shots = results["study"]["shots"]
    for family in results["study"]["families"]:
        rows = [
            [
                method,
                *(percent(row["accuracy"]) for row in own),
                " / ".join(f"{statistics.fmean(row['fit_seconds']):.2f}" for row in own),
            ]
            for method, own in by_method(results["rows"], family=family).items()
        ]
        columns = ["method", *map(_examples, shots), "seconds"]
        title = f"{family}: accuracy on new tasks, %, and seconds to learn one"
        yield Table(title, columns, rows)


def _stored_table(results: Results) -> Table:
    numbers = {"": 0, "embedding": results["costs"]["embedding"], "lora": results["costs"]["lora"]}
    rows = [
        [way, f"{numbers[kept]:,}"] for kind in METHODS.values() for way, kept in kind.ways.items()
    ]
    title = "Numbers stored of a new task, beside a last layer of the same size for all"
    return Table(title, ["method", "numbers"], rows)
