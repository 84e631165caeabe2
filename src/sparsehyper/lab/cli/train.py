"""``sparsehyper train``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehyper._util.text import listed
from sparsehyper.lab.cli.options import (
    Budget,
    TrustTarget,
    apply_options,
    experiment_from,
    given,
    takes_experiment,
)
from sparsehyper.lab.cli.output import Json, Quiet, echo, print_json, print_tasks, with_errors

if TYPE_CHECKING:
    from sparsehyper.lab.data import Columns, TaskSet
    from sparsehyper.lab.runs import Experiment


@takes_experiment()
def train(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Directory of the run; must be new, except with --resume.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="sparse  chunked  dense  butterfly  low_rank  experts  shared_trunk; settings as "
            "in sparse:growth=8,topology=local."
        ),
    ] = "sparse",
    budget: Budget = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out from its last checkpoint, with its recorded settings. "
            "Only --steps, --device, --cuda-graphs, --shard, --log-with, and --data for a folder "
            "that has moved may be given anew; any other setting must keep its recorded value.",
        ),
    ] = False,
    trust_target: TrustTarget = None,
    quiet: Quiet = False,
    json: Json = False,
    **options: Any,
) -> None:
    r"""Train one model on many tasks.

    Example: **sparsehyper train --out runs/digits --data digits --tasks split:2 --steps 500**

    With your own images: **sparsehyper train --out runs/mine --data FOLDER**, where FOLDER holds
    TASK/CLASS/\*.png.

    With a table: **sparsehyper train --out runs/sites --data sites.csv --task-column site
    --target-column price**

    With sequences, here windows of sensors: **sparsehyper train --out runs/machines --data
    windows.csv --task-column machine --sequence-column window --order-column time
    --target-column state**

    On several processes: **torchrun --nproc-per-node 2 -m sparsehyper train …**
    """
    from sparsehyper.generators import Generator
    from sparsehyper.lab.runs import load_tasks, recorded_tasks, run_experiment
    from sparsehyper.lab.runs.setup import usual_batch, usual_head
    from sparsehyper.training.processes import is_main_process

    if resume:
        experiment = _resumed(context, out, trust_target or ())
    else:
        experiment = experiment_from(options, _config(method), budget=budget)
    known = recorded_tasks(out) if resume else None
    tasks = load_tasks(experiment.data, options["data_dir"], known=known)
    if not resume:
        if options["head"] is None and isinstance(experiment.method, Generator):
            options["head"] = usual_head(experiment, tasks)
        chosen = {"batch_size", "tasks_per_batch"} & given(context).keys()
        if tasks.columns is not None and not chosen:
            options["batch_size"], options["tasks_per_batch"] = usual_batch(tasks)
        experiment = experiment_from(options, _config(method), budget=budget)
    if not quiet and is_main_process():
        echo(_found(tasks, experiment.data.samples), err=True)
        if tasks.columns is not None:
            echo(_inputs(tasks.columns), err=True)
    command = shlex.join(["sparsehyper", *context.find_root().obj])
    result = run_experiment(
        experiment, out, tasks=tasks, resume=resume, command=command, quiet=quiet
    )
    if not is_main_process():
        return
    result["test"] = with_errors(result["test"], tasks.columns)
    if json:
        print_json(result)
        return
    print_tasks("Test", result["test"])
    training = result["training"]
    echo(f"{training['steps']} steps in {training['seconds']:.0f} s; the best model is in {out}")
    if not quiet:
        echo(_next(experiment, tasks, out))


def _found(tasks: TaskSet, what: str) -> str:
    """The tasks, classes and images, rows or sequences, in words."""
    some, counts = ", ".join(map(repr, tasks.names[:3])), sorted(set(tasks.n_classes))
    classes = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    of, shape = f"of {classes} classes", " × ".join(map(str, tasks.image_shape))
    if tasks.columns is not None:
        of = f"with {tasks.columns.target} to predict"
        shape += " features" if what == "rows" else " (channels × steps)"
    images = [sum(split.counts) for split in (tasks.train, tasks.val, tasks.test)]
    least = min(tasks.train.counts)
    return (
        f"{len(tasks.names)} tasks ({some}{', …' if tasks.names[3:] else ''}) {of}; "
        + "{:,} {} to train on, {:,} to validate, {:,} to test".format(images[0], what, *images[1:])
        + f"; at least {least:,} a task to train on; {shape}"
    )


def _inputs(columns: Columns) -> str:
    """The columns of a table that are inputs, in words; warnings tell of those left out."""
    kinds = {
        "numbers": [column.name for column in columns.numbers],
        "categories": [column.name for column in columns.categories],
    }
    return "inputs: " + "; ".join(
        f"{len(names):,} of {kind} ({listed(names)})" for kind, names in kinds.items() if names
    )


def _next(experiment: Experiment, tasks: TaskSet, out: Path) -> str:
    """The commands that can follow, of those that take such a run."""
    from sparsehyper.generators import Generator
    from sparsehyper.lab.runs.config import BY_INPUT
    from sparsehyper.lab.runs.targets import function_of

    run, task = shlex.quote(str(out)), shlex.quote(tasks.names[0])
    own = function_of(experiment.target)
    trust = f" --trust-target {own}" if own else ""
    commands = [f"evaluate {run}"]
    if experiment.conditioner not in BY_INPUT:
        if isinstance(experiment.method, Generator) or not tasks.are_numbers:
            commands.append(f"adapt {run} --data NEW --out NEW-RUN")
        commands.append(f"export {run} --task {task} --out FILE.pt2")
    return "next: " + "; ".join(f"sparsehyper {command}{trust}" for command in commands)


def _resumed(context: typer.Context, out: Path, trust: Sequence[str]) -> Experiment:
    """The experiment that the run recorded, with the options given on the command line."""
    from sparsehyper.lab.runs import Experiment, read_experiment
    from sparsehyper.lab.runs.targets import function_of

    options = given(context)
    # A target named on the command line is trusted.
    named = function_of(options.get("target", ""))
    settings = read_experiment(out, trust=[*trust, *([named] if named else [])]).to_dict()
    apply_options(settings, options)
    if "method" in options:
        settings["method"] = _config(options["method"])
    if "budget" in options:
        settings["budget"] = options["budget"]
    return Experiment.from_dict(settings)


def _config(method: str) -> dict[str, Any]:
    from sparsehyper.generators import Generator
    from sparsehyper.lab.runs import parse_method

    parsed = parse_method(method)
    return parsed.to_config() if isinstance(parsed, Generator) else {"kind": parsed}
