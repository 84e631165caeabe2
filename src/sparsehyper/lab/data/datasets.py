"""Named data sets: scikit-learn's digits, characters, four in parquet files, or several joined.

The parquet layout is that of the public data sets on the Hugging Face hub: an image struct with
``bytes``, and an integer label. Files in a local directory are preferred; without them the
``datasets`` library fetches the data set by name. Needs the ``data`` extra.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehyper._util.checks import check_choice
from sparsehyper._util.extras import require
from sparsehyper.lab.data.characters import CHARACTERS, load_characters
from sparsehyper.lab.data.images import channels_first, decode
from sparsehyper.lab.data.source import Images, Source, join_sources
from sparsehyper.lab.data.splits import digests, hold_out

DATA_DIR_VARIABLE = "SPARSEHYPER_DATA"


@dataclass(frozen=True)
class _Published:
    """A data set on the hub; ``classes`` None takes the class names from the files."""

    hub: str
    channels: int
    n_classes: int
    classes: tuple[str, ...] | None = None


_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_DIGITS = tuple("0123456789")
_PUBLISHED = {
    "mnist": _Published("ylecun/mnist", 1, 10, _DIGITS),
    "fashion_mnist": _Published("zalando-datasets/fashion_mnist", 1, 10, _FASHION),
    "cifar10": _Published("uoft-cs/cifar10", 3, 10, _CIFAR10),
    "cifar100": _Published("uoft-cs/cifar100", 3, 100),
}
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("fine_label", "label")

SOURCES = ("digits", *_PUBLISHED, CHARACTERS)


def is_source(name: str) -> bool:
    """Whether `load_source` knows a name.

    >>> is_source("mnist"), is_source("mnist+cifar10"), is_source("photos")
    (True, True, False)
    """
    return all(part in SOURCES for part in name.split("+"))


def prepared_by(name: str) -> str | None:
    """What a source does to the images of its files, in words; None if it does nothing.

    >>> prepared_by("digits+mnist"), prepared_by("mnist"), prepared_by("photos")
    ('centring on black at the largest height and width', None, None)
    """
    if not is_source(name):
        return None
    steps = []
    if CHARACTERS in name.split("+"):
        steps.append("shrinking to 28 × 28 and inverting, so that ink is white")
    if "+" in name:
        steps.append("centring on black at the largest height and width")
    return ", then ".join(steps) or None


def load_source(name: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Load a source by name.

    ``digits`` is scikit-learn's: 1,797 images of 8×8 in 16 grey levels, scaled to 255; a fixed
    fifth of every class is the test set. ``omniglot_small1`` is read from its zip in
    ``data_dir/omniglot_small1/``; see `load_characters`. The others are read from
    ``train*.parquet`` and ``test*.parquet`` in ``data_dir/<name>/`` or a subfolder, if
    ``data_dir/<name>/`` exists; otherwise they are fetched from the hub. Several names joined by
    ``+`` make one source; see `join_sources`.

    Args:
        name: ``digits``, ``mnist``, ``fashion_mnist``, ``cifar10``, ``cifar100`` or
            ``omniglot_small1``; or several, such as ``mnist+cifar10``.
        data_dir: directory with one folder per source; None for the environment variable
            ``SPARSEHYPER_DATA``, if it is set.

    Raises:
        ValueError: an unknown name or one given twice, a file that is damaged or has another
            layout, or a label out of range.
        FileNotFoundError: no such directory, or the files can neither be found nor fetched.
        ImportError: the ``data`` extra is not installed.

    >>> source = load_source("digits")
    >>> source.image_shape, len(source.train.labels), len(source.test.labels)
    ((1, 8, 8), 1438, 359)
    """
    parts = name.split("+")
    for part in parts:
        check_choice("source", part, SOURCES)
    if len(parts) > 1:
        if len(set(parts)) < len(parts):
            raise ValueError(f"`source` must join different sources, got {name!r}")
        return join_sources([load_source(part, data_dir) for part in parts])
    if name == "digits":
        return _load_digits()
    data_dir = data_dir or os.environ.get(DATA_DIR_VARIABLE) or None
    folder = None if data_dir is None else Path(data_dir) / name
    if folder is not None and not folder.parent.is_dir():
        raise FileNotFoundError(f"`data_dir` is not a directory: {folder.parent}")
    if name == CHARACTERS:
        return load_characters(folder)
    published = _PUBLISHED[name]
    if folder is not None and folder.is_dir():
        tables = _local_tables(folder)
    else:
        tables = _hub_tables(name, published.hub, folder)
    classes = published.classes or _class_names(*tables["train"][0], published.n_classes)
    train, test = (
        _join_files([_read(table, origin, published) for table, origin in tables[part]])
        for part in ("train", "test")
    )
    return Source(name, classes, train, test)


def _load_digits() -> Source:
    bunch = require("sklearn.datasets", "data").load_digits()
    levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    pixels, labels = torch.from_numpy(levels).unsqueeze(1), torch.from_numpy(bunch.target).long()
    held = torch.from_numpy(hold_out(digests(pixels), labels.numpy(), fraction=0.2, seed=0))
    return Source(
        "digits",
        _DIGITS,
        train=Images(pixels[~held], labels[~held]),
        test=Images(pixels[held], labels[held]),
    )


def _local_tables(folder: Path) -> dict[str, list[tuple[Any, str]]]:
    parquet, arrow = require("pyarrow.parquet", "data"), require("pyarrow", "data")
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        files = {part: sorted(place.glob(f"{part}*.parquet")) for part in ("train", "test")}
        if all(files.values()):
            break
    else:
        raise FileNotFoundError(f"{folder} has no train*.parquet and test*.parquet")
    tables: dict[str, list[tuple[Any, str]]] = {}
    for part, paths in files.items():
        tables[part] = []
        for path in paths:
            try:
                if not path.is_file():
                    raise OSError("it is not a regular file")
                tables[part].append((parquet.read_table(path), str(path)))
            except (OSError, ValueError, MemoryError, arrow.ArrowException) as error:
                raise ValueError(f"cannot read {path}: {error}") from error
    return tables


def _hub_tables(name: str, hub: str, folder: Path | None) -> dict[str, list[tuple[Any, str]]]:
    datasets = require("datasets", "data")
    try:
        parts = datasets.load_dataset(hub)
        tables: dict[str, list[tuple[Any, str]]] = {}
        for part in ("train", "test"):
            dataset = parts[part]
            for column in _IMAGE_COLUMNS:
                if column in dataset.column_names:
                    dataset = dataset.cast_column(column, datasets.Image(decode=False))
            tables[part] = [(dataset.with_format("arrow")[:], f"{hub} ({part})")]
        return tables
    # Many things can go wrong in there, all with the same remedies.
    except Exception as error:
        looked = "`data_dir` is not set" if folder is None else f"there is no {folder}"
        raise FileNotFoundError(
            f"source {name!r} is not here and cannot be fetched: {looked}, and {hub!r} on the "
            f"Hugging Face hub gave: {error}. Connect to the network, or give a `data_dir` "
            f"(--data-dir, {DATA_DIR_VARIABLE}) that holds {name}/train.parquet and "
            f"{name}/test.parquet"
        ) from error


def _read(table: Any, origin: str, published: _Published) -> Images:
    _, labels = _column(table, _LABEL_COLUMNS, origin)
    _, images = _column(table, _IMAGE_COLUMNS, origin)
    try:
        encoded = require("pyarrow.compute", "data").struct_field(images, "bytes").to_pylist()
    # pyarrow's errors are of these types
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"images in {origin} must be structs with a field `bytes`, got {images.type}"
        ) from error
    return Images(
        pixels=torch.from_numpy(_pixels(encoded, origin, published.channels)),
        labels=torch.from_numpy(_labels(labels, origin, published.n_classes)),
    )


def _join_files(files: list[Images]) -> Images:
    shapes = {images.pixels.shape[1:] for images in files}
    if len(shapes) > 1:
        raise ValueError(f"images must be of one size, got files of {sorted(map(list, shapes))}")
    return Images(*(torch.cat(parts) for parts in zip(*files, strict=True)))


def _column(table: Any, names: tuple[str, ...], origin: str) -> tuple[str, Any]:
    for name in names:
        if name in table.column_names:
            return name, table[name]
    raise ValueError(f"{origin} must have a column {' or '.join(names)}, got {table.column_names}")


def _labels(column: Any, origin: str, n_classes: int) -> NDArray[np.int64]:
    for row, label in enumerate(labels := column.to_pylist()):
        if not isinstance(label, int) or not 0 <= label < n_classes:
            raise ValueError(
                f"labels in {origin} must be integers in 0..{n_classes - 1}, got {label!r} in row "
                f"{row}"
            )
    return np.array(labels, dtype=np.int64)


def _pixels(encoded: list[Any], origin: str, channels: int) -> NDArray[np.uint8]:
    """Uint8 ``[n, channels, height, width]``."""

    def read(row: int) -> NDArray[np.uint8]:
        data = encoded[row]
        try:
            if not isinstance(data, bytes):  # a string would be opened as the path of a file
                raise OSError(
                    "it is empty" if data is None else f"it must be bytes, got {data!r:.50}"
                )
            return decode(data, grey=channels == 1)
        except OSError as error:
            raise ValueError(f"cannot read the image in row {row} of {origin}: {error}") from error

    if not encoded:
        raise ValueError(f"{origin} has no images")
    arrays = [read(row) for row in range(len(encoded))]
    for row, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"images in {origin} must be of one size, got {array.shape[:2]} in row {row} after "
                f"{arrays[0].shape[:2]}"
            )
    return channels_first(np.stack(arrays))


def _class_names(table: Any, origin: str, n_classes: int) -> tuple[str, ...]:
    """Class names from the hub's metadata, else the class numbers."""
    label, _ = _column(table, _LABEL_COLUMNS, origin)
    try:
        info = json.loads(table.schema.metadata[b"huggingface"])["info"]
        names = tuple(info["features"][label]["names"])
        set(names)
    except (TypeError, LookupError, ValueError):
        names = ()
    given = len(set(names)) == n_classes and all(isinstance(name, str) for name in names)
    return names if given else tuple(map(str, range(n_classes)))
