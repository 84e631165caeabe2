from __future__ import annotations

import json

from helpers.command_line import QUICK
from helpers.sites import write_sites


def test_prints_a_table_and_writes_results_and_the_picture(command, tmp_path):
    arguments = ["compare", "--out", tmp_path / "c", *QUICK, "--seeds", 2]
    arguments += ["--method", "sparse", "--method", "experts", "--budget", 2, "--budget", 4]
    done = command(*arguments)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "c" / "results.json").read_text())
    assert [(row["method"], row["budget"]) for row in results["rows"]] == [
        ("sparse", 2.0),
        ("sparse", 4.0),
        ("experts", None),
    ]
    for row in results["rows"]:
        assert f"{100 * row['accuracy']['mean']:.2f}" in done.out
        assert f"{row['trainable_parameters']:,}" in done.out
    picture = (tmp_path / "c" / "accuracy_vs_budget.svg").read_text()
    assert "trainable parameters" in picture

    again = command(*arguments, "--json")
    assert json.loads(again.out)["rows"] == results["rows"]


def test_numbers_are_compared_by_r_squared(command, tmp_path):
    table = write_sites(tmp_path / "sites.csv", range(3), 20)
    data = ["--data", table, "--task-column", "site", "--target-column", "price", "--seeds", 1]
    done = command("compare", "--out", tmp_path / "c", *data, *QUICK, "--method", "experts")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "c" / "results.json").read_text())
    assert results["score"] == "R²"
    shown = f"{results['rows'][0]['accuracy']['mean']:.3f}".replace("-", "−")
    assert f" {shown} " in done.out
    assert "R²" in done.out
    assert "%" not in done.out
    picture = (tmp_path / "c" / "accuracy_vs_budget.svg").read_text()
    assert "mean test R²" in picture
    assert "mean test accuracy" not in picture


def test_a_run_that_fails_is_reported_and_exits_1(command, tmp_path):
    done = command(
        "compare", "--out", tmp_path / "c", *QUICK, "--seeds", 1, "--method", "dense",
        "--optimizer", "sgd", "--lr", 1e30, "--clip", 0,
    )  # fmt: skip
    assert done.code == 1
    assert "failed: dense, seed 0" in done.err
    assert str(tmp_path / "c" / "results.json") in done.out
    assert ".svg" not in done.out


def test_a_fresh_target_is_not_pretrained(command, tmp_path):
    done = command("compare", "--out", tmp_path / "c", *QUICK, "--base", "pretrained")
    assert done.code == 2
    assert "`--base` 'pretrained' keeps the target's own values" in done.err
    assert not (tmp_path / "c").exists()
