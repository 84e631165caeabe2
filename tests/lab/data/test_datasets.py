import io
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sparsehyper.lab.data import SOURCES, load_source


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(n=6, shape=(4, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def _table(pixels, labels, image="image", label="label", names=None):
    structs = [{"bytes": p if isinstance(p, bytes | None) else _png(p), "path": ""} for p in pixels]
    table = pa.table({image: structs, label: labels})
    if names is not None:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    return table


def _write(folder, train=None, test=None, names=("train.parquet", "test.parquet"), **columns):
    folder.mkdir(parents=True, exist_ok=True)
    for name, given, seed in zip(names, (train, test), (0, 1), strict=True):
        pixels = _pixels(seed=seed)
        table = _table(pixels, list(range(len(pixels))), **columns) if given is None else given
        pq.write_table(table, folder / name)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def unreachable(name):
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.delenv("SPARSEHYPER_DATA", raising=False)


def test_digits():
    source = load_source("digits")
    assert source.classes == tuple("0123456789")
    assert source.image_shape == (1, 8, 8)
    assert source.train.pixels.max() == 255
    train, test = (part.labels.bincount() for part in (source.train, source.test))
    assert (train + test).sum() == 1797
    torch.testing.assert_close(test / (train + test), torch.full((10,), 0.2), atol=5e-3, rtol=0)
    assert torch.equal(load_source("digits").test.pixels, source.test.pixels)


def test_parquet_files_come_out_as_they_went_in(tmp_path):
    _write(tmp_path / "mnist")
    source = load_source("mnist", tmp_path)
    assert source.name == "mnist"
    assert source.image_shape == (1, 4, 4)
    np.testing.assert_array_equal(source.train.pixels[:, 0], _pixels(seed=0))
    np.testing.assert_array_equal(source.test.pixels[:, 0], _pixels(seed=1))
    assert source.train.labels.tolist() == list(range(6))


def test_environment_variable_and_argument(tmp_path, monkeypatch):
    _write(tmp_path / "a" / "mnist")
    _write(tmp_path / "b" / "mnist", train=_table(_pixels(2), [3, 4]))
    monkeypatch.setenv("SPARSEHYPER_DATA", str(tmp_path / "a"))
    assert len(load_source("mnist").train.labels) == 6
    assert len(load_source("mnist", str(tmp_path / "b")).train.labels) == 2


def test_colour_columns_and_class_names_of_cifar(tmp_path):
    pixels = _pixels(3, (4, 5, 3))
    _write(tmp_path / "cifar10", *[_table(pixels, [0, 9, 1], image="img")] * 2)
    source = load_source("cifar10", tmp_path)
    assert source.image_shape == (3, 4, 5)
    assert source.classes[9] == "truck"
    np.testing.assert_array_equal(source.train.pixels, pixels.transpose(0, 3, 1, 2))


def test_cifar100_has_fine_labels_and_the_names_in_the_file(tmp_path):
    names = [f"class {i}" for i in range(100)]
    table = _table(_pixels(3, (4, 4, 3)), [99, 0, 5], "img", "fine_label", names)
    table = table.append_column("coarse_label", [[1, 2, 3]])
    _write(tmp_path / "cifar100", table, table)
    source = load_source("cifar100", tmp_path)
    assert source.train.labels.tolist() == [99, 0, 5]
    assert source.classes == tuple(names)


def test_cifar100_without_names_has_numbers(tmp_path):
    table = _table(_pixels(3, (4, 4, 3)), [99, 0, 5], "img", "fine_label")
    _write(tmp_path / "cifar100", table, table)
    assert load_source("cifar100", tmp_path).classes[99] == "99"


@pytest.mark.parametrize("folder", ["", "data", "plain_text"])
def test_layout_of_the_hub(tmp_path, folder):
    _write(
        tmp_path / "fashion_mnist" / folder,
        names=("train-00000-of-00002.parquet", "test-00000-of-00001.parquet"),
    )
    second = _table(_pixels(2, seed=7), [8, 9])
    pq.write_table(second, tmp_path / "fashion_mnist" / folder / "train-00001-of-00002.parquet")
    source = load_source("fashion_mnist", tmp_path)
    assert source.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 8, 9]
    assert source.classes[0] == "T-shirt/top"


def test_fetched_by_name(tmp_path, monkeypatch):
    def load_dataset(name):
        assert name == "uoft-cs/cifar100"
        features = datasets.Features(
            {
                "img": datasets.Image(),
                "fine_label": datasets.ClassLabel(names=[f"c{i}" for i in range(100)]),
            }
        )
        pictures = [{"bytes": _png(p), "path": None} for p in _pixels(4, (4, 4, 3))]
        rows = {"img": pictures, "fine_label": [5, 6, 7, 99]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        return datasets.DatasetDict(train=dataset, test=dataset)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = load_source("cifar100", tmp_path)  # holds other sources only
    assert source.classes[99] == "c99"
    assert source.train.labels.tolist() == [5, 6, 7, 99]
    np.testing.assert_array_equal(source.train.pixels, _pixels(4, (4, 4, 3)).transpose(0, 3, 1, 2))


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"`source` must be one of 'digits', .*; got 'minst'") as e:
        load_source("minst")
    assert all(repr(name) in str(e.value) for name in SOURCES)


def test_neither_files_nor_network_names_both_remedies(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`data_dir` is not set.*Couldn't reach 'ylecun/"):
        load_source("mnist")
    with pytest.raises(
        FileNotFoundError, match=r"Connect to the network, or give a `data_dir`"
    ) as e:
        load_source("mnist", tmp_path)
    assert f"there is no {tmp_path / 'mnist'}" in str(e.value)


def test_no_such_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`data_dir` is not a directory: .*nowhere"):
        load_source("mnist", tmp_path / "nowhere")


def test_only_one_part(tmp_path):
    _write(tmp_path / "mnist")
    (tmp_path / "mnist" / "test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"mnist has no train\*.parquet and test\*.parquet"):
        load_source("mnist", tmp_path)


def test_damaged_file(tmp_path):
    _write(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet"):
        load_source("mnist", tmp_path)


@pytest.mark.parametrize("bad", [b"no picture", b"", None])
def test_unreadable_image_names_file_and_row(tmp_path, bad):
    pixels = [*_pixels(3), bad]
    _write(tmp_path / "mnist", test=_table(pixels, [0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"cannot read the image in row 3 of .*test.parquet"):
        load_source("mnist", tmp_path)


@pytest.mark.parametrize("label", [10, -1, None])
def test_label_out_of_range_names_value_file_and_row(tmp_path, label):
    _write(tmp_path / "mnist", train=_table(_pixels(3), [0, 1, label]))
    message = rf"train.parquet must be integers in 0..9, got {label} in row 2"
    with pytest.raises(ValueError, match=message):
        load_source("mnist", tmp_path)


def test_labels_that_are_no_integers(tmp_path):
    _write(tmp_path / "mnist", train=_table(_pixels(2), ["3", "4"]))
    with pytest.raises(ValueError, match=r"got '3' in row 0"):
        load_source("mnist", tmp_path)


def test_missing_columns(tmp_path):
    _write(tmp_path / "mnist", train=_table(_pixels(), range(6), label="target"))
    with pytest.raises(ValueError, match=r"a column fine_label or label, got \['image', 'target'"):
        load_source("mnist", tmp_path)
    _write(tmp_path / "mnist", train=_table(_pixels(), range(6), image="picture"))
    with pytest.raises(ValueError, match=r"a column image or img, got \['picture', 'label'"):
        load_source("mnist", tmp_path)


@pytest.mark.parametrize(("image", "kind"), [([1, 2], "list"), ({"path": "a.png"}, "struct")])
def test_images_that_are_no_structs_with_bytes(tmp_path, image, kind):
    _write(tmp_path / "mnist", train=pa.table({"image": [image], "label": [0]}))
    with pytest.raises(ValueError, match=rf"structs with a field `bytes`, got {kind}"):
        load_source("mnist", tmp_path)


def test_images_of_several_sizes(tmp_path):
    pixels = [*_pixels(2), *_pixels(1, (5, 4))]
    _write(tmp_path / "mnist", train=_table(pixels, [0, 1, 2]))
    with pytest.raises(ValueError, match=r"got \(5, 4\) in row 2 after \(4, 4\)"):
        load_source("mnist", tmp_path)
    _write(tmp_path / "mnist", names=("train-0.parquet", "test.parquet"))
    _write(
        tmp_path / "mnist", _table(_pixels(2, (5, 5)), [1, 2]), names=("train.parquet", "t.parquet")
    )
    with pytest.raises(ValueError, match=r"one size, got files of .*4, 4.*5, 5"):
        load_source("mnist", tmp_path)


def test_no_rows(tmp_path):
    empty = _table(_pixels(1), [0]).slice(0, 0)
    _write(tmp_path / "mnist", train=empty)
    with pytest.raises(ValueError, match=r"train.parquet has no images"):
        load_source("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("digits", "sklearn.datasets"),
        ("mnist", "pyarrow.parquet"),
        ("mnist", "PIL.Image"),
        ("cifar10", "datasets"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, module):
    _write(tmp_path / "mnist")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "sparsehyper\[data\]"'):
        load_source(name, tmp_path)


def test_importing_needs_no_extra():
    code = (
        "import sys, sparsehyper.lab.data; print({'PIL', 'pyarrow', 'datasets'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_named_sources_joined(tmp_path):
    _write(tmp_path / "mnist")
    _write(
        tmp_path / "cifar10", *(_table(_pixels(shape=(5, 5, 3), seed=s), [0] * 6) for s in (2, 3))
    )
    source = load_source("mnist+cifar10", tmp_path)
    assert (source.name, source.image_shape) == ("mnist+cifar10", (3, 5, 5))
    assert len(source.classes) == 20
    assert source.classes[::10] == ("mnist 0", "cifar10 airplane")
    assert [task.name for task in source.tasks] == ["mnist", "cifar10"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits+", "got ''"),
        ("digits+photos", "got 'photos'"),
        ("digits+digits", r"must join different sources, got 'digits\+digits'"),
    ],
)
def test_sources_that_cannot_be_joined(name, message):
    with pytest.raises(ValueError, match=message):
        load_source(name)


@pytest.mark.parametrize(
    "names", [[["a"]] * 100, [{}] * 100, list(range(100)), ["a"] * 100, "x" * 100, 7, None]
)
def test_names_of_classes_that_are_none_are_numbers(tmp_path, names):
    for part in ("train", "test"):
        _write(tmp_path / "cifar100", label="fine_label", names=(f"{part}.parquet",) * 2)
    table = _table(_pixels(), list(range(6)), label="fine_label", names=names)
    pq.write_table(table, tmp_path / "cifar100" / "train.parquet")
    assert load_source("cifar100", tmp_path).classes == tuple(map(str, range(100)))


def test_text_in_place_of_bytes_is_no_path(tmp_path):
    _write(tmp_path / "mnist")
    (tmp_path / "secret.png").write_bytes(_png(_pixels(1)[0]))
    table = pa.table({"image": [{"bytes": str(tmp_path / "secret.png")}], "label": [0]})
    pq.write_table(table, tmp_path / "mnist" / "train.parquet")
    with pytest.raises(ValueError, match=r"row 0 of .*train.parquet: it must be bytes, got '"):
        load_source("mnist", tmp_path)


def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path):
    _write(tmp_path / "mnist")
    (tmp_path / "mnist" / "train.parquet").unlink()
    os.mkfifo(tmp_path / "mnist" / "train.parquet")
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet: it is not a regular file"):
        load_source("mnist", tmp_path)


def test_what_the_reader_has_not_got_is_an_error_with_the_files_name(tmp_path, monkeypatch):
    def fail(path):
        raise pa.ArrowNotImplementedError("integers of 128 bits")

    _write(tmp_path / "mnist")
    monkeypatch.setattr(pq, "read_table", fail)
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet: integers of 128 bits"):
        load_source("mnist", tmp_path)
