"""``sparsehyper doctor``."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsehyper.lab.cli.output import Json, echo, print_json

# The packages of each extra; the command line itself needs the first.
_EXTRAS = {
    "cli": ("typer", "rich", "accelerate", "filelock", "pillow", "pyarrow", "matplotlib", "pyyaml"),
    "data": ("datasets", "scikit-learn"),
    "study": ("optuna",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "slurm": ("submitit",),
    "ray": ("ray",),
    "onnx": ("onnx", "onnxscript"),
    "hub": ("huggingface_hub",),
}
_LIBRARY = ("sparsehyper", "torch", "numpy", "safetensors", "triton")


def doctor(json: Json = False) -> None:
    """Show what is installed, what is missing and what to do: send it along with a question.

    Versions, devices, kernels, threads, data sets and caches. Nothing is fetched or changed.

    Example: **sparsehyper doctor**
    """
    found = _examine()
    if json:
        print_json(found)
        return
    for title, about in found.items():
        if isinstance(about, dict):
            echo(f"{title}:")
            for name, value in about.items():
                echo(f"  {name}: {value}")
        else:
            echo(f"{title}: {about}")


def _examine() -> dict[str, Any]:
    """Every part of the report, JSON-ready."""
    from sparsehyper.lab.machine import machine

    about = machine()
    accelerator = about["accelerator"] or "none that PyTorch can use"
    return {
        "versions": {"python": about["python"], **{name: _version(name) for name in _LIBRARY}},
        "extras": {
            extra: ", ".join(f"{name} {_version(name, extra)}" for name in names)
            for extra, names in _EXTRAS.items()
        },
        "devices": {
            "cpu": f"{about['cpu']}, {about['cores']} cores, {about['system']}",
            "gpu": accelerator,
        },
        "kernels": {"cpu": _kernels(), "gpu": _gpu_kernels()},
        "threads": {"torch": about["threads"], **about["environment"]},
        "data": _data(),
        "caches": _caches(),
    }


def _version(package: str, extra: str | None = None) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        remedy = f'; pip install "sparsehyper[{extra}]"' if extra else ""
        return f"missing{remedy}"


def _kernels() -> str:
    from sparsehyper._util import kernels

    if kernels.compiled is None:
        return (
            f"missing ({kernels.why_missing}), so everything on the CPU is slower; install a C "
            "compiler, then: pip install --force-reinstall --no-deps --no-binary sparsehyper "
            "sparsehyper"
        )
    if kernels.compiled.openmp:
        return "there, with OpenMP"
    return "there, on one thread: they were built without OpenMP"


def _gpu_kernels() -> str:
    import torch

    if not torch.cuda.is_available():
        return "not needed"
    return "there" if _version("triton") != "missing" else "missing; pip install triton"


def _data() -> dict[str, str]:
    """Where each named data set is."""
    from sparsehyper.lab.data import SOURCES

    folder = os.environ.get("SPARSEHYPER_DATA")
    found = {"SPARSEHYPER_DATA": folder or "not set: data sets are fetched when they are used"}
    if folder:
        there = [name for name in SOURCES if (Path(folder) / name).is_dir()]
        found["in it"] = ", ".join(there) or "no data set"
    return found


def _caches() -> dict[str, str]:
    """The folders that other libraries keep downloads and compiled kernels in, and their sizes."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton/cache")
    return {name: f"{path}, {_size(path)}" for name, path in (("hub", home), ("triton", triton))}


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "not there"
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.0f} MB"
