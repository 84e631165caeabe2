"""``sparsehyper inspect``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehyper.lab.cli.options import Budget, TrustTarget, given
from sparsehyper.lab.cli.output import Json, echo, print_json, print_table


def inspect(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run's directory; without it the options describe a model."),
    ] = None,
    generator: Annotated[
        str, typer.Option(help="sparse, chunked, dense, butterfly or low_rank, with settings.")
    ] = "sparse",
    budget: Budget = None,
    base: Annotated[str, typer.Option(help="As for train.")] = "learned",
    target: Annotated[str, typer.Option(help="As for train.")] = "mlp:128-64",
    image: Annotated[str, typer.Option(help="CHANNELSxHEIGHTxWIDTH of the input.")] = "1x28x28",
    classes: Annotated[int, typer.Option(help="Number of logits.")] = 10,
    latent_dim: Annotated[int, typer.Option(help="Length of an embedding.")] = 256,
    tasks: Annotated[int, typer.Option(help="Number of tasks.")] = 10,
    trust_target: TrustTarget = None,
    json: Json = False,
) -> None:
    """Show a hypernetwork's generator, layers, sizes, wiring, rank and cost.

    For a run also how the weights of each layer differ between tasks, and which tasks are similar.

    Example: **sparsehyper inspect --generator sparse:growth=8 --target resnet32 --image 3x32x32**
    """
    import torch

    from sparsehyper._util.checks import MOST_TASKS, WIDEST, check_integer
    from sparsehyper.analysis import count_operations, effective_rank, layer_statistics, summarize
    from sparsehyper.conditioning import TaskConditioner
    from sparsehyper.generators import parse_generator
    from sparsehyper.hypernetwork import HyperNetwork
    from sparsehyper.lab.data import TaskInfo
    from sparsehyper.lab.runs import DataConfig, Experiment, build_model, load_run
    from sparsehyper.lab.runs.adapted import nearest_tasks
    from sparsehyper.training import TrainConfig

    if run is not None:
        if described := sorted(set(given(context)) - {"run", "trust_target", "json"}):
            raise ValueError(f"`{described[0]}` describes a model, and so does `run`; give one")
        loaded = load_run(run, trust=trust_target or ())
        model, image_shape = loaded.hypernetwork(), loaded.tasks.image_shape
    else:
        check_integer("tasks", tasks, minimum=1, maximum=MOST_TASKS)
        check_integer("classes", classes, minimum=1, maximum=WIDEST)
        image_shape = _shape(image)
        experiment = Experiment(
            DataConfig(),
            TrainConfig(steps=1),
            method=parse_generator(generator),
            target=target,
            budget=budget,
            latent_dim=latent_dim,
            base=base,
        )
        of_each = tuple(map(str, range(classes)))
        names = tuple(map(str, range(tasks)))
        described_tasks = TaskInfo(names, (of_each,) * tasks, image_shape, (), (), "")
        built = build_model(experiment, described_tasks)
        assert isinstance(built, HyperNetwork)
        model = built
    summary = summarize(model)
    summary["effective_rank"] = effective_rank(model).to_dict()
    summary["operations"] = count_operations(model, torch.zeros(1, *image_shape))
    if run is not None and isinstance(model.conditioner, TaskConditioner):
        summary["statistics"] = layer_statistics(model)
        summary["nearest"] = [
            {"task": task, "nearest": nearest, "cosine_distance": 1 - cosine}
            for task, (nearest, cosine) in nearest_tasks(loaded).items()
        ]
    if json:
        print_json(summary)
    else:
        _show(summary)


def _show(summary: dict[str, Any]) -> None:
    settings = dict(summary["generator"])
    kind = settings.pop("kind")
    described = ", ".join(f"{name}={value}" for name, value in settings.items())
    trainable = summary["trainable"]
    columns = ["tensor", "shape", "initial std"]
    rows = [
        [t["name"], " × ".join(map(str, t["shape"])) or "1", f"{t['initial_std']:.4f}"]
        for t in summary["tensors"]
    ]
    if statistics := summary.get("statistics"):
        columns += ["mean", "std", "between tasks"]
        for row, found in zip(rows, statistics, strict=True):
            row += [f"{found['mean']:.4f}", f"{found['std']:.4f}", f"{found['between_tasks']:.1%}"]
    print_table(f"Target, N = {summary['numel']:,} generated parameters", columns, rows)
    wiring = summary["wiring"]
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
            for layer, used in zip(summary["layers"], wiring["coverage"], strict=True)
        ],
    )
    embeddings = summary["tasks"] * summary["latent_dim"]
    conditioner = f"{trainable['embeddings']:,} conditioner"  # with an encoder
    if trainable["embeddings"] == embeddings:
        conditioner = f"{embeddings:,} embeddings ({summary['tasks']} × {summary['latent_dim']})"
    echo(
        f"Trainable: {trainable['generator']:,} generator, {conditioner}, "
        f"{trainable['shared']:,} shared by tasks; "
        f"{summary['trainable_per_parameter']:.3f} per generated parameter."
    )
    echo(
        f"A latent unit reaches {wiring['reach_mean']:.1%} of the outputs "
        f"(from {wiring['reach_min']:.1%} to {wiring['reach_max']:.1%})."
    )
    rank, operations = summary["effective_rank"], summary["operations"]
    echo(
        f"The models differ in {rank['effective_rank']:.1f} directions (effective rank"
        f"{'' if rank['exact'] else ', from a sample'}; at most {len(rank['singular_values'])})."
    )
    echo(
        f"Multiply-adds: {operations['generator']['multiply_adds']:,} to generate a model, "
        f"{operations['target']['multiply_adds']:,} to run it on one image."
    )
    if nearest := summary.get("nearest"):
        print_table(
            "Most similar embeddings",
            ["task", "nearest", "cosine distance"],
            [[row["task"], row["nearest"], f"{row['cosine_distance']:.3f}"] for row in nearest],
        )


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise ValueError(f"`image` must be CHANNELSxHEIGHTxWIDTH, such as 3x32x32; got {text!r}")
    from sparsehyper._util.checks import LARGEST_SIDE, check_integer

    channels, height, width = map(int, parts)
    for side in (channels, height, width):
        check_integer("image", side, minimum=1, maximum=LARGEST_SIDE)
    return channels, height, width
