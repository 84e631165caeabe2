"""``sparsehyper study``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsehyper._util.checks import MOST_WORKERS, check_choice, check_integer
from sparsehyper._util.files import replaced
from sparsehyper.lab.cli.output import Json, Quiet, echo, print_json, print_table
from sparsehyper.lab.report.studies import REPORTS, all_tables, markdown
from sparsehyper.lab.runs.run import read_json
from sparsehyper.lab.studies import STUDIES
from sparsehyper.training.run import check_same, lock, write_json


def study(
    name: Annotated[str, typer.Argument(help=f"{', '.join(STUDIES)}.")],
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
    check_choice("name", name, STUDIES)
    check_integer("workers", workers, minimum=1, maximum=MOST_WORKERS)
    started = time.perf_counter()
    settings_of, run = STUDIES[name]
    report = REPORTS[name]
    settings = settings_of(scale)
    if seeds is not None:
        if not hasattr(settings, "seeds"):
            raise ValueError(f"`seeds` is not for {name}, whose runs have a seed each; got {seeds}")
        settings = replace(settings, seeds=seeds)
    record = out / "study.json"
    which = {"name": name, "scale": scale}
    more = ("" if scale == "cpu" else f" --scale {scale}") + (f" --seeds {seeds}" if seeds else "")
    out.mkdir(parents=True, exist_ok=True)
    held = lock(out)
    try:
        if record.exists():
            recorded = read_json(record)
            check_same(f"study {record}", {key: recorded.get(key) for key in which}, which, ())
        write_json(record, {**which, "settings": settings.to_dict()})
        found = run(settings, out, data_dir=data_dir, workers=workers, quiet=quiet)
        results = {**which, "command": f"sparsehyper study {name} --out FOLDER{more}", **found}
        write_json(out / "results.json", results)
        with replaced(out / "results.md") as page:
            page.write(markdown(report, results).encode())
        report.draw(results, out / report.picture)
    finally:
        held.release()
    if json:
        print_json(results)
        return
    for title, columns, rows in all_tables(report, results):
        print_table(title, columns, rows)
    for file in ("results.json", "results.md", report.picture):
        echo(out / file)
    echo(f"{time.perf_counter() - started:.0f} s")
