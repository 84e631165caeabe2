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
from sparsehyper.lab.report import tables
from sparsehyper.lab.report.plots import STYLES, styles
from sparsehyper.lab.report.studies import REPORTS, StudyReport, new_tasks, typology
from sparsehyper.lab.report.studies.pages import deviation


def describe_results(directory: str | PathLike[str]) -> dict[str, Any]:
    """Read the results of a comparison or of a study.

    Args:
        directory: that ``results.json`` is in.

    Returns:
        A JSON-ready dict: ``kind`` (``"comparison"`` or ``"study"``), ``name`` of the directory,
        ``config``, ``machine``, ``tables`` (title, columns, rows) and ``by_budget`` (pictures of
        accuracy against trainable parameters: ``title`` and ``rows`` of ``method``, ``ratio``,
        ``mean``, ``sd``, ``colour``, ``marker``); of a comparison also ``results``; of a study also
        its ``question`` and ``method``, its ``claims``, ``by_shots`` (accuracy on new tasks:
        ``shots`` and ``families``) and, where it is neither by budget nor by shots, its
        ``picture``, a PNG as a data URL.

    Raises:
        FileNotFoundError: there are none.
        MissingExtraError: matplotlib is not installed, and a picture needs it.
        ValueError: the file is damaged, or holds other results.
    """
    path = Path(directory) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`runs` {str(directory)!r} is no directory of a run (config.json), and none of a "
            "comparison or a study (results.json)"
        )
    results = parse_json(read_file(path), path)
    name = path.parent.resolve().name
    try:
        if isinstance(results, dict) and {"config", "rows", "numel", "tasks"} <= results.keys():
            return {"name": name, **_comparison(results)}
        if isinstance(results, dict) and "study" in results and results.get("name") in [*REPORTS]:
            return {"name": name, **_study(results)}
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
        "config": results["config"],
        "machine": results["machine"],
        "results": {k: v for k, v in results.items() if k not in ("config", "machine")},
        "tables": [("Methods", tables.COLUMNS, tables.table_rows(results))],
        "by_budget": [{"title": "", "rows": points}],
    }


def _study(results: Mapping[str, Any]) -> dict[str, Any]:
    study = results["name"]
    report = REPORTS[study]
    by_shots = _by_shots(results) if study == "new-tasks" else None
    by_budget = _budgets(study, results)
    return {
        "kind": "study",
        "question": report.question,
        "method": report.method,
        "config": results["study"],
        "machine": results["machine"],
        "seconds": results["seconds"],
        "tables": report.tables(results),
        "claims": results.get("claims", []),
        "by_shots": by_shots,
        "by_budget": [{"title": title, "rows": _points(rows)} for title, rows in by_budget],
        "picture": None if by_shots or by_budget else _picture(report, results),
    }


def _picture(report: StudyReport, results: Mapping[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, report.picture)
        report.draw(results, path)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _budgets(study: str, results: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Titles of pictures of accuracy against budget, and their rows."""
    if study == "typology":
        return [(title, results[part]) for part, title in typology.TITLES.items()]
    if study == "compare":
        rows = results["rows"]
        return [(f, [r for r in rows if r["family"] == f]) for f in results["study"]["sets"]]
    return []


def _points(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What stands after the comma of a method without a style of its own sets its points apart."""
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


def _by_shots(results: Mapping[str, Any]) -> dict[str, Any]:
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    # Those that the picture of the study has; the tables have all.
    drawn = [row for row in results["rows"] if row["method"] in new_tasks.LINES]
    for row in drawn:
        colour, marker, dash = new_tasks.LINES[row["method"]]
        style = {**_style((colour, marker)), "dashed": dash != "-"}
        own = lines.setdefault(row["family"], {}).setdefault(
            row["method"], {"method": row["method"], "mean": [], "sd": [], **style}
        )
        own["mean"].append(statistics.fmean(row["accuracy"]))
        own["sd"].append(deviation(row["accuracy"]))
    return {
        "shots": ["all" if s is None else str(s) for s in results["study"]["shots"]],
        "families": [{"name": name, "lines": list(own.values())} for name, own in lines.items()],
    }


def _style(style: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("colour", "marker"), style, strict=True))
