from __future__ import annotations

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.windows import write_windows
from sparsehyper.lab.data import Columns, load_table, read_rows, read_table


@pytest.fixture
def path(tmp_path):
    return write_windows(tmp_path / "windows.csv", range(3), 20, steps=(6, 6))


@pytest.fixture
def uneven(tmp_path):
    return write_windows(tmp_path / "uneven.csv", range(3), 20, steps=(3, 6), numbers=True)


def load(path, target="state", **settings):
    settings = {"sequence_column": "window", "order_column": "time", **settings}
    return load_table(path, "machine", target, **settings)


def split_parts(tasks):
    """Inputs of all samples, task by task and split by split."""
    splits = (tasks.train, tasks.val, tasks.test)
    return [torch.cat([next(s.batches(i, 99)).x for s in splits]) for i in range(len(tasks.names))]


def test_rows_become_channels_and_steps_in_order(path):
    tasks = load(path)
    assert tasks.names == ("m00", "m01", "m02")
    assert tasks.classes == (("good", "worn"),) * 3
    assert tasks.image_shape == (4, 6)  # vibration, heat, and the mode's two values
    assert [sum(split.counts) for split in (tasks.train, tasks.val, tasks.test)] == [42, 6, 12]
    vibration = tasks.columns.numbers[0]
    with path.open() as file:
        rows = [r for r in csv.DictReader(file) if (r["machine"], r["window"]) == ("m01", "7")]
    rows.sort(key=lambda row: int(row["time"]))
    seen = [float(row["vibration"] or vibration.median) for row in rows]
    expected = torch.tensor([(x - vibration.mean) / vibration.scale for x in seen])
    manual = torch.tensor([float(row["mode"] == "manual") for row in rows])
    (found,) = (x for x in split_parts(tasks)[1] if torch.allclose(x[0], expected, atol=1e-5))
    assert torch.equal(found[3], manual)


def test_scaling_is_of_the_training_sequences_alone(path, uneven):
    tasks = load(path)
    x = torch.cat([next(tasks.train.batches(i, 99)).x for i in range(3)])[:, :2]
    torch.testing.assert_close(x.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2), correction=0), torch.ones(2))
    tasks = load(uneven, "wear")
    y = torch.cat([tasks.train.labels(i) for i in range(3)])
    torch.testing.assert_close(y.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_shorter_sequences_are_padded_and_say_so(uneven):
    tasks = load(uneven, "wear")
    assert tasks.image_shape == (5, 6)
    x = torch.cat(split_parts(tasks))
    lengths = x[:, -1].sum(1)
    assert set(lengths.tolist()) == {3, 4, 5, 6}
    for one, length in zip(x, lengths.int(), strict=True):
        assert one[-1, :length].all()
        assert not one[:, length:].any()
        assert (one[2:4, :length].sum(0) == 1).all()  # every step has a mode


def test_the_order_of_the_file_counts_without_a_column_of_order(path, tmp_path):
    head, *rows = path.read_text().splitlines()
    rows.sort(key=lambda row: int(row.split(",")[2]))
    (tmp_path / "mixed.csv").write_text("\n".join([head, *rows]))
    with pytest.raises(
        ValueError, match=r"has rows apart from one another .* train with an `order_column`"
    ):
        load(tmp_path / "mixed.csv", order_column=None)
    rows.sort(key=lambda row: row.split(",")[:2])  # which keeps the order of the others
    (tmp_path / "sorted.csv").write_text("\n".join([head, *rows]))
    by_file = load(tmp_path / "sorted.csv", order_column=None)
    assert by_file.image_shape == (5, 6)  # with the time as an input
    names = [column.name for column in by_file.columns.numbers]
    time = torch.cat(split_parts(by_file))[:, names.index("time")]
    assert (time.diff(dim=1) > 0).all()


@pytest.mark.parametrize("kind", ["dates", "nanoseconds"])
def test_dates_and_large_numbers_are_sorted(path, tmp_path, kind):
    """Numbers beyond those that a float64 tells apart."""
    table = read_table(path, ["machine", "window"])
    time = 2**60 + table["time"].astype(np.int64)
    own = {name: list(column) for name, column in table.items()}
    own["time"] = time.astype("datetime64[ns]") if kind == "dates" else time
    pq.write_table(pa.table(own), tmp_path / "windows.parquet")
    expected, found = (
        torch.cat(split_parts(load(p))) for p in (path, tmp_path / "windows.parquet")
    )
    torch.testing.assert_close(found, expected)


def test_copies_of_a_sequence_stay_together(path):
    head, *rows = path.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    copies = [",".join([machine, f"again {w}", *rest]) for machine, w, *rest in cells]
    path.write_text("\n".join([head, *rows, *copies]))
    tasks = load(path)
    train, test = (next(split.batches(0, 99)).x for split in (tasks.train, tasks.test))
    assert len(test) == 8
    assert not {*map(str, train.tolist())} & {*map(str, test.tolist())}


def test_columns_are_plain_numbers_and_names(uneven):
    columns = load(uneven, "wear").columns
    assert Columns.from_dict(json.loads(json.dumps(columns.to_dict()))) == columns
    rows = load_table(uneven, "machine", "wear").columns
    assert "sequences" not in rows.to_dict()
    for change in ({"length": 0}, {"length": 2**40}, {"padded": 1}, {"column": 5}):
        values = columns.to_dict()
        values["sequences"] |= change
        with pytest.raises((TypeError, ValueError), match=next(iter(change))):
            Columns.from_dict(values)


def test_new_sequences_are_as_in_training(path, tmp_path):
    tasks = load(path)
    found = read_rows(path, tasks.columns)
    assert found.x.shape == (60, 4, 6)
    assert sorted(set(found.tasks)) == ["m00", "m01", "m02"]
    other = write_windows(tmp_path / "other.csv", range(1), 3, steps=(5, 5))
    with pytest.raises(ValueError, match=r"has 5 steps, and the model takes 6, as in training"):
        read_rows(other, tasks.columns)


def test_padded_models_take_shorter_new_sequences_alone(uneven, tmp_path):
    columns = load(uneven, "wear").columns
    other = write_windows(tmp_path / "other.csv", range(1), 3, steps=(2, 2), numbers=True)
    assert read_rows(other, columns).x[:, -1].sum(1).tolist() == [2, 2, 2]
    other = write_windows(tmp_path / "other.csv", range(1), 3, steps=(7, 7), numbers=True)
    with pytest.raises(ValueError, match=r"has 7 steps, and the model takes at most 6"):
        read_rows(other, columns)


BAD = {
    "two states": (
        lambda text: text.replace(",good\n", ",worn\n", 1),
        {},
        ValueError,
        r"'state' must have one value in all steps of a sequence, got '(good|worn)' and",
    ),
    "a step twice": (
        lambda text: text + text.splitlines()[-1] + "\n",
        {},
        ValueError,
        r"has two rows with the same value in column 'time' \(row \d+ is one of them\)",
    ),
    "no such column": (lambda t: t, {"sequence_column": "id"}, KeyError, "no column 'id'"),
    "no such order": (lambda t: t, {"order_column": "when"}, KeyError, "no column 'when'"),
    "one column for two": (
        lambda t: t,
        {"order_column": "window"},
        ValueError,
        "`order_column` must not be `sequence_column`, got 'window'",
    ),
    "order alone": (
        lambda t: t,
        {"sequence_column": None},
        ValueError,
        "`order_column` 'time' needs a `sequence_column`",
    ),
    "a text to sort by": (
        lambda t: t,
        {"order_column": "mode"},
        ValueError,
        "'mode' must hold numbers, dates or times to sort by, got string",
    ),
    "a step without a time": (
        lambda t: re.sub(r"^(m00,\d+),3,", r"\1,,", t, count=1, flags=re.MULTILINE),
        {},
        ValueError,
        "column 'time' must have a value in every row",
    ),
    "a step without a sequence": (
        lambda t: t.replace("\nm00,4,", "\nm00,,", 1),
        {},
        ValueError,
        "column 'window' must have a value in every row",
    ),
    "rows": (
        lambda t: t,
        {"sequence_column": "vibration"},
        ValueError,
        "column 'vibration' names another sequence in every row",
    ),
    "too few": (
        lambda t: "".join(
            line for line in t.splitlines(keepends=True) if line[:3] != "m02" or ",3," in line[:7]
        ),
        {},
        ValueError,
        "sequences are left for the task 'm02'; a task needs at least 3 different sequences of one",
    ),
}


@pytest.mark.parametrize(("change", "settings", "error", "message"), BAD.values(), ids=BAD)
def test_sequences_that_are_refused(path, change, settings, error, message):
    text = path.read_text()
    if settings.get("sequence_column") == "vibration":  # all different, and none missing
        head, *rows = text.splitlines()
        cells = [row.split(",") for row in rows]
        rows = [",".join([*row[:3], f"{i}.5", *row[4:]]) for i, row in enumerate(cells)]
        text = "\n".join([head, *rows])
    path.write_text(change(text))
    with pytest.raises(error, match=message):
        load(path, **settings)
