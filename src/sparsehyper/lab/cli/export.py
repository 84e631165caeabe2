"""``sparsehyper export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sparsehyper.lab.cli.options import TrustTarget
from sparsehyper.lab.cli.output import Json, echo, print_json


def export(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    task: Annotated[str, typer.Option(help="Task whose model to write.")],
    out: Annotated[Path, typer.Option(help="File to write; must be new.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="safetensors (a state dict), pt2 (a torch.export program) or onnx (needs the "
            "extra onnx); by default the one that the file's suffix names."
        ),
    ] = None,
    trust_target: TrustTarget = None,
    json: Json = False,
) -> None:
    """Write a task's model as an ordinary file.

    Example: **sparsehyper export runs/shop --task bags --format onnx --out bags.onnx**
    """
    from sparsehyper.lab.runs import export_run

    started = time.perf_counter()
    about = export_run(run, task, out, format=format, trust=trust_target or ())
    seconds, size = time.perf_counter() - started, out.stat().st_size
    if json:
        print_json({"out": str(out), "bytes": size, "seconds": seconds, **about})
        return
    shape = " × ".join(map(str, about["image_shape"]))
    inputs, outputs = f"images {shape}", f"{about['outputs']} logits"
    if "columns" in about:
        rows = len(about["image_shape"]) == 1
        inputs = f"rows of {shape} features" if rows else f"sequences {shape} (channels × steps)"
        outputs = "1 scaled number" if about["columns"]["scaling"] else outputs
    echo(
        f"{out}: {about['format']}, {size:,} bytes, {inputs}, {outputs} "
        f"({', '.join(about['classes'])}), {seconds:.1f} s"
    )
