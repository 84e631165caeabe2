from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sparsehyper.lab.runs import COMPARED, compare, run_experiment
from sparsehyper.training import RunInUseError
from sparsehyper.training.directory import lock


@pytest.fixture(scope="module")
def small(experiment):
    # A target large enough for a chunked generator to meet a budget of 4.
    return replace(experiment, target="mlp:64", base="zeros")


@pytest.fixture(scope="module")
def compared(small, tmp_path_factory):
    """Directory and results of a finished comparison; do not change them."""
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(small, out, budgets=[0.1, 4], seeds=[0, 1], quiet=True)


def test_a_row_for_each_method_and_budget(compared):
    rows = compared[1]["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("sparse", 0.1),
        ("sparse", 4),
        ("chunked", 4),
        ("dense", None),
        ("experts", None),
        ("shared_trunk", None),
    ]
    for row in rows:
        assert row["seeds"] == [0, 1]
        assert row["steps"] == 4
        assert row["step_ms"] > 0
        assert 50 < row["peak_memory_mb"] < 2000
        accuracies = [sum(tasks.values()) / len(tasks) for tasks in row["accuracies"].values()]
        assert row["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert row["accuracy"]["sd"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
        worst = row["worst_task"]
        per_task = [
            sum(tasks[name] for tasks in row["accuracies"].values()) / 2
            for name in row["accuracies"]["0"]
        ]
        assert worst["accuracy"] == pytest.approx(min(per_task))


def test_budgets_are_matched(compared):
    results = compared[1]
    ratio = {r["method"]: r["parameters_per_target_parameter"] for r in results["rows"]}
    assert results["numel"] == 4290
    assert ratio["sparse"] == pytest.approx(4, abs=0.1)
    assert 3.5 < ratio["chunked"] <= 4.01  # in steps of whole chunks
    assert ratio["dense"] == pytest.approx(8, abs=0.1)
    assert ratio["experts"] == 5


def test_a_budget_out_of_reach_is_skipped_with_the_reason(compared):
    skipped = compared[1]["skipped"]
    assert [(row["method"], row["budget"]) for row in skipped] == [("chunked", 0.1)]
    assert "`budget` must be at least" in skipped[0]["reason"]


def test_what_is_written(compared):
    out, results = compared
    assert json.loads((out / "results.json").read_text()) == results
    assert {path.name for path in (out / "runs").iterdir()} == {
        f"{name}-{seed}"
        for name in ("sparse-0.1N", "sparse-4N", "chunked-4N", "dense", "experts", "shared_trunk")
        for seed in (0, 1)
    }
    assert not list(out.glob(".tasks-*"))
    assert results["config"]["methods"] == list(COMPARED)
    assert results["config"]["target"] == "mlp:64"
    assert results["machine"]["cpu"]
    assert results["score"] == "accuracy"


def test_finished_runs_are_not_repeated(small, compared, monkeypatch):
    out, results = compared
    monkeypatch.setattr("multiprocessing.Pipe", None)
    assert compare(small, out, budgets=[0.1, 4], seeds=[0, 1], quiet=True) == results


def test_baselines_have_their_own_last_layers(small, tmp_path):
    solved = replace(small, head="ridge", base="residual")
    how = {"methods": ["sparse", "experts"], "budgets": [4], "seeds": [0], "quiet": True}
    results = compare(solved, tmp_path, **how)
    assert results["failures"] == []
    assert compare(solved, tmp_path, **how) == results
    assert results["rows"][1]["parameters_per_target_parameter"] == 5


def test_another_comparison_in_the_same_place(small, compared):
    for changed in (
        replace(small, batch_size=10),
        replace(small, training=replace(small.training, steps=6)),
    ):
        with pytest.raises(ValueError, match=r"other settings: its `(batch_size|training\.st)"):
            compare(changed, compared[0], seeds=[0], quiet=True)
    # Even if it has no run yet.
    other = replace(small, target="mlp:32")
    with pytest.raises(ValueError, match=r"the comparison in .*: its `target` is 'mlp:64', got"):
        compare(other, compared[0], methods=["sparse:growth=3"], budgets=[], quiet=True)


def test_one_at_a_time(small, tmp_path):
    held = lock(tmp_path)
    with pytest.raises(RunInUseError, match="in use by another process"):
        compare(small, tmp_path, seeds=[0], quiet=True)
    held.release()


def test_a_failed_run_does_not_stop_the_others(small, tmp_path, capsys):
    training = replace(small.training, lr=1e38, clip=None, optimizer="sgd")
    wild = replace(small, training=training)
    results = compare(wild, tmp_path, methods=["dense", "experts"], seeds=[0])
    assert len(results["rows"]) + len(results["failures"]) == 2
    failure = results["failures"][0]
    assert (failure["method"], failure["seed"]) == ("dense", 0)
    assert "at step 2" in failure["error"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "[2/2] experts-0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": ["sparse", "sparse"]},
            r"`methods` must be a list of different ones, got \['sp",
        ),
        ({"methods": "sparse"}, "`methods` must be a list of different ones, got 'sparse'"),
        ({"seeds": [1, 1]}, r"`seeds` must be a list of different ones, got \[1, 1\]"),
        ({"budgets": [4, 4]}, r"`budgets` must be a list of different ones, got \[4, 4\]"),
        ({"seeds": [-1]}, "`seeds` must be at least 0, got -1"),
        ({"seeds": []}, r"there is nothing to run: `seeds` is \[\]"),
        ({"methods": ["dance"]}, "`method` must be one of .*; got 'dance'"),
        ({"methods": ["sparse"], "budgets": [-2]}, "`budget` must be greater than 0, got -2"),
        ({"methods": ["chunked"], "budgets": [0.1]}, "nothing to run: .*`budget` must be at least"),
    ],
)
def test_errors_before_anything_runs(small, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(small, tmp_path / "out", quiet=True, **changes)
    assert not (tmp_path / "out").exists()


def test_every_process_builds_its_target_once(small, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(
        "import os\n"
        "from sparsehyper.lab.runs import build_target\n"
        "def net(image_shape, n_classes):\n"
        f"    with open({str(tmp_path / 'builds')!r}, 'a') as file:\n"
        "        print(os.getpid(), file=file)\n"
        "    return build_target('mlp:64', image_shape, n_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    counted = replace(small, target="counting:net")
    run_experiment(counted, tmp_path / "run", quiet=True)
    assert len((tmp_path / "builds").read_text().split()) == 1
    (tmp_path / "builds").unlink()
    methods = ["sparse", "chunked", "dense", "shared_trunk"]
    compare(counted, tmp_path / "out", methods=methods, seeds=[0], quiet=True)
    builds = (tmp_path / "builds").read_text().split()
    assert len(builds) == len(set(builds)) == 1 + len(methods)


def test_batches_that_do_not_fit_are_found_before_anything_runs(small, tmp_path):
    with pytest.raises(ValueError, match=r"`tasks_per_batch` must be at most the 5 tasks .*got 6"):
        compare(replace(small, tasks_per_batch=6), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
