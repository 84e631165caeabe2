"""``sparsehyper inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.analysis import summarize
from sparsehyper.cli.options import given
from sparsehyper.cli.output import Json, print_json, print_table
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.experiments import build_target, load_run
from sparsehyper.generators import parse_generator
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.layout import plan_layout


def inspect(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(help="A run's directory; or describe a model by options.")
    ] = None,
    generator: Annotated[
        str, typer.Option(help="sparse, chunked or dense, with settings.")
    ] = "sparse",
    budget: Annotated[
        float | None, typer.Option(help="Trainable parameters per target parameter, at most.")
    ] = None,
    target: Annotated[str, typer.Option(help="As for train.")] = "mlp:128-64",
    image: Annotated[str, typer.Option(help="CHANNELSxHEIGHTxWIDTH of the input.")] = "1x28x28",
    classes: Annotated[int, typer.Option(help="Number of logits.")] = 10,
    latent_dim: Annotated[int, typer.Option(help="Length of an embedding.")] = 64,
    tasks: Annotated[int, typer.Option(help="Number of tasks.")] = 10,
    json: Json = False,
) -> None:
    """Show a hypernetwork's generator, layers, sizes and wiring.

    Example: **sparsehyper inspect --generator sparse:growth=8 --target resnet32 --image 3x32x32**
    """
    if run is not None:
        if described := sorted(set(given(context)) - {"run", "json"}):
            raise ValueError(f"`{described[0]}` describes a model, and so does `run`; give one")
        model = load_run(run).model
        if not isinstance(model, HyperNetwork):
            raise ValueError(f"`run` {run} holds no hypernetwork but a {type(model).__name__}")
    else:
        module = build_target(target, _shape(image), classes)
        spec = parse_generator(generator)
        if budget is not None:
            numel = sum(tensor.numel for tensor in plan_layout(module))
            spec = spec.with_budget(max(1, round(budget * numel)), latent_dim, numel)
        model = HyperNetwork(module, spec, TaskEmbedding(tasks, latent_dim))
    summary = summarize(model)
    if json:
        print_json(summary)
    else:
        _show(summary)


def _show(summary: dict[str, Any]) -> None:
    settings = dict(summary["generator"])
    kind = settings.pop("kind")
    described = ", ".join(f"{name}={value}" for name, value in settings.items())
    trainable = summary["trainable"]
    print_table(
        f"Target, N = {summary['numel']:,} generated parameters",
        ["tensor", "shape", "initial std"],
        [
            [t["name"], " × ".join(map(str, t["shape"])) or "1", f"{t['initial_std']:.4f}"]
            for t in summary["tensors"]
        ],
    )
    wiring = summary["wiring"]
    coverage = wiring["coverage"] if wiring else [1.0] * len(summary["layers"])
    print_table(
        f"Generator {kind} ({described})" if described else f"Generator {kind}",
        ["layer", "inputs", "outputs", "fan-in", "parameters", "inputs used"],
        [
            [
                layer["layer"],
                f"{layer['inputs']:,}",
                f"{layer['outputs']:,}",
                layer["fan_in"],
                f"{layer['parameters']:,}",
                f"{used:.1%}",
            ]
            for layer, used in zip(summary["layers"], coverage, strict=True)
        ],
    )
    typer.echo(
        f"Trainable: {trainable['generator']:,} generator, {trainable['embeddings']:,} embeddings "
        f"({summary['tasks']} × {summary['latent_dim']}), {trainable['shared']:,} in the target; "
        f"{summary['trainable_per_parameter']:.3f} per generated parameter."
    )
    if wiring:
        typer.echo(
            f"A latent unit reaches {wiring['reach_mean']:.1%} of the outputs "
            f"(least {wiring['reach_min']:.1%}, most {wiring['reach_max']:.1%})."
        )


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"`image` must be CHANNELSxHEIGHTxWIDTH, such as 3x32x32; got {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width
