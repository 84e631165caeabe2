"""From a table of sites to models of new sites, as a user would."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.command_line import QUICK
from helpers.sites import COLUMNS, write_sites
from sparsehyper.lab.data import Columns, read_table
from sparsehyper.lab.runs import build_target, load_run

OPTIONS = ["--task-column", "site", "--target-column", "price", *QUICK, "--steps", "80"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run of 12 sites, one of it with two more that have 6 rows each, and 30 others of these."""
    from sparsehyper.lab.cli.app import run

    root = tmp_path_factory.mktemp("sites")
    write_sites(root / "sites.csv", range(12), 25)
    write_sites(root / "new.csv", range(12, 14), 6, seed=1)
    write_sites(root / "more.csv", range(12, 14), 30, seed=2)
    data = ["--data", str(root / "sites.csv"), "--out", str(root / "run")]
    assert run(["train", *data, *OPTIONS]) == 0
    new = ["--data", str(root / "new.csv"), "--out", str(root / "more")]
    assert run(["adapt", str(root / "run"), *new]) == 0
    return root


def test_known_sites_are_learned(command, root):
    found = json.loads(command("evaluate", root / "run", "--json").out)
    assert found["score"] == "R²"
    assert found["accuracy"] > 0.5
    shown = command("evaluate", root / "run").out
    assert "R²" in shown
    assert "%" not in shown
    run = load_run(root / "run")
    assert run.experiment.head == "ridge"
    assert run.model.head.prior_noise.all()


def test_tasks_with_the_mean_embedding_are_near_none(command, root):
    rows = {
        row["task"]: row
        for row in json.loads(command("tasks", root / "more", "--json").out)["tasks"]
    }
    added = [name for name, row in rows.items() if row["origin"] == "head"]
    assert len(added) == 2
    for name, row in rows.items():
        assert (row["nearest"] is None) == (name in added)
        assert row["nearest"] not in added


def test_an_evaluation_of_a_file_names_it(command, root):
    shown = command("evaluate", root / "more", "--added", root / "more.csv").out
    assert "All of" in shown
    assert "more.csv" in shown
    assert "Test" not in shown


def test_a_run_goes_on(command, root, tmp_path):
    data = ("--data", root / "sites.csv", "--out", tmp_path / "run", *OPTIONS)
    assert command("train", *data, "--steps", 10).code == 0
    assert (
        command("train", "--out", tmp_path / "run", "--resume", "--steps", 20, "--quiet").code == 0
    )


def test_new_sites_of_few_rows_are_learned(command, root):
    done = command("evaluate", root / "more", "--added", root / "more.csv", "--json")
    found = json.loads(done.out)
    assert list(found["accuracies"]) == ["012", "013"]
    assert found["accuracy"] > 0.4
    rows = json.loads(command("tasks", root / "more", "--json").out)["tasks"]
    assert [(row["origin"], row["score"]) for row in rows[-2:]] == [("head", "R²")] * 2
    assert rows[-1]["measured"]["images"] == 6
    shown = command("tasks", root / "more").out
    assert "rows" in shown
    assert "images" not in shown


def test_r_squared_of_new_rows_is_stated_where_there_are_enough(command, root, tmp_path):
    write_sites(tmp_path / "new.csv", range(12, 13), 40, seed=1)
    write_sites(tmp_path / "more.csv", range(12, 13), 200, seed=2)
    new = ("adapt", root / "run", "--data", tmp_path / "new.csv", "--out")
    (row,) = json.loads(command(*new, tmp_path / "a", "--json").out)["tasks"]
    added = ("evaluate", tmp_path / "a", "--added", tmp_path / "more.csv", "--json")
    found = json.loads(command(*added).out)
    low, high = row["interval"]
    assert low < found["accuracy"] < high
    assert row["expected"] < row["accuracy"]
    assert row["expected"] == pytest.approx(found["accuracy"], abs=0.1)
    assert row["expected_error"] == pytest.approx(found["error"], rel=0.3)
    assert row["error"] < row["expected_error"]
    shown = command(*new, tmp_path / "b").out
    said = f"{row['expected']:.2f} ({low:.2f} to {high:.2f})"
    error = f"{row['expected_error']:.4g}"
    assert f"012: head; expect R² {said} of new rows, and to" in shown
    assert f"of new rows, and to be wrong by {error} in price typically." in shown
    assert "%" not in shown
    assert said in command("tasks", tmp_path / "b").out
    # One that is fitted to the rows has no rows left to tell.
    embedding = (*new, tmp_path / "c", "--method", "embedding", "--steps", 2, "--json")
    assert json.loads(command(*embedding).out)["tasks"][0]["expected"] is None
    # Neither have few rows, however often they are given.
    lines = (root / "new.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([lines[0], *lines[1:7] * 10]))
    few = ("adapt", root / "run", "--data", tmp_path / "few.csv", "--out", tmp_path / "d")
    (row,) = json.loads(command(*few, "--json").out)["tasks"]
    assert (row["images"], row["expected"], row["expected_error"]) == (60, None, None)


def test_copies_of_rows_promise_no_smaller_errors(command, root, tmp_path):
    lines = write_sites(tmp_path / "once.csv", range(12, 13), 30, seed=1).read_text().splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([lines[0], *lines[1:] * 2]))
    once, twice = (
        json.loads(command(*new, "--data", tmp_path / f"{name}.csv", "--json").out)["tasks"][0]
        for name in ("once", "twice")
        for new in [("adapt", root / "run", "--out", tmp_path / name)]
    )
    assert twice["expected_error"] == pytest.approx(once["expected_error"], rel=0.05)
    assert twice["error"] < once["error"]


def test_errors_are_in_the_unit_of_the_target(command, root):
    found = json.loads(
        command("evaluate", root / "more", "--added", root / "more.csv", "--json").out
    )
    predicted = command("predict", root / "more", root / "more.csv", "--format", "csv").out
    rows = [r for r in csv.DictReader(io.StringIO(predicted)) if r["site"] == "012"]
    squares = [(float(r["price"]) - float(r["predicted price"])) ** 2 for r in rows]
    assert found["errors"]["012"] == pytest.approx(np.mean(squares) ** 0.5, rel=1e-4)
    assert found["error"] == pytest.approx(np.mean([*found["errors"].values()]))
    shown = command("evaluate", root / "more", "--added", root / "more.csv").out
    assert "typical error" in shown
    assert f"{found['errors']['012']:.4g}" in shown


def test_what_is_no_better_than_the_mean_is_said(command, root, tmp_path):
    """A new site whose prices have nothing to do with its columns."""
    rng = np.random.default_rng(0)
    head, *rows = write_sites(tmp_path / "a.csv", range(12, 13), 40, seed=1).read_text().split()
    noise = [f"{row.rpartition(',')[0]},{rng.choice([70, 130])}" for row in rows]
    (tmp_path / "noise.csv").write_text("\n".join([head, *noise]))
    for name, said in (("noise", True), ("a", False)):
        new = ("--data", tmp_path / f"{name}.csv", "--out", tmp_path / name)
        shown = command("adapt", root / "run", *new).out
        assert ("in price typically, no better than the mean of price" in shown) == said


def test_regressions_have_no_classes(command, root, tmp_path):
    new = ("adapt", root / "run", "--data", root / "new.csv", "--out", tmp_path / "out")
    assert "classes" not in command(*new).out
    assert "classes" not in command("tasks", root / "more").out


@pytest.mark.filterwarnings("always")
def test_training_says_which_columns_are_inputs(command, tmp_path):
    write_sites(tmp_path / "sites.csv", range(3), 20)
    head, *rows = (tmp_path / "sites.csv").read_text().splitlines()
    many = ",".join(f"x{i}" for i in range(12))
    values = [",".join(str(i * j) for j in range(1, 13)) for i in range(len(rows))]
    lines = [f"{head},same,{many}", *(f"{r},7,{v}" for r, v in zip(rows, values, strict=True))]
    (tmp_path / "sites.csv").write_text("\n".join(lines))
    loud = [option for option in OPTIONS if option != "--quiet"]
    words = ("train", "--data", tmp_path / "sites.csv", *loud, "--out", tmp_path / "run")
    done = command(*words, "--steps", 2)
    assert done.code == 0, done.err
    numbers = ", ".join(repr(name) for name in ("size", "age", *(f"x{i}" for i in range(8))))
    said = f"inputs: 14 of numbers ({numbers} and 4 more); 1 of categories ('state')\n"
    assert said in done.err
    assert "the same value in 'same', which says nothing; left out" in done.err
    assert "typical error" in done.out


def test_an_embedding_of_its_own_can_be_fitted(command, root, tmp_path):
    new = ("adapt", root / "run", "--data", root / "new.csv", "--out")
    done = command(*new, tmp_path / "a", "--method", "embedding", "--steps", 5, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tasks"][0]["method"] == "embedding"
    tuned = command(
        *(*new, tmp_path / "tuned", "--method", "embedding", "--steps", 5, "--json"),
        *("--tune", "all", "--tune-lr", 1e-2),
    )
    assert tuned.code == 0, tuned.err
    before, after = (json.loads(d.out)["tasks"][0]["accuracy"] for d in (done, tuned))
    assert after > before
    done = command(*new, tmp_path / "b", "--method", "linear")
    assert done.code == 2
    assert "`--method` must be 'auto' or 'embedding' where the target is a number" in done.err


def test_a_site_of_one_row_is_learned_without_an_r_squared(command, root, tmp_path):
    """One row has no variance that its error could be compared with."""
    (tmp_path / "one.csv").write_text("\n".join((root / "new.csv").read_text().splitlines()[:2]))
    words = ("adapt", root / "run", "--data", tmp_path / "one.csv", "--out")
    assert json.loads(command(*words, tmp_path / "a", "--json").out)["tasks"][0]["accuracy"] is None
    assert "–" in command(*words, tmp_path / "b").out
    assert command("tasks", tmp_path / "b").code == 0
    alone = command("evaluate", tmp_path / "b", "--added", tmp_path / "one.csv", "--json")
    found = json.loads(alone.out)
    assert found["score"] == "metric"
    assert found["accuracy"] == -found["loss"]
    assert command("report", tmp_path / "b", "--out", tmp_path / "report.html").code == 0


def test_a_table_goes_in_and_comes_out(command, root):
    done = command("predict", root / "more", root / "more.csv", "--format", "csv")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    price, predicted = (np.array([float(r[n]) for r in rows]) for n in ("price", "predicted price"))
    assert len(rows) == 60
    assert np.corrcoef(price, predicted)[0, 1] > 0.7
    found = json.loads(command("predict", root / "more", root / "more.csv", "--format", "json").out)
    assert [row["predicted"] for row in found["rows"]] == predicted.tolist()


@pytest.mark.filterwarnings("always")
def test_a_task_that_is_named_is_no_selection_of_rows(command, root, tmp_path):
    """The column of tasks says what the rows are of."""
    words = ("predict", root / "more", root / "more.csv", "--task", "003", "--format", "json")
    as_one = command(*words)
    assert {row["task"] for row in json.loads(as_one.out)["rows"]} == {"003"}
    assert "`--task` is '003', but the column 'site' says '012', '013'; all rows" in as_one.err
    out = tmp_path / "out"
    refused = command(
        *("adapt", root / "run", "--data", root / "new.csv", "--task", "012", "--out", out)
    )
    assert refused.code == 2
    assert "rows of 2 tasks: '012', '013'; leave it out, or give a table of one" in refused.err
    assert not out.exists()
    lines = (root / "new.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(lines[:7]))
    done = command(
        *("adapt", root / "run", "--data", tmp_path / "one.csv", "--task", "lille", "--out", out)
    )
    assert done.code == 0, done.err
    assert "warning" not in command("predict", out, tmp_path / "one.csv", "--task", "012").err


def test_a_csv_file_comes_out_as_it_is_and_goes_in_again(command, root, tmp_path):
    """Whatever columns it has that the model does not use."""
    rows = list(csv.DictReader(io.StringIO((root / "more.csv").read_text())))[:4]
    own = {"id": "00123", "sold": "True", "day": "2026-01-05", "far": "1e400", "note": "-0.50"}
    odd, number = [{**row, **own} for row in rows], COLUMNS[1]
    odd[0][number] = ""
    file = tmp_path / "odd.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, odd[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(odd)
    done = command("predict", root / "more", file, "--format", "csv")
    assert done.code == 0, done.err
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert [{name: row[name] for name in odd[0]} for row in found] == odd
    file.write_text(done.out)
    again = command("predict", root / "more", file, "--format", "csv")
    assert again.code == 0, again.err
    head = again.out.partition("\n")[0].split(",")
    assert head[-2:] == ["predicted price", "predicted price 2"]
    odd[0][number] = "much"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, odd[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(odd)
    done = command("predict", root / "more", file)
    assert f"column '{number}' must hold numbers, as in training, got 'much'" in done.err


@pytest.mark.parametrize("values", ["True False", "true false"])
def test_true_and_false_are_classes_however_they_are_written(command, tmp_path, values):
    write_sites(tmp_path / "sites.csv", range(3), 20, graded=True)
    text = (tmp_path / "sites.csv").read_text()
    yes, no = values.split()
    (tmp_path / "sites.csv").write_text(text.replace("high", yes).replace("low", no))
    data = ("--data", tmp_path / "sites.csv", "--task-column", "site", "--target-column", "grade")
    assert command("train", *data, "--out", tmp_path / "run", *QUICK).code == 0
    table = pyarrow.csv.read_csv(tmp_path / "sites.csv")
    one = table.filter(pyarrow.compute.equal(table["site"], table["site"][0]))
    pyarrow.parquet.write_table(one, tmp_path / "new.parquet")
    new = ("--data", tmp_path / "new.parquet", "--task", "new", "--method", "head")
    done = command("adapt", tmp_path / "run", *new, "--out", tmp_path / "more", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tasks"][0]["classes"] == ["false", "true"]


def test_a_task_of_one_class_does_not_stop_the_learning_of_another(command, tmp_path):
    write_sites(tmp_path / "sites.csv", range(3), 20, graded=True)
    lines = (tmp_path / "sites.csv").read_text().splitlines()
    alike = [line.replace("high", "low") if line.startswith("002,") else line for line in lines]
    (tmp_path / "sites.csv").write_text("\n".join(alike) + "\n")
    data = ("--data", tmp_path / "sites.csv", "--task-column", "site", "--target-column", "grade")
    assert command("train", *data, "--out", tmp_path / "run", *QUICK).code == 0
    write_sites(tmp_path / "new.csv", range(3, 4), 6, graded=True)
    new = ("--data", tmp_path / "new.csv", "--out", tmp_path / "more", "--seconds", 20)
    done = command("adapt", tmp_path / "run", *new)
    assert done.code == 0, done.err


def test_data_that_have_moved_are_recorded_for_a_finished_run_too(command, root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    shutil.copy(root / "sites.csv", tmp_path / "moved.csv")
    data = ("--data", tmp_path / "moved.csv", "--task-column", "site", "--target-column", "price")
    done = command("train", *data, "--out", tmp_path / "run", *OPTIONS[4:], "--resume")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["data"]["source"] == str(tmp_path / "moved.csv")
    assert command("evaluate", tmp_path / "run").code == 0


@pytest.mark.filterwarnings("ignore:.*says '013'")
def test_an_exported_model_says_how_to_use_it(command, root, tmp_path):
    file = tmp_path / "site.safetensors"
    assert command("export", root / "more", "--task", "012", "--out", file).code == 0
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["sparsehyper"])
    assert about["preprocessing"][-1].startswith("price is output * ")
    columns, table = Columns.from_dict(about["columns"]), read_table(root / "more.csv", ["site"])
    module = build_target(about["target"], tuple(about["image_shape"]), about["outputs"])
    module.load_state_dict(load_file(file))
    with torch.no_grad():
        predicted = columns.unscaled(module(columns.encode(table)))
    done = command("predict", root / "more", root / "more.csv", "--task", "012", "--format", "json")
    expected = [row["predicted"] for row in json.loads(done.out)["rows"]]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_a_run_that_exists_is_used_whatever_a_new_one_would_be_told(command, tmp_path, monkeypatch):
    """Of numbers with commas and of ids: its table can no longer be changed."""
    head, *rows = write_sites(tmp_path / "sites.csv", range(3), 20).read_text().splitlines()
    odd = [f'{row},"{i},5",id {i}' for i, row in enumerate(rows)]
    (tmp_path / "sites.csv").write_text("\n".join([f"{head},share,id", *odd]))
    out = ("--out", tmp_path / "run")
    new = ("train", "--data", tmp_path / "sites.csv", *OPTIONS, "--steps", 2, *out)
    compare = ("compare", "--data", tmp_path / "sites.csv", *OPTIONS, "--steps", 2)
    compare = (*compare, "--method", "experts", "--seeds", 1, "--out", tmp_path / "compared")
    assert "column 'share' has numbers with commas" in command(*compare).err
    refused = command(*new)
    assert refused.code == 2
    assert "column 'share' has numbers with commas" in refused.err
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as before:
        before.setattr("sparsehyper.lab.data.columns.check_texts", lambda *_: None)
        before.setattr("sparsehyper.lab.data.columns._warn_of_ids", lambda *_: None)
        assert command(*new).code == 0
        assert command(*compare).code == 0
    for words in (
        compare,
        ("evaluate", tmp_path / "run"),
        ("train", "--resume", "--steps", 4, "--quiet", *out),
        ("report", tmp_path / "run", "--out", tmp_path / "report.html"),
    ):
        done = command(*words)
        assert done.code == 0, done.err
        assert "share" not in done.err
        assert "an id" not in done.err
    assert "cannot be used" not in (tmp_path / "report.html").read_text()


def test_the_other_commands_work(command, root, tmp_path):
    done = command("report", root / "run", root / "more", "--out", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert command("inspect", root / "run").code == 0


def test_classes(command, root, tmp_path):
    write_sites(tmp_path / "grades.csv", range(3), 20, graded=True)
    data = ("--data", tmp_path / "grades.csv", "--task-column", "site", "--target-column", "grade")
    assert command("train", *data, "--out", tmp_path / "run", *QUICK).code == 0
    write_sites(tmp_path / "new.csv", range(3, 4), 10, graded=True)
    new = ("--data", tmp_path / "new.csv", "--out", tmp_path / "more", "--method", "head")
    assert command("adapt", tmp_path / "run", *new).code == 0
    done = command("predict", tmp_path / "more", tmp_path / "new.csv", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert {row["predicted grade"] for row in rows} <= {"high", "low"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)


@pytest.mark.filterwarnings("always")
def test_a_site_that_is_hardly_learned_is_told_in_words_of_rows(command, tmp_path):
    write_sites(tmp_path / "grades.csv", range(3), 20, graded=True)
    data = ("--data", tmp_path / "grades.csv", "--task-column", "site", "--target-column", "grade")
    assert command("train", *data, "--out", tmp_path / "run", *QUICK).code == 0
    write_sites(tmp_path / "new.csv", range(3, 4), 300, graded=True)
    header, *rows = [line.rpartition(",") for line in (tmp_path / "new.csv").read_text().split()]
    grades = [rows[i][2] for i in np.random.default_rng(0).permutation(len(rows))]
    lines = [f"{row[0]},{grade}" for row, grade in zip(rows, grades, strict=True)]
    (tmp_path / "new.csv").write_text("\n".join(["".join(header), *lines]))
    new = ("--data", tmp_path / "new.csv", "--out", tmp_path / "more", "--method", "linear")
    done = command("adapt", tmp_path / "run", *new)
    assert "of its own 300 rows are right, and" in done.err
    assert "see that the targets of its rows are right, and give more of them" in done.err
    assert "image" not in done.err


BAD = {
    "no task column": (
        ["--target-column", "price"],
        "`--task-column` must name a column of the table",
    ),
    "no target column": (
        ["--task-column", "site"],
        "sites.csv': 'site', 'size', 'age', 'state', 'price'",
    ),
    "images": ([*OPTIONS, "--image-size", "8"], "`--image-size` is for images; got 8"),
    "augmented": ([*OPTIONS, "--augment", "flip"], "`--augment` is for images"),
    "cnn": (
        [*OPTIONS, "--target", "cnn:8"],
        "takes images, and the rows of a table are 5 features",
    ),
    "prototypes": ([*OPTIONS, "--head", "prototypes"], "`--head` must be 'ridge' or 'generated'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_what_tables_cannot_do(command, root, tmp_path, options, message):
    done = command("train", "--data", root / "sites.csv", "--out", tmp_path / "run", *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_auto_takes_seconds_though_numbers_need_fewer(command, root, tmp_path):
    out = tmp_path / "out"
    new = ("adapt", root / "run", "--data", root / "new.csv", "--out", out)
    assert command(*new, "--seconds", 0).code == 2
    done = command(*new, "--seconds", 5, "--json")
    assert done.code == 0
    assert all(row["seconds"] < 5 for row in json.loads(done.out)["tasks"])


def test_what_is_for_images_alone_is_refused_or_not_spoken_of(command, root, tmp_path):
    def refused(*words: object) -> str:
        done = command(*words)
        assert done.code == 2
        assert not (tmp_path / "out").exists()
        return done.err

    new = ("adapt", root / "run", "--data", root / "new.csv", "--out", tmp_path / "out")
    added = ("evaluate", root / "more", "--added", root / "more.csv")
    for words in (new, added, ("predict", root / "more", root / "more.csv")):
        assert "`--resize` is for images, and this run is of a table" in refused(*words, "--resize")
    told = refused(*new, "--method", "embedding", "--seconds", 5)
    assert "`--seconds` is not for `--method` 'embedding', got 5" in told
    told = refused(*added, "--split", "val")
    assert "`--split` must be 'test' for" in told
    assert "folder" not in told
    assert f"no table at {tmp_path}; give one file" in refused("predict", root / "more", tmp_path)


@pytest.mark.filterwarnings("always")
def test_tasks_that_were_added_are_rows(command, root):
    done = command("evaluate", root / "more")
    assert "not evaluated: '012', '013'; give a table with their rows as `--added`" in done.err


def test_images_have_no_columns(command, tmp_path):
    done = command("train", "--data", "digits", "--task-column", "site", "--out", tmp_path / "run")
    assert done.code == 2
    assert "`--task-column` is for a table, *.csv or *.parquet" in done.err


@pytest.mark.filterwarnings("always")
def test_codes_that_lost_their_zeros_are_told(command, tmp_path):
    """A spreadsheet drops them where a file has no other texts in that column."""
    write_sites(tmp_path / "sites.csv", range(3), 20)
    text = (tmp_path / "sites.csv").read_text()
    (tmp_path / "sites.csv").write_text(text.replace("old", "01").replace("new", "02x"))
    data = ("--data", tmp_path / "sites.csv", "--out", tmp_path / "run")
    assert command("train", *data, *OPTIONS, "--steps", 10).code == 0
    (tmp_path / "rows.csv").write_text(text.replace("old", "1").replace("new", "2"))
    done = command("predict", tmp_path / "run", tmp_path / "rows.csv")
    assert done.code == 0
    assert "warning: column 'state': " in done.err
    assert "rows have a value that training had not: '1', '2'; it had" in done.err


@pytest.mark.parametrize("value", ["1e45", "1e300"])
def test_a_number_too_large_is_refused_by_every_command(command, root, tmp_path, value):
    head, first, *rows = (root / "more.csv").read_text().splitlines()
    for name, place in (("age", 2), ("price", -1)):
        cells = first.split(",")
        cells[place] = value
        file = tmp_path / f"{name}.csv"
        file.write_text("\n".join([head, ",".join(cells), *rows]))
        words = [
            ["adapt", root / "run", "--data", file, "--out", tmp_path / "run"],
            ["evaluate", root / "more", "--added", file, "--json"],
        ]
        for each in [*words, *([["predict", root / "more", file]] if name == "age" else [])]:
            done = command(*each)
            assert done.code == 2
            assert not done.out
            assert f"column '{name}' has {float(value):g} in row 1" in done.err


def test_an_unknown_site_is_told(command, root):
    done = command("predict", root / "run", root / "more.csv")
    assert done.code == 2
    assert "unknown task '012'" in done.err
    assert "; `adapt` learns new ones" in done.err
