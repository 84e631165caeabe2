"""``sparsehyper compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sparsehyper.lab.cli.options import experiment_from, takes_experiment
from sparsehyper.lab.cli.output import Json, Quiet, echo, print_json


@takes_experiment(without=["seed"])
def compare(
    out: Annotated[
        Path, typer.Option(help="Directory for results.json, the picture and the runs.")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="May be given several times: sparse  chunked  dense  butterfly  low_rank  "
            "experts  shared_trunk, with settings as in sparse:topology=local. By default sparse, "
            "chunked, dense, experts and shared_trunk."
        ),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            help="Largest number of trainable parameters, of a sparse or chunked generator and a "
            "trained base, per target parameter; may be given several times. 4 by default."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, …")] = 3,
    quiet: Quiet = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Train several generators and baselines on the same tasks, and compare them.

    The same command continues a comparison that was stopped. Only the methods, budgets, seeds,
    --device and --data for a folder that has moved may then differ.

    Example: **sparsehyper compare --out runs/pairs --data digits --tasks split:2,all --budget 2
    --budget 4**
    """
    from sparsehyper._util.checks import MOST_REPEATS, check_integer
    from sparsehyper.generators import Sparse
    from sparsehyper.lab import runs
    from sparsehyper.lab.plots import accuracy_vs_budget
    from sparsehyper.lab.report.tables import rich_table

    check_integer("seeds", seeds, minimum=1, maximum=MOST_REPEATS)
    results = runs.compare(
        experiment_from({**options, "seed": 0}, Sparse().to_config()),
        out,
        methods=method or runs.COMPARED,
        budgets=budget or (4.0,),
        seeds=range(seeds),
        data_dir=options["data_dir"],
        quiet=quiet,
    )
    picture = out / "accuracy_vs_budget.svg"
    if results["rows"]:
        accuracy_vs_budget(results, picture)
    if json:
        print_json(results)
    else:
        Console().print(rich_table(results))
        for row in results["skipped"]:
            echo(f"skipped {row['method']} at {row['budget']} N: {row['reason']}")
        echo(out / "results.json")
        if results["rows"]:
            echo(picture)
    for failure in results["failures"]:
        echo(f"failed: {failure['method']}, seed {failure['seed']}: {failure['error']}", err=True)
    if results["failures"]:
        raise typer.Exit(1)
