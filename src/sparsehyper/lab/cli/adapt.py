"""``sparsehyper adapt``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.lab.cli.options import TrustTarget
from sparsehyper.lab.cli.output import (
    Json,
    as_options,
    echo,
    expectation,
    in_unit,
    mean_scored,
    print_json,
    print_table,
    scored,
    share,
)


def adapt(
    run: Annotated[Path, typer.Argument(help="A run's directory; it is left as it is.")],
    data: Annotated[
        Path,
        typer.Option(
            help=r"Folder [train|test]/TASK/CLASS/\*.png, or with --task "
            r"[train|test]/CLASS/\*.png. Images in test are only tested on. For a run of a table, "
            "a table with the same columns."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the new run; must be new.")],
    task: Annotated[
        str | None, typer.Option(help="Name of the one new task that --data holds.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto: the best of all of these, or several together, as images held out tell; or "
            "one alone: linear (of the pixels), head (a last layer), embedding, norms, all (the "
            "whole model) or scratch. In a run with support sets auto is examples: what follows "
            "from them without training."
        ),
    ] = "auto",
    seconds: Annotated[float, typer.Option(help="Time to take for each task, about.")] = 20.0,
    init: Annotated[
        str | None,
        typer.Option(
            help="Initial embedding: nearest (the default), mean, mixture or random. This and all "
            "options down to --tune-lr are for --method embedding."
        ),
    ] = None,
    restarts: Annotated[
        int, typer.Option(help="Number of embeddings to fit, of which the best is kept.")
    ] = 1,
    space: Annotated[
        str,
        typer.Option(
            help="Search space: free, or mixture (softmax mixtures of the known embeddings)."
        ),
    ] = "free",
    tune: Annotated[
        str | None,
        typer.Option(
            help="Then train the norm layers, the last layer or all of the task's model further: "
            "norm, last or all."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of evaluations of the loss by L-BFGS.")] = 25,
    batch_size: Annotated[
        int, typer.Option(help="Largest number of images that each task's embedding is fitted to.")
    ] = 1024,
    tune_steps: Annotated[int, typer.Option(help="Number of updates for --tune.")] = 100,
    tune_lr: Annotated[float, typer.Option(help="Learning rate for --tune.")] = 1e-3,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images to the size that the model takes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, …")] = "auto",
    trust_target: TrustTarget = None,
    json: Json = False,
) -> None:
    r"""Learn new tasks from a few images each, by the best means that they allow.

    A run of shared_trunk or experts learns a last layer for each new task, on its trunk or on the
    expert that suits the task best; of the options for embeddings it takes --tune.

    Example: **sparsehyper adapt runs/shop --data hats --task hats --out runs/shop-hats**, where
    the folder hats holds CLASS/\*.png.
    """
    from sparsehyper.lab.runs import adapt_run, read_experiment, shares_weights

    started = time.perf_counter()
    rows = adapt_run(
        run,
        out,
        data,
        task=task,
        method=method,
        seconds=seconds,
        init=init,
        restarts=restarts,
        space=space,
        tune=tune,
        steps=steps,
        batch_size=batch_size,
        tune_steps=tune_steps,
        tune_lr=tune_lr,
        resize=resize,
        seed=seed,
        device=device,
        trust=trust_target or (),
    )
    elapsed = time.perf_counter() - started
    if json:
        print_json({"out": str(out), "tasks": rows, "seconds": elapsed})
        return
    what = read_experiment(run, trust=trust_target or ()).data.samples
    print_table("New tasks", *(_numbers if rows[0]["score"] == "R²" else _classes)(rows, what))
    for row in rows:
        echo(_in_words(row, what))
    weights = "shares" if shares_weights(run, out) else "has a copy of"
    fitted = sum(row["seconds"] for row in rows)
    echo(
        f"Fitted in {fitted:.1f} s, {elapsed:.1f} s in all; {out} has them and the tasks of {run}, "
        f"and {weights} its weights."
    )


_Table = tuple[list[str], list[list[Any]]]  # columns and rows


def _classes(rows: list[dict[str, Any]], what: str) -> _Table:
    """The table of tasks of classes."""
    score = rows[0]["score"]
    lines = [
        [
            row["task"],
            len(row["classes"]),
            row["images"],
            scored(row["accuracy"], score),
            expectation(row, score),
            row["test_images"] or "–",
            scored(row["test_accuracy"], score),
        ]
        for row in rows
    ]
    own, expected, tested = (
        mean_scored((row[name] for row in rows), score)
        for name in ("accuracy", "expected", "test_accuracy")
    )
    columns = ["task", "classes", what, f"{score} on them", "expected", f"test {what}", "test"]
    return columns, [*lines, ["mean", "", "", own, expected, "", tested]]


def _numbers(rows: list[dict[str, Any]], what: str) -> _Table:
    """The table of tasks of numbers, which have neither classes nor rows to test on."""
    score = rows[0]["score"]
    lines = [
        [
            row["task"],
            row["images"],
            scored(row["accuracy"], score),
            in_unit(row["error"]),
            expectation(row, score),
            in_unit(row["expected_error"]),
        ]
        for row in rows
    ]
    own, expected = (
        mean_scored((row[name] for row in rows), score) for name in ("accuracy", "expected")
    )
    columns = ["task", what, f"{score} on them", "typical error", "expected", "typical error"]
    return columns, [*lines, ["mean", "", own, "", expected, ""]]


def _in_words(row: dict[str, Any], what: str) -> str:
    """What was chosen for a task, what to expect of it, and what to mind.

    Args:
        row: what was learned of the task.
        what: what its samples are, such as images.
    """
    text = f"{row['task']}: {row['method']}"
    if row["expected_error"] is not None:
        expected, target = expectation(row, row["score"]), row["classes"][0]
        text += f"; expect R² {expected} of new {what}, and to be wrong by "
        text += f"{in_unit(row['expected_error'])} in {target} typically"
        if row["expected"] <= 0:
            text += f", no better than the mean of {target}"
    elif row["expected"] is not None:
        text += f"; expect {expectation(row, row['score'])} of new {what} right"
    if row["more"] is not None:
        twice, four = (share(value, 0) for value in row["more"])
        text += f", about {twice} with twice as many {what} and {four} with four times"
    return ". ".join([text, *map(as_options, row["warnings"])]) + "."
