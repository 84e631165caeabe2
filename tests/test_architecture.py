"""The import table of the design, the packages each half may use, and what an import may do."""

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

# Who may import whom: cli → report, experiments, bench → training, adaptation → hypernetwork →
# generators, conditioning, target → sparse. Every part may use the helpers.
HELPERS = {"_checks", "_extras", "_files", "_random", "_text"}
PARTS = {
    *("generators", "conditioning", "target", "sparse"),
    *("initialisation", "layout", "modules", "norm_statistics", "replicas", "unpacking"),
}
CORE = {*PARTS, "adapters", "_persistence", "mixing", "hypernetwork"}
MAY_IMPORT = {
    "_checks": set(),
    "_extras": set(),
    "_files": set(),
    "_random": set(),
    "_text": set(),
    "sparse": set(),
    "initialisation": set(),
    "generators": {"sparse", "layout"},
    "conditioning": set(),
    "layout": set(),
    "unpacking": {"sparse"},
    "modules": {"layout"},
    "norm_statistics": {"layout"},
    "replicas": set(),
    "target": {
        *("initialisation", "layout", "modules", "norm_statistics"),
        *("replicas", "sparse", "unpacking"),
    },
    "adapters": {"modules"},
    "mixing": {"modules", "target"},
    "_persistence": {"generators", "conditioning"},
    "hypernetwork": {*PARTS, "adapters", "mixing", "_persistence"},
    "recurrent": {"conditioning", "hypernetwork"},
    "__init__": {
        *("sparse", "generators", "conditioning", "hypernetwork"),
        *("adaptation", "recurrent"),
    },
    "analysis": CORE,
    "data": CORE,
    "training": CORE,
    "adaptation": CORE,
    "report": set(),
    "experiments": {*CORE, "data", "training", "adaptation", "analysis"},
    "bench": {*CORE, "training", "adaptation"},
    "cli": {*CORE, "data", "training", "adaptation", "analysis", "experiments", "bench", "report"},
    "__main__": {"cli"},
}
LIBRARY_HALF = {*HELPERS, *CORE, "recurrent", "adaptation", "analysis", "__init__"}
OPTIONAL = {
    *("PIL", "pyarrow", "datasets", "sklearn", "scipy", "onnx", "onnxscript"),
    *("accelerate", "filelock", "rich", "typer", "matplotlib", "tensorboard", "optuna"),
}


def part(file: Path) -> str:
    """The part of the package a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all modules a file imports, at any level of nesting."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            if node.module == "sparsehyper":
                yield from (f"sparsehyper.{alias.name}" for alias in node.names)
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
        top, _, inner = name.partition(".")
        if top == "sparsehyper":
            there = inner.split(".")[0]
            assert there in {here, *MAY_IMPORT[here], *HELPERS}, f"{here} may not import {there}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if part(f) in LIBRARY_HALF], ids=lambda f: str(f.relative_to(ROOT))
)
def test_the_library_half_needs_torch_numpy_and_safetensors_only(file):
    allowed = {"sparsehyper", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(file)} <= allowed


def test_importing_loads_no_optional_package_and_changes_no_setting():
    script = """
import json, sys, torch
def settings():
    return [torch.get_rng_state().sum().item(), torch.get_num_threads(), torch.is_grad_enabled(),
            str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()]
before, loaded = settings(), set(sys.modules)
import sparsehyper, sparsehyper.analysis, sparsehyper.data, sparsehyper.training
import sparsehyper.report, sparsehyper.experiments, sparsehyper.bench
loaded = sorted({name.split(".")[0] for name in set(sys.modules) - loaded})
print(json.dumps({"loaded": loaded, "unchanged": settings() == before}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["unchanged"]
    assert not OPTIONAL & set(found["loaded"])


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_module_begins_with_what_it_is_and_leaves_stdout_to_the_commands(file):
    tree = ast.parse(file.read_text("utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and part(file) != "cli"
        ):
            where = {ast.unparse(k.value) for k in node.keywords if k.arg == "file"}
            assert where == {"sys.stderr"}, f"line {node.lineno} prints"


def test_the_public_names_are_all_there_and_documented():
    assert sparsehyper.__all__ == sorted(sparsehyper.__all__)
    for name in sparsehyper.__all__:
        assert getattr(sparsehyper, name).__doc__
