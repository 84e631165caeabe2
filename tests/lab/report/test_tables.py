from __future__ import annotations

import io

from rich.console import Console

from sparsehyper.lab.report.tables import rich_table, table_columns, table_rows

ROW = {
    "method": "sparse",
    "budget": 4.0,
    "accuracy": {"mean": 0.98765, "sd": 0.0012},
    "worst_task": {"name": "1-8", "accuracy": 0.9},
    "trainable_parameters": 66_111,
    "parameters_per_target_parameter": 3.957,
    "step_ms": 4.25,
    "peak_memory_mb": 299.6,
}
SINGLE = {
    **ROW,
    "method": "dense",
    "budget": None,
    "accuracy": {"mean": 0.5, "sd": None},
    "step_ms": None,
}
RESULTS = {"rows": [ROW, SINGLE]}


def test_cells():
    first, second = table_rows(RESULTS)
    assert first == [
        "sparse", "4", "98.77 ± 0.12", "90.00 (1-8)", "66,111", "3.96", "4.2", "300",
    ]  # fmt: skip
    assert second[:3] == ["dense", "–", "50.00"]
    assert second[6] == "–"


def test_columns_of_results_without_a_score_are_of_accuracies():
    assert table_columns(RESULTS)[2:4] == ["accuracy %", "worst task %"]


def test_r_squared_is_no_percentage():
    worst = {"name": "003", "accuracy": -1.0094}
    results = {"score": "R²", "rows": [{**ROW, "worst_task": worst}, SINGLE]}
    assert table_columns(results)[2:4] == ["R²", "worst task R²"]
    first, second = table_rows(results)
    assert first[2:4] == ["0.988 ± 0.001", "−1.009 (003)"]
    assert second[2] == "0.500"
    out = io.StringIO()
    Console(file=out, width=80).print(rich_table(results))
    assert "%" not in out.getvalue()


def test_names_of_tasks_are_no_markup():
    row = {**ROW, "worst_task": {"name": "[red] a|b :smile:", "accuracy": 0.9}}
    out = io.StringIO()
    Console(file=out, width=120).print(rich_table({"rows": [row]}))
    assert "90.00 ([red] a|b :smile:)" in out.getvalue()


def test_rich():
    out = io.StringIO()
    Console(file=out, width=80).print(rich_table({"rows": [{**ROW, "method": "shared_trunk"}]}))
    line = " ".join(out.getvalue().splitlines()[-1].split())
    assert line == "shared_trunk 4 98.77 ± 0.12 90.00 (1-8) 66,111 3.96 4.2 300"
