from __future__ import annotations

import base64
import json
import statistics
from pathlib import Path

import pytest

from sparsehyper.lab.report.results import describe_results

DOCS = Path(__file__).parents[3] / "docs" / "results"


def recorded(name):
    return json.loads((DOCS / name / "results.json").read_text())


def test_a_comparison():
    found, results = describe_results(DOCS / "digits"), recorded("digits")
    assert json.loads(json.dumps(found, allow_nan=False))["name"] == "digits"
    assert (found["kind"], found["config"]) == ("comparison", results["config"])
    points = found["by_budget"][0]["rows"]
    assert [p["mean"] for p in points] == [row["accuracy"]["mean"] for row in results["rows"]]
    assert points[0]["colour"] == "#D55E00"
    assert len(found["tables"][0][2]) == len(results["rows"])
    assert "score" not in results  # they are from before there was another
    assert found["score"] == "accuracy"


def test_a_comparison_of_numbers(tmp_path):
    results = {**recorded("digits"), "score": "R²"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = describe_results(tmp_path)
    assert found["score"] == "R²"
    assert found["tables"][0][1][2:4] == ["R²", "worst task R²"]


def test_a_study_of_claims():
    found, results = describe_results(DOCS / "new-tasks"), recorded("new-tasks")
    assert found["claims"] == results["claims"]
    assert [f["name"] for f in found["by_shots"]["families"]] == list(results["study"]["families"])
    line = found["by_shots"]["families"][0]["lines"][0]
    assert line["method"] == "sparse linear"
    assert line["mean"][0] == statistics.fmean(results["rows"][0]["accuracy"])
    assert len(found["tables"]) == len(results["study"]["families"])


def test_the_study_of_the_typology():
    found, results = describe_results(DOCS / "typology"), recorded("typology")
    assert (found["claims"], found["by_shots"]) == ([], None)
    budgets = found["by_budget"][1]["rows"]
    assert [p["ratio"] for p in budgets] == [row["parameters"] for row in results["budgets"]]
    assert len({p["colour"] for p in budgets}) == 2


def test_a_study_with_a_picture_of_its_own():
    found = describe_results(DOCS / "interpolation")
    assert found["question"].startswith("What lies between")
    kind, _, data = found["picture"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).startswith(b"<?xml")
    assert describe_results(DOCS / "typology")["picture"] is None


def test_what_is_no_directory_of_results(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`runs` '.*nowhere' is not the directory of a run"
    ):
        describe_results(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"`runs` '.*bench' holds results of another kind; give"):
        describe_results(DOCS / "bench")
    for text in ("[", "[" * 10**5, '{"study": {}, "name": "compare"}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results\.json is damaged"):
            describe_results(tmp_path)
