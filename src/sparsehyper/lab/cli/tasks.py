"""``sparsehyper tasks``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.lab.cli.options import TrustTarget
from sparsehyper.lab.cli.output import (
    Json,
    echo,
    expectation,
    mean_scored,
    print_json,
    print_table,
    scored,
)


def tasks(
    run: Annotated[Path, typer.Argument(help="A run's directory; it is left as it is.")],
    rename: Annotated[
        tuple[str, str] | None, typer.Option(help="Current and new name of a task; needs --out.")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="Task to remove; may be given several times; needs --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the changed run; must be new.")
    ] = None,
    trust_target: TrustTarget = None,
    json: Json = False,
) -> None:
    """List a run's tasks and their nearest tasks, or write a run with a task renamed or removed.

    Example: **sparsehyper tasks runs/shop --rename bags handbags --out runs/shop-2**
    """
    from sparsehyper.lab.runs import change_tasks, describe_tasks, read_experiment, shares_weights

    started, trust = time.perf_counter(), trust_target or ()
    if (rename is None and not remove) != (out is None):
        raise ValueError(
            "`rename` or `remove` needs `out`, the new run, and `out` needs one of them"
        )
    if out is not None:
        change_tasks(run, out, rename=rename, remove=remove or (), trust=trust)
    rows = describe_tasks(run if out is None else out, trust=trust)
    if json:
        print_json({"run": str(out or run), "tasks": rows})
        return
    classes = () if rows[0]["score"] == "R²" else ("classes",)
    print_table(
        f"Tasks of {out or run}",
        [
            "task",
            *classes,
            "origin",
            read_experiment(run, trust=trust).data.samples,
            "on them",
            "expected",
            "test",
            "nearest (cosine)",
        ],
        [
            *(
                [
                    row["task"],
                    *(len(row[name]) for name in classes),
                    row["origin"],
                    *_measured(row["measured"], row["score"]),
                    "–" if row["nearest"] is None else f"{row['nearest']} ({row['cosine']:.3f})",
                ]
                for row in rows
            ),
            ["mean", *("" for _ in classes), "", "", *_means(rows), ""],
        ],
    )
    if out is not None:
        weights = "shares" if shares_weights(run, out) else "has a copy of"
        echo(f"{out} has these tasks; it {weights} the weights of {run}, which is unchanged.")
    echo(f"{time.perf_counter() - started:.1f} s")


def _means(rows: list[dict[str, Any]]) -> list[str]:
    """Means over the added tasks: score on their samples, expected, test score."""
    names, measured = ("accuracy", "expected", "test_accuracy"), [r["measured"] or {} for r in rows]
    return [mean_scored((one.get(name) for one in measured), rows[0]["score"]) for name in names]


def _measured(values: dict[str, Any] | None, score: str) -> list[str]:
    """Samples, score on them, expected and test score of an added task."""
    if values is None:
        return ["–"] * 4
    own, tested = (scored(values[name], score) for name in ("accuracy", "test_accuracy"))
    return [str(values["images"]), own, expectation(values, score), tested]
