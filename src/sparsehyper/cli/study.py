"""``sparsehyper study``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper._checks import check_choice
from sparsehyper.cli.output import Json, Quiet, print_json, print_table
from sparsehyper.experiments import (
    new_tasks_study,
    run_new_tasks,
    run_typology,
    typology_study,
)
from sparsehyper.report import new_tasks, typology
from sparsehyper.training.run import write_json

# Settings by scale, the work, its report, and the name of the picture.
_STUDIES: dict[str, tuple[Any, Any, Any, str]] = {
    "new-tasks": (new_tasks_study, run_new_tasks, new_tasks, "accuracy_vs_shots.png"),
    "typology": (typology_study, run_typology, typology, "accuracy_vs_budget.png"),
}


def study(
    name: Annotated[str, typer.Argument(help="new-tasks or typology.")],
    out: Annotated[Path, typer.Option(help="Directory of the study.")],
    scale: Annotated[
        str,
        typer.Option(help="smoke (seconds), cpu (up to an hour on two cores) or full (a GPU)."),
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
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study, or go on with one that was stopped; nothing is done twice.

    Example: **sparsehyper study new-tasks --out runs/new-tasks --scale smoke**
    """
    check_choice("name", name, _STUDIES)
    started = time.perf_counter()
    settings_of, work, report, picture = _STUDIES[name]
    settings = settings_of(scale)
    if seeds is not None:
        settings = replace(settings, seeds=seeds)
    results = work(settings, out, data_dir=data_dir, workers=workers, quiet=quiet)
    write_json(out / "results.json", results)
    (out / "results.md").write_text(report.markdown(results), encoding="utf-8")
    report.draw(results, out / picture)
    if json:
        print_json(results)
        return
    for title, columns, rows in report.table(results):
        print_table(title, columns, rows)
    for file in ("results.json", "results.md", picture):
        typer.echo(out / file)
    typer.echo(f"{time.perf_counter() - started:.0f} s")
