"""What the HTML report shows of a comparison or a study, from its ``results.json``."""

from __future__ import annotations

import base64
import statistics
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from sparsehyper._util.files import parse_json, read_file
from sparsehyper.lab.plots import STYLES, scored_as, styles
from sparsehyper.lab.report import tables
from sparsehyper.lab.studies import STUDIES, Study
from sparsehyper.lab.studies.pages import deviation


def describe_results(directory: str | PathLike[str]) -> dict[str, Any]:
    """Read the results of a comparison or of a study.

    Args:
        directory: where ``results.json`` is.

    Returns:
        A JSON-ready dict: ``kind`` (``"comparison"`` or ``"study"``), ``name`` of the directory,
        ``config``, ``machine``, ``tables`` (title, columns, rows) and ``by_budget`` (pictures of
        accuracy against trainable parameters: ``title`` and ``rows`` of ``method``, ``ratio``,
        ``mean``, ``sd``, ``colour``, ``marker``). A comparison also has its ``results`` and their
        ``score``, ``"accuracy"`` or ``"R²"``. A study also has its ``question``, ``method``,
        ``command`` and ``claims``, its ``by_shots``, as `Study.by_shots` returns it, and, where it
        is shown neither by budget nor by shots, its ``picture``, an SVG as a data URL.

    Raises:
        FileNotFoundError: there are no results.
        MissingExtraError: matplotlib is not installed, and a picture needs it.
        ValueError: the file is damaged, or holds other results.
    """
    path = Path(directory) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`runs` {str(directory)!r} is not the directory of a run (config.json), a "
            "comparison or a study (results.json)"
        )
    results = parse_json(read_file(path), path)
    name = path.parent.resolve().name
    try:
        if isinstance(results, dict) and {"config", "rows", "numel", "tasks"} <= results.keys():
            return {"name": name, **_comparison(results)}
        if isinstance(results, dict) and "study" in results and results.get("name") in [*STUDIES]:
            return {"name": name, **_study(STUDIES[results["name"]], results)}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    raise ValueError(
        f"`runs` {str(directory)!r} holds results of another kind; give a directory of train, "
        "adapt, compare or study"
    )


def _comparison(results: Mapping[str, Any]) -> dict[str, Any]:
    found = styles(row["method"] for row in results["rows"])
    points = [
        {
            "method": row["method"],
            "ratio": row["parameters_per_target_parameter"],
            **row["accuracy"],
            **_style(found[row["method"]]),
        }
        for row in results["rows"]
    ]
    return {
        "kind": "comparison",
        "score": scored_as(results),
        "config": results["config"],
        "machine": results["machine"],
        "results": {k: v for k, v in results.items() if k not in ("config", "machine")},
        "tables": [("Methods", tables.table_columns(results), tables.table_rows(results))],
        "by_budget": [{"title": "", "rows": points}],
    }


def _study(study: type[Study], results: Mapping[str, Any]) -> dict[str, Any]:
    by_shots, by_budget = study.by_shots(results), study.by_budget(results)
    return {
        "kind": "study",
        "question": study.question,
        "method": study.method,
        "config": results["study"],
        "machine": results["machine"],
        "command": results["command"],
        "seconds": results["seconds"],
        "tables": study.tables(results),
        "claims": results.get("claims", []),
        "by_shots": by_shots,
        "by_budget": [{"title": title, "rows": _points(rows)} for title, rows in by_budget],
        "picture": None if by_shots or by_budget else _picture(study, results),
    }


def _picture(study: type[Study], results: Mapping[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, study.picture)
        study.draw(results, path)
        return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _points(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as points; methods without a style of their own have that of the text before a comma."""
    family = [m if m in STYLES else m.partition(",")[0] for m in (row["method"] for row in rows)]
    found = styles(family)
    return [
        {
            "method": row["method"],
            "ratio": row["parameters"],
            "mean": statistics.fmean(row["accuracy"]),
            "sd": deviation(row["accuracy"]),
            **_style(found[of]),
        }
        for row, of in zip(rows, family, strict=True)
    ]


def _style(style: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("colour", "marker"), style, strict=True))
