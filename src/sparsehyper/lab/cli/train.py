"""``sparsehyper train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.generators import Generator
from sparsehyper.lab.cli.options import (
    Budget,
    TrustTarget,
    apply_options,
    experiment_from,
    given,
    takes_experiment,
)
from sparsehyper.lab.cli.output import Json, Quiet, echo, print_json, print_tasks
from sparsehyper.lab.runs import Experiment, parse_method, read_experiment, run_experiment
from sparsehyper.lab.runs.targets import function_of


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
            "Only --steps, --device, --cuda-graphs, and --data for a folder that has moved may be "
            "given anew; "
            "any other setting must keep its recorded value.",
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

    On several processes: **torchrun --nproc-per-node 2 -m sparsehyper train …**
    """
    if resume:
        experiment = _resumed(context, out, trust_target or ())
    else:
        experiment = experiment_from(options, _config(method), budget=budget)
    result = run_experiment(
        experiment, out, data_dir=options["data_dir"], resume=resume, quiet=quiet
    )
    if json:
        print_json(result)
        return
    print_tasks("Test", result["test"])
    training = result["training"]
    echo(f"{training['steps']} steps in {training['seconds']:.0f} s; the best model is in {out}")


def _resumed(context: typer.Context, out: Path, trust: Sequence[str]) -> Experiment:
    """The experiment that the run recorded, with the options given on the command line."""
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
    parsed = parse_method(method)
    return parsed.to_config() if isinstance(parsed, Generator) else {"kind": parsed}
