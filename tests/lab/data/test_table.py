from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.sites import write_sites
from sparsehyper.lab.data import Batches, TaskInfo, load_table
from sparsehyper.lab.data.columns import Numbers


@pytest.fixture
def path(tmp_path):
    return write_sites(tmp_path / "sites.csv", range(3), 20)


def load(path, **settings):
    return load_table(path, "site", "price", **settings)


def test_every_row_is_in_one_split(path):
    tasks = load(path, val_fraction=0.25)
    assert tasks.names == ("000", "001", "002")
    assert tasks.classes == (("price",),) * 3
    assert (tasks.train.counts, tasks.val.counts, tasks.test.counts) == (
        (12,) * 3,
        (4,) * 3,
        (4,) * 3,
    )
    splits = (tasks.train, tasks.val, tasks.test)
    x = torch.cat([split.batches(i, 99).__next__().x for split in splits for i in range(3)])
    assert len(x.unique(dim=0)) == len(x) == 60


def test_scaling_is_of_the_training_rows_alone(path):
    tasks = load(path)
    y = torch.cat([tasks.train.labels(i) for i in range(3)])
    torch.testing.assert_close(y.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(correction=0), torch.tensor(1.0))


def test_variance_is_of_the_training_rows_within_tasks(path):
    tasks = load(path)
    parts = [tasks.train.labels(i) for i in range(3)]
    free = sum(len(part) - 1 for part in parts)
    expected = sum(float((part - part.mean()).square().sum()) for part in parts) / free
    assert tasks.variance == pytest.approx(expected)
    assert tasks.score == "R²"


def test_copies_of_a_row_stay_together(path):
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *rows, *rows]))
    tasks = load(path)
    train, test = (split.batches(0, 99).__next__().x for split in (tasks.train, tasks.test))
    assert not {tuple(row) for row in train.tolist()} & {tuple(row) for row in test.tolist()}


def test_fingerprint_follows_rows_and_seed(path):
    first = load(path).fingerprint
    assert load(path).fingerprint == first
    assert load(path, seed=1).fingerprint != first
    path.write_text(path.read_text().replace("old", "aged"))
    assert load(path).fingerprint != first


def test_batches_are_of_the_tasks_asked_for(path):
    tasks = load(path)
    x, y, task = Batches(tasks.train, 12, tasks_per_batch=3).batch(0, 0)
    assert x.shape == (12, 5)
    assert y.shape == (12, 1)
    for i in range(3):
        own = next(tasks.train.batches(i, 99))
        assert {*y[task == i, 0].tolist()} <= {*own.y[:, 0].tolist()}
        assert {*map(tuple, x[task == i].tolist())} <= {*map(tuple, own.x.tolist())}
    some = tasks.select(["002"])
    torch.testing.assert_close(some.train.labels(0), tasks.train.labels(2))
    torch.testing.assert_close(
        *(next(t.batches(i, 99)).y for t, i in ((some.train, 0), (tasks.train, 2)))
    )


def test_text_makes_classes_and_numbers_can_be_classes(tmp_path):
    path = write_sites(tmp_path / "grades.csv", range(3), 20, graded=True)
    tasks = load_table(path, "site", "grade")
    assert tasks.classes == (("high", "low"),) * 3
    assert next(tasks.test.batches(0, 9)).y.dtype == torch.int64
    with pytest.raises(
        ValueError, match=r"'numbers' needs numbers in the column 'grade', got text"
    ):
        load_table(path, "site", "grade", targets="numbers")


def test_numbers_in_names_of_tasks_are_sorted_by_value(path):
    """In new runs; those that sorted them as text keep their order."""
    names = {"000": "site 10", "001": "site 9", "002": "site 1"}
    text = path.read_text()
    for old, new in names.items():
        text = text.replace(f"\n{old},", f"\n{new},")
    path.write_text(text)
    tasks = load(path)
    assert tasks.names == ("site 1", "site 9", "site 10")
    before = TaskInfo.from_dict({**tasks.to_dict(), "names": ["site 1", "site 10", "site 9"]})
    again = load(path, known=before)
    assert again.names == before.names
    torch.testing.assert_close(again.train.labels(1), tasks.train.labels(2))
    assert load(path, known=tasks).fingerprint == tasks.fingerprint


def test_a_run_keeps_its_columns(path):
    """Whatever a new one would leave out, so that runs of early versions are still used."""
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f",{head},year", *(f"{i},{r},2024" for i, r in enumerate(rows))]))
    with (
        pytest.warns(UserWarning, match="has the index that pandas writes, in ''; left out"),
        pytest.warns(UserWarning, match="same value in 'year', which says nothing; left out"),
    ):
        new = load(path)
    assert new.columns.used == ["site", "price", "size", "age", "state"]
    index, year = Numbers("", 30.0, 30.0, 17.0), Numbers("year", 2024.0, 2024.0, 1.0)
    columns = replace(new.columns, numbers=(index, *new.columns.numbers, year))
    known = TaskInfo.from_dict(
        {**new.to_dict(), "columns": columns.to_dict(), "image_shape": columns.shape}
    )
    again = load(path, known=known)
    assert again.columns == columns
    assert again.image_shape == columns.shape


BAD = {
    "no such column": ({"old": "price", "new": "cost"}, KeyError, "no column 'price'"),
    "a task without a name": (
        {"old": "\n001,", "new": "\n,"},
        ValueError,
        "column 'site' must have",
    ),
    "too few rows": (
        {"old": "\n002,", "new": "\n001,", "but": 1},
        ValueError,
        "no .* rows are left for the task '002'; a task needs at least 3 .* `adapt` takes a few",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_tables_that_are_refused(path, change, error, message):
    text, old, new = path.read_text(), change["old"], change["new"]
    kept = text.count(old) - change.get("but", 0)
    path.write_text(text.replace(old, new, kept))
    with pytest.raises(error, match=message):
        load(path)


def test_numbers_too_large_to_scale_are_told_with_their_column(path):
    head, *rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([f"{head},big", *(f"{row},{i % 2}e200" for i, row in enumerate(rows))])
    )
    with pytest.raises(ValueError, match=r"column 'big' must hold .* at most 1e\+100, got 1e\+200"):
        load(path)


@pytest.mark.parametrize("targets", [None, "numbers"])
def test_a_target_with_decimal_commas_makes_no_classes(path, targets):
    head, *rows = (line.rpartition(",") for line in path.read_text().splitlines())
    lines = (f'{row},"{"1,5" if float(price) > 100 else "2,5"}"' for row, _, price in rows)
    path.write_text("\n".join(["".join(head), *lines]))
    message = r"column 'price' has numbers with .* as '.,5'.* no numbers, give `targets`"
    with pytest.raises(ValueError, match=message):
        load(path, targets=targets)
    assert load(path, targets="classes").classes[0] == ("1,5", "2,5")  # as was asked for


@pytest.mark.parametrize("column", ["size", "price"])
def test_a_number_too_large_is_told_whichever_split_its_row_is_in(path, column):
    head, *rows = path.read_text().splitlines()
    place = head.split(",").index(column)
    told = set()
    for row in range(12):
        cells = rows[row].split(",")
        cells[place] = "1e300"
        path.write_text("\n".join([head, *rows[:row], ",".join(cells), *rows[row + 1 :]]))
        with pytest.raises(ValueError, match=rf"column '{column}' .* 1e\+300") as error:
            load(path)
        told.add(str(error.value).split()[2])
    assert told == {"must", "has"}  # of training rows, and of those held out


def test_integers_larger_than_a_float_holds_are_rounded(path):
    head, *rows = path.read_text().splitlines()
    lines = (f"{row},{1732686934 * 10**9 + i * 10**9}" for i, row in enumerate(rows))
    path.write_text("\n".join([f"{head},stamp", *lines]))
    (stamp,) = (one for one in load(path).columns.numbers if one.name == "stamp")
    assert stamp.mean == pytest.approx(1.7327e18, rel=1e-3)
    assert f"{stamp.mean!r}" in "".join(load(path).columns.describe())


def test_all_tasks_with_too_few_rows_are_named(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].replace("000,", "a,"), "b" + lines[2][3:]]))
    with pytest.raises(
        ValueError, match="rows are left for the 2 tasks 'a', 'b'; a task needs at least 3 "
    ):
        load(path)
