"""``sparsehyper report``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sparsehyper._util.files import check_absent, whole
from sparsehyper.lab.cli.options import TrustTarget
from sparsehyper.lab.cli.output import echo


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Directories of train, adapt, compare or study; several become tabs."),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    data_dir: Annotated[
        str | None,
        typer.Option(envvar="SPARSEHYPER_DATA", help="Folder of the named data sets' files."),
    ] = None,
    trust_target: TrustTarget = None,
) -> None:
    """Make one HTML file of results, which needs no network and no other files.

    Example: **sparsehyper report runs/digits runs/pairs --out report.html**
    """
    from sparsehyper.lab.report.html import write_html
    from sparsehyper.lab.report.results import describe_results
    from sparsehyper.lab.runs import describe_run

    started = time.perf_counter()
    check_absent("out", out)
    described = [
        describe_run(run, data_dir=data_dir, trust=trust_target or ())
        if (run / "config.json").is_file()
        else describe_results(run)
        for run in runs
    ]
    with whole("out", out) as partial:
        write_html(described, partial)
    for one in described:
        if one.get("missing"):
            echo(f"{one['name']}: {one['missing']}", err=True)
    size, seconds = out.stat().st_size, time.perf_counter() - started
    echo(f"{out} ({size / 1e6:.1f} MB, {seconds:.1f} s)")
