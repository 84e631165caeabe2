"""``sparsehyper bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehyper._util.files import replaced
from sparsehyper.lab.cli.output import Json, echo, print_json, print_table


def bench(
    out: Annotated[
        Path, typer.Option(help="Directory for results.json, results.md and the pictures.")
    ] = Path("runs/bench"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Group of benchmarks: layers  generators  steps  adaptation  scale  peers, or "
            "with --device cuda: checks  layers  generators  steps  mixed  compiled; may be given "
            "several times. By default all, and peers if --peers is given."
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the worker.py and .venv of other libraries: benchmarks/peers.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda for the benchmarks of a GPU, which take minutes.")
    ] = "cpu",
    rounds: Annotated[int, typer.Option(help="Number of times that everything is timed.")] = 7,
    seed: Annotated[int, typer.Option(help="Seed of wirings, weights and inputs.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use tiny sizes, to check that everything runs.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure speed and memory, side by side with the alternatives.

    The alternatives take turns in one process, round by round. Ratios are taken within a round, and
    their medians over rounds. OMP_NUM_THREADS sets the number of threads. A full run takes half an
    hour.

    Example: **sparsehyper bench --out runs/bench --only layers --only generators**
    """
    from sparsehyper.lab import bench as benchmarks
    from sparsehyper.lab.report import bench as report

    files = ["results.json", "results.md"]
    for group, results in benchmarks.bench(
        out,
        groups=only,
        peers=peers,
        sizes=benchmarks.QUICK if quick else benchmarks.FULL,
        rounds=rounds,
        seed=seed,
        device=device,
    ):
        with replaced(out / "results.md") as page:
            page.write(report.markdown(results).encode())
        if group == "generators" and device == "cpu":
            report.draw_time(results, out / "time.svg")
            report.draw_memory(results, out / "memory.svg")
            files += ["time.svg", "memory.svg"]
        if not json:
            for table in report.tables(group, results):
                print_table(table.title, table.columns, table.rows)
                for note in table.notes:
                    echo(note)
    if json:
        print_json(results)
    else:
        for file in files:
            echo(out / file)
