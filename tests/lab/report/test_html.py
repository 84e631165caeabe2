"""The file: whole in itself, and with nothing in it that is taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from sparsehyper.lab.report.html import write_html

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> & \u2028\u2029"


class Page(HTMLParser):
    """The elements of a page: tag, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def all(self, tag):
        return [(attributes, "".join(text)) for t, attributes, text in self.elements if t == tag]


def run(name="run", task="0-1"):
    """Description of a baseline that was not evaluated, the smallest that a run can have."""
    return {
        "kind": "run",
        "name": name,
        "config": {"method": {"kind": "experts"}, "resolved": {"numel": 3}},
        "tasks": [{"name": task, "classes": ["a", "b"]}],
        "evaluation": None,
    }


@pytest.fixture
def write(tmp_path):
    def call(*described):
        write_html(described, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return call


def test_names_are_no_markup(write):
    described = [run(HOSTILE, HOSTILE), run()]
    text = write(*described)
    page = Page(text)
    ((_, title),) = page.all("title")
    shown = HOSTILE.replace("\u2028\u2029", r"\u2028\u2029")
    assert title.strip() == f"{shown}, run · sparsehyper report"
    (attributes, data), (_, script) = page.all("script")
    assert attributes == {"type": "application/json", "id": "data"}
    assert json.loads(data) == described
    assert not re.search(r"[<>&\u2028\u2029]", data)
    assert "alert" not in script
    assert not page.all("img")


def test_nothing_is_fetched_and_nothing_else_runs(write):
    text = write(run())
    assert set(re.findall(r"\w+://[^\s\"'`<]*", text)) == {"http://www.w3.org/2000/svg"}
    page = Page(text)
    assert not [e for e in page.elements if {"src", "style", "onclick", "onload"} & e[1].keys()]
    (policy,) = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = hashlib.sha256(own.encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_scripts_make_no_markup_of_strings(write):
    (_, script) = Page(write(run())).all("script")[-1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", script)


def test_what_cannot_be_shown(tmp_path):
    with pytest.raises(ValueError, match="`described` must have something to show, got nothing"):
        write_html([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_html([{**run(), "loss": float("nan")}], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
