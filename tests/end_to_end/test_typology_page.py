"""The page of the typology: its code runs, and its tables name every kind."""

from __future__ import annotations

import re
from pathlib import Path

import sparsehyper
from sparsehyper import adapters
from sparsehyper.conditioning import CONDITIONERS
from sparsehyper.generators import GENERATORS

PAGE = (Path(__file__).parents[2] / "docs" / "typology.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_code_runs_from_top_to_bottom():
    names: dict = {}
    for block in CODE:
        exec(block, names)
    assert names["outputs"].shape == (5, 12, 8)


def test_every_class_of_a_table_has_an_example():
    code = "\n".join(CODE)
    cells = [cell for line in PAGE.splitlines() if line.startswith("|") for cell in line.split("|")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)\(", cell)}
    theirs = {
        name for name in named if not hasattr(sparsehyper, name) and not hasattr(adapters, name)
    }
    assert theirs == {"hnet"}
    for name in named - theirs:
        assert f"{name}(" in code, name


def test_every_kind_stands_on_the_page():
    for kinds in (GENERATORS, CONDITIONERS):
        for kind in kinds.values():
            assert f"`{kind.__name__}(" in PAGE, kind
