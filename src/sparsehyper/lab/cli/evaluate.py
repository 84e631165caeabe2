"""``sparsehyper evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehyper.lab.cli.options import TrustTarget
from sparsehyper.lab.cli.output import Json, print_json, print_tasks, with_errors


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="The run's folder of images or table, if it has moved.")
    ] = None,
    added: Annotated[
        Path | None,
        typer.Option(
            help=r"Evaluate the tasks of this folder alone, such as tasks that were added: "
            r"[train|test]/TASK/CLASS/\*.png. For a run of a table, a table."
        ),
    ] = None,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Resize images of --added to the size that the model takes."),
    ] = False,
    data_dir: Annotated[
        str | None,
        typer.Option(envvar="SPARSEHYPER_DATA", help="Folder of the named data sets' files."),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, …")] = "auto",
    trust_target: TrustTarget = None,
    json: Json = False,
) -> None:
    """Evaluate a run's best model on every task.

    Example: **sparsehyper evaluate runs/digits --split test --json**

    Tasks that were added: **sparsehyper evaluate runs/shop-hats --added NEW**
    """
    from sparsehyper.lab.runs import evaluate_run, recorded_tasks

    evaluation = evaluate_run(
        run,
        split=split,
        source=data,
        added=added,
        resize=resize,
        data_dir=data_dir,
        device=device,
        trust=trust_target or (),
    ).to_dict()
    evaluation = with_errors(evaluation, recorded_tasks(run).columns)
    if json:
        print_json(evaluation)
    else:
        title = split.capitalize() if added is None else f"All of {Path(added).name}"
        print_tasks(title, evaluation)
