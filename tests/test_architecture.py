"""The import table of the design, the packages each half may use, and side effects of imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsehyper

ROOT = Path(sparsehyper.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Who may import whom. Every part may use the helpers in ``_util``; only the lab may use the lab.
PARTS = {"layout", "sparse", "generators", "conditioning", "target", "heads"}
STORAGE = {"recipes", "saving", "hub", "storing"}
MODEL = {*PARTS, *STORAGE, "tasks", "hypernetwork"}
LIBRARY = {*MODEL, "recurrent", "continual", "adaptation", "analysis", "training"}
MAY_IMPORT = {
    "_util": set(),
    "layout": set(),
    "sparse": set(),
    "generators": {"sparse", "layout"},
    "conditioning": set(),
    "target": {"layout"},
    "adapters": {"target", "peft"},
    "heads": {"layout"},
    "recipes": {"target"},
    "saving": {"conditioning"},
    "tasks": {"conditioning", "target", "heads"},
    "hub": set(),
    "storing": {*PARTS, *STORAGE, "tasks"},
    "hypernetwork": {*PARTS, "recipes", "storing"},
    "recurrent": MODEL,
    "continual": MODEL,
    "peft": MODEL,
    "adaptation": MODEL,
    "analysis": MODEL,
    "training": MODEL,
    "_public": {*LIBRARY, "adapters"},
    "__init__": {"_public"},
    "lab": LIBRARY,
    "__main__": {"lab"},
}
# Within the lab.
LAB_MAY_IMPORT = {
    "__init__": set(),
    "machine": set(),
    "data": set(),
    "plots": set(),
    "report": {"studies", "plots"},
    "bench": {"machine", "runs"},
    "runs": {"machine", "data"},
    "studies": {"machine", "runs", "data", "plots"},
    "cli": {"machine", "data", "runs", "studies", "bench", "report", "plots"},
}
LIGHT = {
    *(*MODEL, "_util", "adapters", "peft", "recurrent", "continual", "adaptation", "analysis"),
    *("__init__", "_public"),
}
OPTIONAL = {
    *("PIL", "pyarrow", "datasets", "sklearn", "scipy", "onnx", "onnxscript"),
    *("accelerate", "filelock", "rich", "typer", "matplotlib", "tensorboard", "optuna", "yaml"),
    "submitit",
    *("huggingface_hub", "transformers"),
}


def part(file: Path, depth: int = 0) -> str:
    """The part of the package, or of a wing of it, that a file belongs to."""
    return file.relative_to(ROOT).parts[depth].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, at any level of nesting."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            if node.module == "sparsehyper":
                yield from (f"sparsehyper.{alias.name}" for alias in node.names)
            elif node.module == "sparsehyper.lab":
                yield from (f"sparsehyper.lab.{alias.name}" for alias in node.names)
            else:
                if str(node.module).startswith("sparsehyper."):
                    names = {alias.name for alias in node.names} - {"_kernels"}  # a module
                    private = [name for name in names if name.startswith("_")]
                    assert not private, f"{file} imports what is another module's own: {private}"
                yield str(node.module)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file):
    here = part(file)
    assert here in MAY_IMPORT, f"{here} is new: say in MAY_IMPORT what it may import"
    for name in imports(file):
        top, *inner = name.split(".")
        if top != "sparsehyper":
            continue
        assert inner, f"{file} imports `sparsehyper` itself; import from the module that has it"
        there = inner[0]
        assert there in {here, *MAY_IMPORT[here], "_util"}, f"{here} may not import {there}"
        if here == there == "lab":
            wing, other = part(file, 1), inner[1]
            may = {wing, *LAB_MAY_IMPORT[wing]}
            assert other in may, f"lab.{wing} may not import lab.{other}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if part(f) in LIGHT], ids=lambda f: str(f.relative_to(ROOT))
)
def test_the_library_without_training_needs_torch_numpy_and_safetensors_only(file):
    allowed = {"sparsehyper", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    if file.parent == ROOT / "sparse" / "gpu":
        allowed.add("triton")  # which PyTorch for CUDA brings along; it is imported when needed
    assert {name.split(".")[0] for name in imports(file)} <= allowed


# Parts of PyTorch that it loads when they are used; each takes it half a second or more.
SLOW = {"torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "triton", "sympy"}


def test_importing_loads_no_optional_package_and_changes_no_setting():
    script = """
import json, sys, torch
def settings():
    return [torch.get_rng_state().sum().item(), torch.get_num_threads(), torch.is_grad_enabled(),
            str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()]
before, loaded = settings(), set(sys.modules)
import sparsehyper, sparsehyper.analysis, sparsehyper.lab.data, sparsehyper.training
import sparsehyper.lab.report, sparsehyper.lab.runs, sparsehyper.lab.bench
loaded = sorted(set(sys.modules) - loaded)
print(json.dumps({"loaded": loaded, "unchanged": settings() == before}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["unchanged"]
    assert not OPTIONAL & {name.split(".")[0] for name in found["loaded"]}
    assert not SLOW & set(found["loaded"])


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_module_begins_with_what_it_is_and_leaves_stdout_to_the_commands(file):
    tree = ast.parse(file.read_text("utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and file.parent != ROOT / "lab" / "cli"
        ):
            where = {ast.unparse(k.value) for k in node.keywords if k.arg == "file"}
            assert where == {"sys.stderr"}, f"line {node.lineno} prints"


def test_the_public_names_are_all_there_and_documented():
    assert sparsehyper.__all__ == sorted(sparsehyper.__all__)
    for name in sparsehyper.__all__:
        assert getattr(sparsehyper, name).__doc__
