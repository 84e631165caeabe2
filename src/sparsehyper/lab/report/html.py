"""One self-contained HTML file that shows runs, comparisons and studies.

The page holds what it shows as JSON, which ``page/*.js`` draws. Names are text everywhere: neither
this module nor the page makes markup of them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from string import Template
from typing import Any

from sparsehyper._util.text import printable

_SCRIPTS = (
    *("dom.js", "charts.js", "figure.js", "shell.js", "run.js", "pictures.js"),
    *("results.js", "claims.js", "main.js"),
)

# Characters that could end the element of the JSON, begin another, or break a line of a script.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_html(described: Sequence[Mapping[str, Any]], path: str | PathLike[str]) -> None:
    """Write the page.

    Args:
        described: what `sparsehyper.lab.runs.describe_run` and `describe_results` return; several
            become tabs.
        path: file to write; an existing one is overwritten.

    Raises:
        ValueError: there is nothing to show, or a number is not finite.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "report.html"
    >>> write_html([{"kind": "study", "name": "<b>", "question": "", "method": "", "config": {},
    ...              "machine": {}, "seconds": 1, "tables": [], "claims": [], "by_shots": None,
    ...              "by_budget": [], "picture": None}], file)
    >>> "<b>" in file.read_text(encoding="utf-8")
    False
    """
    if not described:
        raise ValueError("`described` must have something to show, got nothing")
    page = resources.files("sparsehyper.lab.report") / "page"
    style = (page / "page.css").read_text("utf-8")
    script = "\n".join((page / name).read_text("utf-8") for name in _SCRIPTS)
    data = json.dumps(list(described), allow_nan=False, separators=(",", ":"))
    names = ", ".join(printable(one["name"]) for one in described)
    text = Template((page / "page.html").read_text("utf-8")).substitute(
        title=html.escape(f"{names} · sparsehyper report"),
        style=style,
        style_hash=_digest(style),
        script=script,
        script_hash=_digest(script),
        data=data.translate(_ESCAPES),
    )
    Path(path).write_text(text, encoding="utf-8")


def _digest(text: str) -> str:
    """The hash by which a content security policy allows a style or script in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
