"""The README and the pages of docs: their code, commands and links work as written."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from sparsehyper.lab.cli.app import app, run
from sparsehyper.lab.cli.options import experiment_from
from sparsehyper.lab.runs import load_run, parse_method

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {  # by name, such as "README" and "how-to/data"
    str(path.relative_to(folder).with_suffix("")): path.read_text("utf-8")
    for folder, pages in ((ROOT, ROOT.glob("*.md")), (DOCS, sorted(DOCS.rglob("*.md"))))
    for path in pages
    if DOCS / "results" not in path.parents
}
BLOB = "https://github.com/sparsehyper/sparsehyper/blob/main/"
RAW = "https://raw.githubusercontent.com/sparsehyper/sparsehyper/main/"
# Pages whose code is run by a test of their own.
APART = {"README", "command-line", "benchmarks", "tutorial"}


def run_code(page: str) -> dict:
    """The names that the Python blocks of a page leave, run in one namespace, top to bottom."""
    names: dict = {"__name__": page}
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        exec(block, names)
    return names


def test_the_readme_s_python_trains_the_reader_s_module():
    model = run_code("README")["model"]
    assert type(model) is torch.nn.Sequential
    x = torch.randn(500, 10)
    y = 2 * x.sum(1, keepdim=True)  # the second site's
    assert torch.nn.functional.mse_loss(model(x), y) < 0.1 * y.var()


@pytest.mark.parametrize("page", sorted(p for p in PAGES if "```python" in PAGES[p]))
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    if page in APART:
        pytest.skip("run by a test of its own")
    monkeypatch.chdir(tmp_path)
    assert len(run_code(page)) > 1


def test_the_tutorial_leads_from_folders_to_exported_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, last = re.findall(r"```python\n(.*?)```", PAGES["tutorial"], re.DOTALL)
    exec(first, {})
    shown = {}
    for command in re.findall(r"^    sparsehyper (.*)$", PAGES["tutorial"], re.MULTILINE):
        assert run([*shlex.split(command), *(["--quiet"] if "train" in command else [])]) == 0
        shown[command.split()[0]] = capsys.readouterr().out
    assert float(re.search(r"mean\W+([\d.]+)%", shown["evaluate"])[1]) > 95
    assert "digit 9" in shown["predict"]
    exec(last, {})
    probabilities = ast.literal_eval(capsys.readouterr().out)
    assert list(probabilities) == ["digit 0", "digit 1"]
    assert sum(probabilities.values()) == pytest.approx(1)


def test_the_kernels_can_be_asked_for(capsys):
    (command,) = re.findall(r"^    sparsehyper (doctor)$", PAGES["benchmarks"], re.MULTILINE)
    assert run([command]) == 0
    assert "kernels:\n  cpu: there" in capsys.readouterr().out


def test_the_page_s_target_classifies_images():
    target = run_code("command-line")["net"]((3, 16, 20), 5)
    assert target(torch.randn(2, 3, 16, 20)).shape == (2, 5)


def test_the_commands_train_on_a_folder_of_images(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for task in ("front", "back"):
        for shade, name in ((70, "good"), (180, "scratched")):
            (tmp_path / "FOLDER" / task / name).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(shade - 50, shade + 50, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "FOLDER" / task / name / f"{i}.webp")
    (tmp_path / "FOLDER" / "back").rename(tmp_path / "HATS")
    shutil.copytree(tmp_path / "FOLDER" / "front", tmp_path / "FOLDER" / "side")
    monkeypatch.chdir(tmp_path)
    page = PAGES["command-line"].split("## What can be chosen")[0]
    images, tables = page.split("## Train on a table")  # tests/lab/cli/test_table.py has these
    section = images + tables.split("## Learn a new task")[1]
    commands = re.findall(r"^    sparsehyper (.*)$", section, re.MULTILINE)
    kinds = ["train", "evaluate", "inspect", "report", "adapt", "predict", "export", "tasks"]
    assert [c.split()[0] for c in commands] == kinds
    for command in commands:
        arguments = shlex.split(command.partition("#")[0])
        if arguments[0] == "train":
            arguments += ["--steps", "30", "--batch-size", "8", "--eval-every", "10", "--quiet"]
        if arguments[0] == "adapt":
            arguments += ["--seconds", "3"]
        assert run(arguments) == 0, capsys.readouterr().err
    model = load_run("runs/shop").materialize("front")
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 2)
    shown = capsys.readouterr().out
    assert "front" in shown
    assert "per generated parameter" in shown


def anchor(heading: str) -> str:
    """The anchor of a heading on GitHub, and on the site."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    file = (ROOT if page.isupper() else DOCS) / f"{page}.md"
    links = re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", PAGES[page])
    links += re.findall(rf"({BLOB}[^)#\s]*)(#([^)\s]+))?", PAGES[page])
    for name, _, place in links:
        here = ROOT if name.startswith(BLOB) else file.parent
        there = (here / name.removeprefix(BLOB)).resolve() if name else file
        assert there.exists(), name
        if place:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), f"{name}#{place}"


def test_the_links_of_the_readme_work_on_other_sites():
    text = PAGES["README"]
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
    labels = re.findall(r"^\[(.*)\]: https://", text, re.MULTILINE)
    assert labels
    assert set(re.findall(r"\]\[([^\]]+)\]", text)) <= set(labels)


def test_the_pictures_of_the_readme_have_an_address_that_other_sites_can_show():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGES["README"])
    assert pictures
    for picture in pictures:
        assert picture.startswith(RAW)
        assert (ROOT / picture.removeprefix(RAW)).is_file()


def test_the_site_has_every_page():
    pages = set(re.findall(r"[\w/-]+(?=\.md$)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert pages == {page for page in PAGES if not page.isupper()}


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_narrow(page):
    code = False
    for line in PAGES[page].splitlines():
        code ^= line.startswith("```")
        width = 88 if code else 100
        assert len(line) <= width or re.match(r"\||!\[|\[\S+\]: \S+$", line), line


@pytest.mark.parametrize(
    "target", ["demo", "test", "test-oldest", "check", "docs", "faults", "sanitize"]
)
def test_the_make_targets_exist(target):
    assert f"make {target}" in PAGES["README"] + PAGES["architecture"] + PAGES["CONTRIBUTING"]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def comparisons() -> list[str]:
    """Every comparison that the pages and the Makefile name, as a line."""
    text = "".join([*PAGES.values(), (ROOT / "Makefile").read_text()]).replace("\\\n", " ")
    return re.findall(r"sparsehyper (compare --out [^#\n`]*)", text)


@pytest.mark.parametrize("line", comparisons())
def test_the_comparisons_are_understood(line):
    command = typer.main.get_command(app).commands["compare"]
    context = command.make_context("compare", shlex.split(line)[1:])
    options = context.params
    experiment = experiment_from({**options, "seed": 0}, {"kind": "sparse"})
    assert experiment.training.steps == options["steps"]
    for method in options["method"] or []:
        parse_method(method)


def test_there_are_comparisons():
    assert len(comparisons()) == 7
