"""``sparsehyper study``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsehyper._checks import check_choice
from sparsehyper.cli.output import Json, Quiet, print_json, print_table
from sparsehyper.experiments import new_tasks_study, run_new_tasks
from sparsehyper.report.new_tasks import draw, markdown, table
from sparsehyper.training.run import write_json

_STUDIES = ("new-tasks",)


def study(
    name: Annotated[str, typer.Argument(help="new-tasks.")],
    out: Annotated[Path, typer.Option(help="Directory of the study.")],
    scale: Annotated[
        str,
        typer.Option(help="smoke (seconds), cpu (40 minutes on two cores) or full (for a GPU)."),
    ] = "cpu",
    data_dir: Annotated[
        str | None,
        typer.Option(envvar="SPARSEHYPER_DATA", help="Folder of the named data sets' files."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of seeds, 5 by default; more can be added to a study later."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study, or go on with one that was stopped; nothing is done twice.

    Example: **sparsehyper study new-tasks --out runs/new-tasks --scale smoke**
    """
    check_choice("name", name, _STUDIES)
    started = time.perf_counter()
    settings = new_tasks_study(scale)
    if seeds is not None:
        settings = replace(settings, seeds=seeds)
    results = run_new_tasks(settings, out, data_dir=data_dir, workers=workers, quiet=quiet)
    write_json(out / "results.json", results)
    (out / "results.md").write_text(markdown(results), encoding="utf-8")
    draw(results, out / "accuracy_vs_shots.png")
    if json:
        print_json(results)
        return
    for title, columns, rows in table(results):
        print_table(title, columns, rows)
    for file in ("results.json", "results.md", "accuracy_vs_shots.png"):
        typer.echo(out / file)
    typer.echo(f"{time.perf_counter() - started:.0f} s")
