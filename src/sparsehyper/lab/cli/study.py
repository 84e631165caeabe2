"""``sparsehyper study``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.lab.cli.output import Json, Quiet, echo, print_json, print_table

# Those of `lab.studies.STUDIES`, which takes seconds to import.
_NAMES = (
    *("variations", "compare", "fair-comparison", "shared-base", "thesis-targets"),
    *("generator-size", "new-tasks", "adaptation", "all-images", "adapters", "conditioners"),
    *("support-sets", "interpolation", "target-sparsity", "scaling", "typology"),
)


def study(
    name: Annotated[str, typer.Argument(help=f"{', '.join(_NAMES)}.")],
    out: Annotated[Path, typer.Option(help="Directory of the study.")],
    scale: Annotated[
        str,
        typer.Option(
            help="smoke (under a minute), cpu (up to eight hours of one core) or full (a GPU)."
        ),
    ] = "cpu",
    data_dir: Annotated[
        str | None,
        typer.Option(envvar="SPARSEHYPER_DATA", help="Folder of the named data sets' files."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of seeds; more can be added to a study later."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    engine: Annotated[
        str,
        typer.Option(
            help="Where they run: local; slurm, with settings as in "
            "slurm:partition=P,account=A,qos=Q,time=600,mem=8,gpus=1 (minutes, GB); or ray, as in "
            "ray:address=A,mem=8,gpus=1."
        ),
    ] = "local",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study, or continue one that was stopped; nothing is computed twice.

    Example: **sparsehyper study new-tasks --out runs/new-tasks --scale smoke**
    """
    from sparsehyper._util.checks import MOST_WORKERS, check_choice, check_integer
    from sparsehyper.lab.studies import STUDIES, run_study
    from sparsehyper.lab.studies.engines import check_engine

    check_choice("name", name, STUDIES)
    check_integer("workers", workers, minimum=1, maximum=MOST_WORKERS)
    check_engine(engine)
    started = time.perf_counter()
    chosen: Any = STUDIES[name].at_scale(scale)
    if seeds is not None:
        if not hasattr(chosen, "seeds"):
            raise ValueError(f"`seeds` is not for {name}, whose runs have a seed each; got {seeds}")
        chosen = replace(chosen, seeds=seeds)
    results = run_study(
        chosen, out, scale=scale, data_dir=data_dir, workers=workers, engine=engine, quiet=quiet
    )
    if json:
        print_json(results)
        return
    for title, columns, rows, _ in chosen.all_tables(results):
        print_table(title, columns, rows)
    for file in ("results.json", "results.md", chosen.picture):
        echo(out / file)
    echo(f"{time.perf_counter() - started:.0f} s")
