"""A task's model as an ordinary file, for programs that do not know hypernetworks.

===============  ==================================================================================
``safetensors``  a state dict with the target's own names
``pt2``          a ``torch.export`` program, for ``torch.export.load(file).module()``
``onnx``         for onnxruntime and others; input ``images``, output ``logits``
===============  ==================================================================================

All take float32 images ``[batch, C, H, W]``, normalised as ``(image / 255 - mean) / std``, in any
batch size, and return one logit for each of the task's classes. The models of a table take rows
``[batch, features]``, named ``rows``, or sequences ``[batch, channels, steps]``, named
``sequences``; where the target is a number, they return it scaled. The file
also holds a JSON description (classes, target, and how an image file becomes an input, step by
step): as metadata ``sparsehyper`` of safetensors and ONNX files, as extra file ``sparsehyper`` of
programs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice
from sparsehyper._util.extras import require
from sparsehyper._util.files import check_absent, whole
from sparsehyper._util.last_layer import last_layer, trim
from sparsehyper.lab.runs.loading import LoadedRun, load_run
from sparsehyper.saving import write_tensors

_NAME = "sparsehyper"
_INPUTS = {2: "rows", 3: "sequences", 4: "images"}  # by the number of dimensions of a batch


def export_run(
    directory: str | PathLike[str],
    task: str,
    file: str | PathLike[str],
    *,
    format: str | None = None,
    trust: Collection[str] = (),
) -> dict[str, Any]:
    """Write the model of a task to a new file.

    Args:
        directory: directory of the run, adapted or not.
        task: name of a task.
        file: file to write; it appears whole or not at all.
        format: one of `FORMATS`; None for the one that the file's suffix names.
        trust: as `load_run` takes it.

    Returns:
        The description of the model: ``task``, ``format``, ``classes``, ``image_shape``, ``mean``,
        ``std``, ``images_altered_by`` (how the task's images were altered, such as ``permuted:10``;
        None if they were not), ``preprocessing`` (what to do with an image file, in order),
        ``columns`` (of a table alone: `Columns`), ``target``, ``origin`` (how the task was
        learned), ``model`` (the form of a model of the task's own, as `ordinary` has it, or None)
        and ``outputs`` (the number of logits: that of the classes, unless the format is
        ``"safetensors"`` and the target's last layer is not its output; those beyond the classes
        are then meaningless).

    Raises:
        FileExistsError: ``file`` exists.
        KeyError: an unknown task.
        ImportError: the packages for ``"onnx"`` are not installed.
        ValueError: an unknown format or suffix, or a run in which a task has no single model.
    """
    path = Path(file)
    suffix = path.suffix.removeprefix(".")
    if format is None:
        if suffix not in FORMATS:
            known = ", ".join(f".{name}" for name in FORMATS)
            raise ValueError(f"`format` is needed, as {path} has none of the suffixes {known}")
        format = suffix
    check_choice("format", format, FORMATS)
    if suffix in FORMATS and suffix != format:
        raise ValueError(f"`format` {format!r} does not go with .{suffix}, the suffix of {path}")
    check_absent("file", path)
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            require(package, "onnx")
    loaded = load_run(directory, trust=trust)
    entry = loaded.task_list.entry(task)
    loaded.check_by_task(f"there is no single model of {task!r} to export")
    info = loaded.tasks
    example = torch.zeros(2, *info.image_shape)
    module = _trimmed(loaded.materialize(task), example, len(entry.classes), format)
    with torch.no_grad():
        outputs = module(example).shape[1]
    about = {
        "task": task,
        "format": format,
        "classes": list(entry.classes),
        "image_shape": list(info.image_shape),
        "mean": list(info.mean),
        "std": list(info.std),
        "images_altered_by": loaded.altered_by(task),
        "preprocessing": _preprocessing(loaded, task),
        **({} if info.columns is None else {"columns": info.columns.to_dict()}),
        "target": loaded.experiment.target,
        "origin": entry.origin,
        "model": entry.model and dataclasses.asdict(entry.model),
        "outputs": outputs,
    }
    with whole("file", path) as partial:
        FORMATS[format](module, example, partial, json.dumps(about))
    return about


class _First(nn.Module):
    """The first logits of a module."""

    def __init__(self, module: nn.Module, count: int) -> None:
        super().__init__()
        self.module, self.count = module, count

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[:, : self.count]


@torch.no_grad()
def _trimmed(module: nn.Module, example: Tensor, count: int, format: str) -> nn.Module:
    """The module with the first ``count`` logits alone, by a smaller last layer if that does it."""
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    if module(x).shape[1] == count:
        return module
    smaller = copy.deepcopy(module)
    if (found := last_layer(smaller, x)) is not None and type(found[1]) is nn.Linear:
        trim(found[1], count)
        return smaller
    return module if format == "safetensors" else _First(module, count)


def _preprocessing(loaded: LoadedRun, task: str) -> list[str]:
    info, side = loaded.tasks, loaded.experiment.data.image_size
    if info.columns is not None:
        steps, scaling = info.columns.describe(), info.columns.scaling
        if scaling is None:
            return steps
        return [*steps, f"{scaling.name} is output * {scaling.scale} + {scaling.mean}"]
    channels, height, width = info.image_shape
    colour = "grey" if channels == 1 else f"{channels} channels"
    resized = (
        f"resize to {height} × {width} (height × width), bilinear with antialiasing, as PIL's "
        "Resampling.BILINEAR; files had any size"
        if side is not None
        else f"files have {height} × {width} pixels (height × width); none was resized"
    )
    altered = loaded.altered_by(task)
    return [
        f"decode as 8-bit {colour}, upright by its EXIF orientation, transparency over white",
        resized,
        *([f"alter as the task's own images were: {altered}"] if altered else []),
        f"(image / 255 - mean) / std with mean {list(info.mean)} and std {list(info.std)}",
        f"float32 [batch, {channels}, {height}, {width}]",
    ]


def _safetensors(module: nn.Module, _: Tensor, path: Path, about: str) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
    write_tensors(path, state, {_NAME: about})


def _program(module: nn.Module, example: Tensor, path: Path, about: str) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_NAME: about})


def _onnx(module: nn.Module, example: Tensor, path: Path, about: str) -> None:
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[_INPUTS[example.ndim]],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    program.model.metadata_props[_NAME] = about
    program.save(path, external_data=False)


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path, str], None]] = {
    "safetensors": _safetensors,
    "pt2": _program,
    "onnx": _onnx,
}
