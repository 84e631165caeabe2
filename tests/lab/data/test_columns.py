from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from helpers.sites import write_sites
from sparsehyper.lab.data import Columns, read_rows, read_table
from sparsehyper.lab.data.sequences import Samples

ROWS = np.arange(0, 60, 2)


@pytest.fixture
def table(tmp_path):
    return read_table(write_sites(tmp_path / "sites.csv", range(3), 20), ["site"])


@pytest.fixture
def columns(table):
    return Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")


def test_rows_become_what_scikit_learn_makes_of_them(table, columns):
    numbers, texts = (
        np.stack([table[n] for n in names], 1) for names in (["size", "age"], ["state"])
    )
    x = np.concatenate([numbers.astype(object), texts], 1)
    fill = SimpleImputer(missing_values=None, strategy="constant", fill_value="(missing)")
    transformer = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), [0, 1]),
            ("texts", make_pipeline(fill, OneHotEncoder(handle_unknown="ignore")), [2]),
        ],
        sparse_threshold=0,
    )
    expected = transformer.fit(x[ROWS]).transform(x).astype(np.float32)
    np.testing.assert_allclose(columns.encode(table), expected, atol=1e-6)


def test_columns_are_plain_numbers_and_names(table, columns):
    read = Columns.from_dict(json.loads(json.dumps(columns.to_dict())))
    assert read == columns
    torch.testing.assert_close(read.encode(table), columns.encode(table), rtol=0, atol=0)


def test_a_target_of_numbers_is_scaled_and_scaled_back(table, columns):
    y = columns.targets_of(table, ())
    assert abs(float(y[ROWS].mean())) < 1e-6
    np.testing.assert_allclose(columns.unscaled(y), table["price"], rtol=1e-5)


def test_a_value_that_training_lacked_is_all_zeros(table, columns):
    table["state"] = np.array(["torn"] * 60, dtype=object)
    with pytest.warns(
        UserWarning, match="column 'state': 60 of 60 rows .* had not: 'torn'; it had"
    ):
        assert not columns.encode(table)[:, 2:].any()


def test_a_few_rows_with_other_values_are_usual(table, columns):
    table["state"][:20] = "torn"
    assert not columns.encode(table)[:20, 2:].any()


def test_names_of_tasks_stay_text(table):
    assert sorted(set(table["site"])) == ["000", "001", "002"]


def test_parquet_is_read_as_csv_is(table, tmp_path):
    pq.write_table(
        pa.table({name: list(column) for name, column in table.items()}), tmp_path / "t.parquet"
    )
    again = read_table(tmp_path / "t.parquet")
    for name, column in table.items():
        np.testing.assert_array_equal(again[name], column)


def test_a_table_without_a_column(table, columns):
    del table["age"]
    with pytest.raises(KeyError, match=r"no column 'age'; it has: 'site', 'size'"):
        columns.encode(table)


def test_text_in_a_column_of_numbers(table, columns):
    table["age"] = np.array(["old"] * 60, dtype=object)
    with pytest.raises(
        ValueError, match=r"column 'age' must hold numbers, as in training, got 'old'"
    ):
        columns.encode(table)


def test_a_column_of_ids_is_no_category(table):
    table = {name: np.tile(column, 40) for name, column in table.items()}
    table["note"] = np.array([f"note {i}" for i in range(2400)], dtype=object)
    with pytest.raises(ValueError, match=r"column 'note' has 2,400 different texts"):
        Columns.fit(table, Samples.of_rows(np.arange(2400)), "site", "price", "numbers")


WITH_COMMAS = {
    "decimals": ["1,5", "2", "-0,25", None],
    "thousands": ["1,000", "12,500,000", "7", None],
    "both": ["1.234,5", "1 000,0", "3", "4"],
    "a word for missing ones": ["1,5", "NA", "-", "n/a"],
    "percent": ["1,5 %", "12%", "-3,25%", None],
    "currencies": ["1,50 €", "$1,000.50", "-£3", None],
    "two items": ["1,2", "3,4", "5,6", None],
    "spaces": ["1 000", "12\u202f500.5", "7", None],
    "signs alone": ["12 %", "€ 3", "7", None],
}


@pytest.mark.parametrize("cells", WITH_COMMAS.values(), ids=WITH_COMMAS)
def test_numbers_with_commas_are_no_categories(table, cells):
    table["note"] = np.array(cells * 15, dtype=object)
    with pytest.raises(
        ValueError,
        match=f"column 'note' has numbers with commas, .* such as '{re.escape(cells[0])}'.* as 1;5",
    ):
        Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")


OTHERS_WITH_COMMAS = {
    "words": ["1,5", "Lille, France", "01"],
    "coordinates": ["48.1,2.3", "48.123,123.345", "-1.5,2"],
    "versions": ["1,0,0", "1,2,0", "2,10,1"],
    "dates": ["05,01,2024", "31,12,2023", "1,1,2024"],
    "answers": ["1,2,4", "3", "1,2"],
    "versions without commas": ["1.0.0", "1.2.0", "2.10.1"],
    "some dates": ["03.05.2024", "unknown", "31.12.2023"],
    "sizes": ["38 40", "42 44", "46 48"],
}


@pytest.mark.parametrize("cells", OTHERS_WITH_COMMAS.values(), ids=OTHERS_WITH_COMMAS)
def test_texts_with_commas_are_categories(table, cells):
    table["note"] = np.array([*cells, None] * 15, dtype=object)
    rows = Samples.of_rows(np.arange(60))
    fitted = Columns.fit(table, rows, "site", "price", "numbers")
    assert fitted.categories[-1].values == tuple(sorted(["(missing)", *cells]))


ALIKE = {
    "numbers": [100.0],
    "numbers and none": [100.0, np.nan],
    "no number": [np.nan],
    "texts": ["old"],
    "no text": [None],
    "true": [True],
}


@pytest.mark.parametrize("values", ALIKE.values(), ids=ALIKE)
def test_a_column_with_one_value_in_training_is_left_out(table, values):
    """It would come in later unscaled, by weights that were never trained."""
    kind = float if isinstance(values[0], float) else object if values[0] is not True else bool
    training = (values * 30)[:30]
    others = {float: 120.0, object: "torn", bool: False}[kind]
    mixed = [value for one in training for value in (one, others)]  # training has every second row
    before = Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")
    table["note"] = np.array(mixed, dtype=kind)
    with pytest.warns(UserWarning, match="same value in 'note', which says nothing; left out"):
        fitted = Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")
    assert fitted == before
    alone = {name: table[name] for name in ("site", "note", "price")}
    with pytest.raises(ValueError, match=r"'price' whose values differ .*, got 'note'"):
        Columns.fit(alone, Samples.of_rows(ROWS), "site", "price", "numbers")


def test_a_column_whose_rows_are_mostly_far_from_training_is_told(table, columns):
    table["age"][:20] += 1e4  # a few are usual
    columns.encode(table)
    table["age"][:] = 1e4
    message = r"'age': 60 of 60 rows are far .* they have 10000 to 10000, and training had about "
    with pytest.warns(UserWarning, match=message):
        columns.encode(table)
    table["price"] = table["price"] * 1e3
    with pytest.warns(UserWarning, match="'price': 60 of 60 .* see that the unit is the same"):
        columns.targets_of(table, ())


def test_true_and_false_are_spelled_as_in_training_whatever_else_a_file_has(table, tmp_path):
    cells = np.array(["True", "False", "Unknown"] * 20, dtype=object)
    table["sold"] = cells
    rows = Samples.of_rows(np.arange(60))
    fitted = Columns.fit(table, rows, "site", "price", "numbers")
    pq.write_table(
        pa.table({name: list(column[cells != "Unknown"]) for name, column in table.items()}),
        tmp_path / "t.parquet",
    )
    later = read_rows(tmp_path / "t.parquet", fitted)
    torch.testing.assert_close(later.x, fitted.encode(table)[cells != "Unknown"])
    classes = ("False", "True", "Unknown")
    graded = replace(fitted, target="sold", scaling=None, categories=())
    assert graded.targets_of(later.table, classes).tolist() == [1, 0] * 20
    lower = np.array([cell.lower() for cell in cells], dtype=object)
    assert graded.targets_of({"sold": lower[:2]}, classes).tolist() == [1, 0]
    with pytest.raises(ValueError, match="has the class 'unknown'"):
        graded.targets_of({"sold": lower}, classes)


def test_tasks_called_true_and_false_are_those_of_training(tmp_path, columns, table):
    table["site"] = np.array(["True", "False"] * 30, dtype=object)
    pq.write_table(
        pa.table({name: list(column) for name, column in table.items()}), tmp_path / "t.parquet"
    )
    for names in (("false", "true"), ("False", "True", "Unknown")):
        found = read_rows(tmp_path / "t.parquet", columns, names=names)
        assert set(found.tasks) == set(names[:2])


def test_a_column_of_nearly_as_many_texts_as_rows_is_told(table):
    table["note"] = np.array([f"note {i % 56}" for i in range(60)], dtype=object)
    with pytest.warns(
        UserWarning, match="column 'note' has 28 different texts in 30 training rows"
    ):
        Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")


@pytest.mark.parametrize("value", [1e25, 1e45, -1e300])
def test_numbers_too_far_from_training_are_refused(table, columns, value):
    """They would overflow in a model, which then predicts NaN."""
    for name, taken in (("age", columns.encode), ("price", lambda t: columns.targets_of(t, ()))):
        changed = table[name].copy()
        changed[4] = value
        with pytest.raises(
            ValueError, match=rf"column '{name}' has {value:g} in row 5".replace("+", ".")
        ):
            taken({**table, name: changed})


def test_a_number_far_from_a_constant_column_is_told_so(table):
    table["price"] = np.full(60, 0.1)
    table["price"][5] = 1e16  # training has every second row
    fitted = Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")
    message = (
        r"'price' has 1e\+16 in row 6, .* all of which have 0\.1, or nearly; .* without the col"
    )
    with pytest.raises(ValueError, match=message) as error:
        fitted.targets_of(table, ())
    assert "deviation" not in str(error.value)


def test_numbers_that_are_only_far_are_taken(table, columns):
    table["age"][4] = 1e12
    assert columns.encode(table).square().isfinite().all()


DATES = {
    "day first": ["03.05.2024", "31.12.2023", None],
    "month first": ["5/3/2024", "12/31/2023"],
    "year first": ["2024/05/03", "2023/12/31", "NA"],
    "with hours": ["03-05-2024 12:30", "31-12-2023T08:00:00"],
}


@pytest.mark.parametrize("cells", DATES.values(), ids=DATES)
def test_dates_are_no_categories_however_they_are_written(table, cells):
    table["day"] = np.resize(np.array(cells, dtype=object), 60)
    message = rf"column 'day' must hold numbers or text, got dates such as '{re.escape(cells[0])}'"
    with pytest.raises(ValueError, match=message):
        Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")


def test_a_column_that_numbers_the_rows_is_told(table):
    """With one number twice, or a gap, it is no numbering, and a warning would be an error here."""
    for counts in (np.arange(60) // 2, np.arange(60) * 3, np.arange(60) + 0.5 * np.eye(60)[9]):
        table["id"] = counts.astype(float)
        Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")
    table["id"] = np.random.default_rng(0).permutation(60) + 100.0
    with pytest.warns(UserWarning, match=r"'id' numbers the rows, from 100 to 159, .*: if it is"):
        fitted = Columns.fit(table, Samples.of_rows(ROWS), "site", "price", "numbers")
    assert "id" in fitted.used


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_index_that_pandas_writes_is_left_out(tmp_path, suffix):
    """With a warning, as long as no run has it among its inputs."""
    path, name = tmp_path / f"t.{suffix}", {"csv": "", "parquet": "__index_level_0__"}[suffix]
    whole = pa.table({name: [7, 8], "a": [1, 2], "b": ["x", "y"]})
    write = {"csv": pyarrow.csv.write_csv, "parquet": pq.write_table}[suffix]
    write(whole, path)
    with pytest.warns(UserWarning, match=rf"has the index that pandas writes, in '{name}'; left"):
        found = read_table(path)
    assert list(found) == ["a", "b"]
    assert list(read_table(path, index=["a"])) == ["a", "b"]
    assert read_table(path, index=[name])[name].tolist() == [7, 8]
    assert read_table(path, used=[name])[name].tolist() == [7, 8]


FILES = {
    "dates": ("a\n2020-01-01\n", r"column 'a' must hold numbers or text, got date32"),
    "no rows": ("a,b\n", "must have at least one row"),
    "twice": ("a,a\n1,2\n", "has a column twice"),
    "infinite": ("a\ninf\n", "must hold finite numbers"),
    "semicolons": (
        "a;b\n1,5;2\n",
        "must have commas between its columns.* begins with 'a;b'; save",
    ),
    "semicolons alone": ("a;b\n1;2\n", "commas between its columns, and decimal points"),
    "tabs": ("a\tb\n1\t2\n", "must have commas between its columns"),
    "Latin-1": ("a,b\nMünchen,2\n", "'a' holds bytes that are no text in UTF-8; save it as CSV"),
    "Latin-1 in its head": ("Straße,b\n1,2\n", "t.csv is no text in UTF-8; save it as CSV"),
    "no table": ("a,b\n1\n", "cannot be read as a table"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv")


def test_names_of_tasks_in_latin_1_are_told(tmp_path):
    (tmp_path / "t.csv").write_bytes("a,b\nMünchen,2\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"cannot be read as a table: .*; save it as CSV with commas"
    ):
        read_table(tmp_path / "t.csv", ["a"])


def test_bytes_in_parquet_are_left_out(tmp_path):
    pq.write_table(pa.table({"a": [b"M\xfcnchen"], "b": [1]}), tmp_path / "t.parquet")
    message = r"column 'a' must hold numbers or text, got binary; .* or leave it out"
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", used=["b"])["b"].tolist() == [1]


def test_bytes_in_parquet_that_are_text_are_taken_as_text(tmp_path):
    """As older programs write them."""
    pq.write_table(pa.table({"a": ["München".encode(), None]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["a"].tolist() == ["München", None]


@pytest.mark.parametrize("change", [{"scale": 0}, {"mean": "1"}, {"median": float("nan")}])
def test_damaged_columns_are_refused(columns, change):
    values = asdict(columns)
    values["numbers"] = [values["numbers"][0] | change]
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        Columns.from_dict(values)
