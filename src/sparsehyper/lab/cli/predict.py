"""``sparsehyper predict``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.lab.cli.options import TrustTarget
from sparsehyper.lab.cli.output import echo, print_csv, print_json, print_table

_FORMATS = ("table", "json", "csv")


def predict(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders and globs; for a run of a table, a table."),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            help="Task whose model to use. Without it, it is told from the images, which must all "
            "be of one task."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="table, json or csv. In csv, a cell that starts with =, +, -, @, a tab or a "
            "carriage return gets an apostrophe in front, so that no spreadsheet treats it as a "
            "formula; json has all names unchanged."
        ),
    ] = "table",
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images to the size that the model takes.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Number of images at a time.")] = 500,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, …")] = "auto",
    trust_target: TrustTarget = None,
) -> None:
    r"""Classify images, or predict a column of a table for its rows or sequences.

    Example: **sparsehyper predict runs/shop-hats --task hats new/\*.png --format csv**

    Example: **sparsehyper predict runs/sites new.csv --format csv**
    """
    from sparsehyper._util.checks import check_choice
    from sparsehyper.lab.runs import predict_run, read_experiment
    from sparsehyper.lab.runs.setup import check_of_images

    check_choice("format", format, _FORMATS)
    started, trust = time.perf_counter(), trust_target or ()
    if read_experiment(run, trust=trust).data.is_table:
        check_of_images(resize)
        _predict_table(
            run, images, format, task=task, batch_size=batch_size, device=device, trust=trust
        )
        return
    found = predict_run(
        run,
        images,
        task=task,
        resize=resize,
        batch_size=batch_size,
        device=device,
        trust=trust,
    )
    seconds = time.perf_counter() - started
    if format == "json":
        print_json({**found.to_dict(), "seconds": seconds})
        return
    rows = [
        [file, label, f"{max(values):.4f}"]
        for file, label, values in zip(found.files, found.labels, found.probabilities, strict=True)
    ]
    if format == "csv":
        print_csv(["file", "label", "probability"], rows)
    else:
        print_table(f"Task {found.task}", ["file", "label", "probability"], rows)
    chosen = "as given"
    if found.identified:
        ranked = sorted(((p, name) for name, p in found.identified.probabilities.items()))[::-1]
        chosen = f"told from the images (probability {ranked[0][0]:.1%}"
        chosen += f"; next {ranked[1][1]!r}, {ranked[1][0]:.1%})" if ranked[1:] else ")"
    # On stderr, as stdout may hold a CSV file.
    images_seen = "1 image" if len(rows) == 1 else f"{len(rows)} images"
    echo(f"{images_seen}, task {found.task!r} {chosen}, {seconds:.1f} s", err=True)
    if found.accuracy is not None:
        echo(f"{found.accuracy:.2%} are in the folder of their class", err=True)


def _predict_table(run: Path, files: list[str], format: str, **settings: Any) -> None:
    from sparsehyper.lab.runs import predict_table

    if len(files) != 1:
        raise ValueError(f"`images` must be one table for a run of a table, got {len(files)} files")
    found = predict_table(run, files[0], **settings)
    if format == "json":
        print_json(found.to_dict())
    elif format == "csv":
        print_csv(*found.rows())
    else:
        shown = [x if isinstance(x, str) else f"{x:.6g}" for x in found.predicted]
        columns = {"task": found.tasks, f"predicted {found.target}": shown}
        if found.sequences is not None:
            columns = {"task": found.tasks, "sequence": found.sequences, **columns}
        if found.probabilities is not None:
            columns["probability"] = [f"{p:.4f}" for p in found.probabilities]
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        print_table(f"Predictions for {files[0]}", list(columns), rows)
