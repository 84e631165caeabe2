"""Bad input ends in an error that says what is wrong: no traceback, no hang, no flood of memory.

A call that hangs is ended by pytest's time limit; the last call tried is among the printed lines.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import resource
import shutil
import string
import struct
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image
from torch import nn

import sparsehyper
from sparsehyper import (
    HyperNetwork,
    Sparse,
    TaskEmbedding,
    TaskFeatures,
    average_predictions,
    fit_embedding,
    identify_task,
    task_profiles,
)
from sparsehyper.generators import parse_generator
from sparsehyper.lab.cli.app import app, run
from sparsehyper.lab.data import (
    Hue,
    Images,
    Permuted,
    Rotated,
    Source,
    Split,
    TaskInfo,
    find_images,
    load_folder,
    load_new_tasks,
    load_source,
    make_tasks,
    parse_tasks,
)
from sparsehyper.lab.data.images import decode, read_header
from sparsehyper.lab.runs import DataConfig, Experiment, build_model
from sparsehyper.lab.runs.task_list import TaskEntry
from sparsehyper.training import TrainConfig

PROMISE = "bad input ends in an error line"
ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError)
MEMORY = 4 << 30  # bytes that may be taken beyond those in use
HOSTILE_NAMES = [
    "\x1b]0;x\x07",
    "=1+1",
    "two\nlines",
    " ",
    "é" * 80,
    "\u202egnp",
    "\udcff",
    "$\\frac{",
]


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Limited memory, and warnings that are not errors, as for a user."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Trials:
    """Calls, and what went wrong in them.

    Attributes:
        tried, done: Number of calls, and number of those that were not refused.
        wrong: Calls that ended in an unexpected way, by that way.
    """

    def __init__(self) -> None:
        self.tried = self.done = 0
        self.wrong: dict[str, str] = {}

    def made(self, call: Callable[[], Any], tried: object) -> bool:
        """Return whether a call succeeded; the errors that we promise count as refusals."""
        self.tried += 1
        print(self.tried, repr(tried)[:3000])
        try:
            call()
        except (*ERRORS, MemoryError):
            return False
        except Exception as error:
            if not (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f for f in frames if "sparsehyper" in f.filename] or frames
                where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
                self.fail(f"{type(error).__name__} at {where}", (str(error)[:300], tried))
            return False
        self.done += 1
        return True

    def fail(self, how: str, tried: object) -> None:
        """Record something that should not have happened."""
        self.wrong.setdefault(how, repr(tried)[:3000])

    def check(self, record_figures: Callable[..., None], what: str) -> None:
        """Assert that nothing went wrong and that not every call was refused."""
        wrong = len(self.wrong)
        record_figures(PROMISE, what=what, tried=self.tried, wrong=wrong, accepted=self.done)
        assert not self.wrong, "\n".join(f"{k}\n    {v}" for k, v in self.wrong.items())
        assert self.done


# ---------------------------------------------------------------------------------------- pictures


def _encoded() -> list[bytes]:
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 255, (7, 9), dtype=np.uint8))
    colour = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8))
    deep = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 999)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words" * 6
    written: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (grey, "PNG", {}),
        (colour, "PNG", {"exif": exif, "icc_profile": b"x" * 99}),
        (colour.quantize(4), "PNG", {"transparency": 1}),
        (colour.convert("RGBA"), "PNG", {}),
        (grey.convert("LA"), "PNG", {}),
        (deep, "PNG", {"transparency": 999}),
        (grey.convert("1"), "PNG", {}),
        (colour, "PNG", {"save_all": True, "append_images": [colour]}),
        (grey, "JPEG", {}),
        (colour, "JPEG", {"exif": exif, "icc_profile": b"x" * 99}),
        (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        (colour, "MPO", {"save_all": True, "append_images": [colour]}),
        (colour, "WEBP", {"exif": exif}),
        (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        (colour, "WEBP", {"save_all": True, "append_images": [colour]}),
        *((colour, kind, {}) for kind in ("GIF", "BMP", "TIFF")),
    ]
    files = []
    for picture, kind, options in written:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def _damaged(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at : at + 1] = rng.randbytes(1)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
        else:
            del data[at:]
    whole = bytes(data)
    return _with_checksums(whole) if rng.random() < 0.7 else whole


def _with_checksums(png: bytes) -> bytes:
    """A PNG with repaired checksums, so that the decoder reads past them."""
    if not png.startswith(b"\x89PNG"):
        return png
    out, at = png[:8], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + length]
        out += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


def test_damaged_pictures(trials, record_figures):
    rng, files, done = random.Random(0), _encoded(), Trials()
    for _ in range(trials(1000, 4000)):
        encoded, grey = _damaged(rng.choice(files), rng), rng.random() < 0.5

        def read(encoded: bytes = encoded, grey: bool = grey) -> None:
            try:
                pixels = decode(encoded, grey=grey)
            except OSError:
                read_header(encoded)
                return
            if read_header(encoded).size != pixels.shape[:2]:
                done.fail("the header tells another size than the pixels have", encoded.hex())

        done.made(read, encoded.hex())
    done.check(record_figures, "pictures")


def test_damaged_tables(tmp_path, trials, record_figures):
    rng, done, folder = random.Random(0), Trials(), tmp_path / "mnist"
    folder.mkdir()
    rows = {"image": [{"bytes": _encoded()[0]}] * 12, "label": [*range(10), 0, 1]}
    pq.write_table(pa.table(rows), folder / "test.parquet")
    whole = (folder / "test.parquet").read_bytes()
    for _ in range(trials(200, 1000)):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2])):  # half of them where the schema is
            first = 0 if rng.random() < 0.5 else len(whole) - 900
            damaged[rng.randrange(first, len(whole))] = rng.randrange(256)
        (folder / "train.parquet").write_bytes(damaged)
        done.made(partial(load_source, "mnist", tmp_path), damaged.hex())
    done.check(record_figures, "tables")


# ----------------------------------------------------------------------------------------- folders


def _name(rng: random.Random) -> str:
    return rng.choice(
        [
            *HOSTILE_NAMES,
            "train",
            "test",
            "Train",
            "TEST",
            "a",
            "b",
            "1",
            "02",
            ".hidden",
            "x" * 200,
        ]
    )


def _fill(folder: Path, rng: random.Random, pictures: list[bytes], depth: int) -> None:
    suffixes = [".png", ".PNG", ".jpg", ".webp", ".tif", ".txt", ""]
    for i in range(rng.choice([0, 2, 3, 5]) if depth < 4 else 0):
        path, kind = folder / f"{_name(rng)}{i if rng.random() < 0.3 else ''}", rng.random()
        if path.exists() or path.is_symlink():
            continue
        if kind < 0.75 and depth < 2:
            path.mkdir()
            _fill(path, rng, pictures, depth + 1)
        elif kind < 0.8:
            path.symlink_to(rng.choice([".", "..", "nowhere", path.name, "/dev/zero"]))
        elif kind < 0.85:
            os.mkfifo(path.with_name(f"pipe{i}{rng.choice(suffixes)}"))
        elif kind < 0.9:
            path.with_name(f"folder{i}{rng.choice(suffixes)}").mkdir()
        else:
            for j in range(6):
                data = rng.choice(pictures)
                data = _damaged(data, rng) if rng.random() < 0.1 else data
                path.with_name(f"picture{i}-{j}{rng.choice(suffixes[:3])}").write_bytes(data)


def test_folders_of_all_kinds(tmp_path, trials, record_figures):
    rng, pictures, done = random.Random(0), _encoded(), Trials()
    for trial in range(trials(40, 600)):
        root = tmp_path / str(trial)
        root.mkdir()
        _fill(root, rng, pictures[: rng.choice([1, 1, 4])], rng.choice([0, 0, 1, 2]))
        files = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        size, task = rng.choice([None, 8]), rng.choice([None, "new"])
        place = rng.choice([root, f"{root}/**", f"{root}/**/*.png", f"{root}/*/../**/**/*"])
        for call in (
            partial(load_folder, root, image_size=size),
            partial(load_new_tasks, root, (1, 7, 9), task=task),
            partial(find_images, place),
        ):
            done.made(call, (call.func.__name__, call.args, call.keywords, files))
        shutil.rmtree(root)
    done.check(record_figures, "folders")


# ---------------------------------------------------------------------------------- configurations

SCALARS = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "1e999", "mlp:", "mlp:0", "mlp:-1-2", "cnn:4,x=1"),
    *("resnet:depth=9", "split:0", "split:2,all", "permuted:99999999999", "hue:0.7", "rotated:"),
    *("split:2/hue:5", "dense", "sparse:growth=1.0001", "adam", "cosine", "cpu", "cuda:99", "what"),
    *HOSTILE_NAMES,
    *([], [1], ["a", "a"], [None], [[]], {}, {"kind": "dense"}, {"kind": "sparse", "fan_in": -1}),
]


def _mutated(tree: Any, rng: random.Random) -> Any:
    """A tree of dicts and lists in which one entry is changed, removed or added."""
    tree = copy.deepcopy(tree)
    place, key = None, None
    inner = tree
    while isinstance(inner, (dict, list)) and inner and (place is None or rng.random() < 0.8):
        place, key = (
            inner,
            rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner))),
        )
        inner = place[key]
    if place is None:
        return rng.choice(SCALARS)
    kind = rng.random()
    if kind < 0.1:
        del place[key]
    elif kind < 0.15 and isinstance(place, dict):
        place[rng.choice(["what", "", "kind", "seed"])] = rng.choice(SCALARS)
    elif kind < 0.25 and isinstance(inner, str) and inner:
        at = rng.randrange(len(inner))
        place[key] = inner[:at] + rng.choice(string.printable.replace(":", "")) + inner[at + 1 :]
    else:
        place[key] = rng.choice(SCALARS)
    return tree


def _configurations() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    experiment = Experiment(
        DataConfig(tasks="split:2"), TrainConfig(steps=2), target="mlp:4", latent_dim=8
    )
    info = {
        "names": ["shoes", "bags"],
        "classes": [["new", "worn"], ["old", "broken", "lost"]],
        "image_shape": [1, 4, 4],
        "mean": [0.5],
        "std": [0.25],
        "fingerprint": "0123456789abcdef",
    }
    entry = {
        "name": "hats",
        "classes": ["a", "b"],
        "row": None,
        "key": "0",
        "tune": None,
        "method": "average",
        "model": {
            "members": [
                {"kind": "linear", "outputs": 3},
                {
                    "members": [{"kind": "target", "outputs": 2}],
                    "weights": [1.0],
                    "temperatures": [2.0],
                    "n_classes": None,
                },
            ],
            "weights": [0.25, 0.75],
            "temperatures": [1.5, 1.0],
            "n_classes": 2,
        },
        "measured": {
            "images": 9,
            "accuracy": 0.5,
            "test_images": 0,
            "test_accuracy": None,
            "expected": 0.4,
            "interval": [0.1, 0.6],
            "more": [0.5, 0.6],
            "why": "so",
            "warnings": ["few"],
        },
    }
    return experiment.to_dict(), info, entry


def test_configurations(trials, record_figures):
    rng, done = random.Random(0), Trials()
    settings, info, entry = _configurations()
    for _ in range(trials(400, 3000)):
        changed, others, task = settings, info, entry
        for _ in range(rng.choice([1, 1, 2, 3])):
            kind = rng.random()
            if kind < 0.6:
                changed = _mutated(changed, rng)
            elif kind < 0.9:
                others = _mutated(others, rng)
            else:
                task = _mutated(task, rng)

        def read(changed: Any = changed, others: Any = others, task: Any = task) -> None:
            TaskEntry.from_dict(task)
            found = TaskInfo.from_dict(others)
            found.normalise(torch.zeros(2, *found.image_shape, dtype=torch.uint8))
            build_model(Experiment.from_dict(changed), found)

        done.made(read, (changed, others, task))
    done.check(record_figures, "configurations")


# --------------------------------------------------------------------------------- the library


def _arguments(rng: random.Random) -> Any:
    """Values that nobody should pass in that place."""
    return rng.choice(
        [
            *SCALARS,
            *(b"x", (), (1, 2), range(3), object(), len, np.zeros(3), np.int32(1), np.float32(2)),
            *(
                torch.tensor(1),
                torch.tensor(True),
                torch.zeros(8),
                torch.zeros(0),
                torch.ones(3, 8),
            ),
            *(torch.arange(3), torch.arange(3).int(), torch.arange(3, dtype=torch.uint8)),
            *(torch.zeros(8, dtype=torch.complex64), torch.zeros(8).to_sparse(), torch.eye(2)),
            *(nn.Linear(8, 2), nn.Module(), Sparse(), TaskEmbedding(2, 8), Split(2)),
            *({"a": torch.zeros(8)}, {"a": torch.zeros(8), "b": torch.zeros(9)}, {1: 2}),
        ]
    )


def _hypernetwork() -> HyperNetwork:
    return HyperNetwork(nn.Linear(4, 3), Sparse(), TaskEmbedding(["a", "b"], 8))


X, Y = torch.randn(6, 4), torch.arange(6) % 3

# Correct calls, in which some arguments are then replaced.
CALLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (TaskEmbedding, {"tasks": 3, "dim": 8, "similarity": 0.5, "seed": 0}),
    (TaskFeatures, {"features": {"a": torch.zeros(3)}, "dim": 8, "hidden": 4, "seed": 0}),
    (sparsehyper.Noise, {"dim": 8, "per": "batch"}),
    (sparsehyper.InputEncoder, {"encoder": nn.Linear(4, 8), "dim": 8, "per": "batch"}),
    (
        sparsehyper.InputAndTask,
        {
            "encoder": sparsehyper.InputEncoder(nn.Linear(4, 8), 8),
            "tasks": TaskEmbedding(2, 8),
            "seed": 0,
        },
    ),
    (
        sparsehyper.SupportSet,
        {
            "encoder": nn.Linear(4, 5),
            "features": 5,
            "n_classes": 3,
            "dim": 8,
            "hidden": 4,
            "seed": 0,
        },
    ),
    (
        sparsehyper.TaskExamples,
        {
            "support": sparsehyper.SupportSet(nn.Linear(4, 5), 5, n_classes=3, dim=8),
            "tasks": 3,
            "draw": None,
        },
    ),
    (
        Sparse,
        {
            "fan_in": 2,
            "growth": 2.0,
            "topology": "local",
            "sigma": 1.0,
            "activation": "relu",
            "bias": True,
            "share": 2,
        },
    ),
    (sparsehyper.Chunked, {"chunks": 4, "hidden": 8, "by": "tensor"}),
    (sparsehyper.Dense, {"hidden": 8}),
    (sparsehyper.LowRank, {"rank": 2, "of": Sparse()}),
    (sparsehyper.Butterfly, {"stages": 2, "benes": True}),
    (sparsehyper.Composed, {"parts": [("*", Sparse())]}),
    (
        sparsehyper.SparseLinear,
        {
            "in_features": 8,
            "out_features": 20,
            "fan_in": 2,
            "topology": "uniform",
            "sigma": 2.0,
            "negative_slope": 0.5,
            "bias": True,
            "share": 1,
            "seed": 0,
        },
    ),
    (parse_generator, {"text": "sparse:growth=2"}),
    (parse_tasks, {"text": "split:2"}),
    (Split, {"classes": 2, "combinations": False}),
    (Permuted, {"n_tasks": 3, "seed": 0, "of": None}),
    (Rotated, {"angles": 3, "of": None}),
    (Hue, {"shifts": 3, "of": None}),
    (lambda **given: make_tasks(load_source("digits"), **given), {"maker": Split(2), "seed": 0}),
    (
        lambda **given: make_tasks(load_source("digits"), Permuted(**given)),
        {"n_tasks": 3, "of": Split(5)},
    ),
    (
        lambda y: Source("s", ("a", "b"), *[Images(torch.zeros(2, 1, 4, 4).byte(), y)] * 2),
        {"y": torch.tensor([0, 1])},
    ),
    (lambda **given: TrainConfig(**{"steps": 2, **given}), TrainConfig(steps=2).to_dict()),
    (lambda **given: _hypernetwork().add_task(**given), {"name": "c", "init": "mean"}),
    (lambda **given: _hypernetwork().rename_task(**given), {"name": "a", "new_name": "c"}),
    (lambda **given: _hypernetwork().remove_task(**given), {"name": "a"}),
    (lambda **given: _hypernetwork().generate(**given), {"task": "a"}),
    (lambda **given: _hypernetwork().embedding(**given), {"task": "a"}),
    (lambda **given: _hypernetwork().materialize(**given), {"task": "a"}),
    (lambda **given: _hypernetwork()(X, **given), {"task": torch.tensor([0, 1, 1, 0, 1, 0])}),
    (
        lambda **given: identify_task(
            _hypernetwork(), task_profiles(_hypernetwork(), {"a": (X, Y), "b": (X, Y)}), X, **given
        ),
        {"y": Y, "significance": 0.05},
    ),
    (
        lambda y, **given: task_profiles(_hypernetwork(), {"a": (X, y)}, **given),
        {"y": Y, "validation": {"b": (X, Y)}},
    ),
    (
        lambda y, **given: fit_embedding(_hypernetwork(), samples=(X, y), **given),
        {
            "y": Y,
            "name": "c",
            "steps": 2,
            "init": "mean",
            "restarts": 1,
            "space": "free",
            "n_classes": 3,
            "batch_size": 6,
            "seed": 0,
        },
    ),
    (
        lambda **given: average_predictions(_hypernetwork(), x=X, **given),
        {"fit": fit_embedding(_hypernetwork(), "c", (X, Y), steps=2), "n_classes": 3},
    ),
    (
        lambda y, **given: sparsehyper.fine_tune(nn.Linear(4, 3), (X, y), **given),
        {
            "y": Y,
            "tune": "all",
            "norm_stats": "kept",
            "n_classes": 3,
            "steps": 2,
            "lr": 1e-3,
            "batch_size": 4,
            "seed": 0,
        },
    ),
]
# Larger values of these are not errors: the caller asked for that much work.
_LONG = {"steps", "restarts", "name"}


def test_arguments_of_the_library(trials, record_figures):
    rng, done = random.Random(0), Trials()
    for _ in range(trials(400, 4000)):
        call, arguments = rng.choice(CALLS)
        arguments = dict(arguments)
        for name in rng.sample(list(arguments), min(len(arguments), rng.choice([1, 1, 2]))):
            value = _arguments(rng)
            if not (name in _LONG and isinstance(value, int) and 10 < value < 2**63):
                arguments[name] = value
        done.made(partial(call, **arguments), (call, arguments))
    done.check(record_figures, "calls of the library")


# ---------------------------------------------------------------------------------------- commands

NUMBERS = ["-1", "0", "1e400", "nan", "inf", "-inf", "2147483648", "9223372036854775808"]
NUMBERS += ["1" * 30, "9" * 5000, "", "x", "1_0", "0x10", "٣", "1.5", "-0.5", "1e308", "1,2"]
TEXTS = ["", "x", ":", "/", "a=b", "None", "..", "*", "sparse:growth=1.0001", "dense:hidden=x"]
TEXTS += ["low_rank:rank=2/dense", "mlp:", "mlp:4-x", "cnn:4,norm=what", "resnet:depth=9", "what"]
TEXTS += ["split:2,all", "split:0-1,1-0", "split:3", "split:99-100", "permuted:9999999999"]
TEXTS += ["permuted:2,seed=x", "rotated:nan", "hue:5", "split:2/hue:5", "mnist+mnist", "digits+x"]
TEXTS += ["mlp:4/masked:2", "mlp:4/masked:x", "sparse:fan_in=-1", "chunked:chunks=1e9", "cuda:99"]
TEXTS += ["experts", "shared_trunk", "norm", "bf16", "sgd", "plateau", "crop", "val", "train"]
TEXTS += [name.replace("\udcff", "ÿ") for name in HOSTILE_NAMES]
# These do what they are asked, however long it takes.
_WORK = {"steps", "tune_steps", "restarts", "rounds", "seeds", "workers", "latent_dim", "outputs"}
_TRAIN = ["--steps", "2", "--target", "mlp:4", "--latent-dim", "8", "--device", "cpu", "--quiet"]
_OFTEN = ["train", "adapt", "predict", "evaluate", "tasks", "inspect", "export"]
# Those without a default.
_NUMBERS = {"budget", "image_size", "outputs", "warmup", "patience"}


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """A small run, an adapted one, one with hostile names, and folders of images."""
    images = {}
    for name, tasks in (("folder", ["shoes", "bags"]), ("hostile", ["\x1b]0;x\x07", "=1+1"])):
        images[name] = tmp_path / name
        rng = np.random.default_rng(0)
        for task in tasks:
            for label in ("@a", "b\nc"):
                (images[name] / task / label).mkdir(parents=True)
                for i in range(4):
                    pixels = rng.integers(0, 255, (8, 8)).astype(np.uint8)
                    Image.fromarray(pixels).save(images[name] / task / label / f"{i}.png")
    runs = {name: tmp_path / f"run-{name}" for name in ("digits", "hostile", "adapted")}
    for name, data in (("digits", "digits"), ("hostile", str(images["hostile"]))):
        assert run(["train", "--out", str(runs[name]), "--data", data, *_TRAIN]) == 0
    adapt = ["--data", str(images["folder"]), "--out", str(runs["adapted"]), "--seconds", "1"]
    assert run(["adapt", str(runs["digits"]), *adapt, "--device", "cpu"]) == 0
    damaged = tmp_path / "run-damaged"
    shutil.copytree(runs["digits"], damaged)
    return {**images, **{f"run-{n}": path for n, path in runs.items()}, "run-damaged": damaged}


class Commands:
    """Random command lines: correct ones, with something then made wrong."""

    def __init__(self, places: dict[str, Path], rng: random.Random) -> None:
        self._places, self._rng = places, rng
        self._group = typer.main.get_command(app)
        self._made = 0
        self._config = json.loads((places["run-damaged"] / "config.json").read_text())

    def next(self) -> list[str]:
        """The next command line."""
        rng = self._rng
        name = rng.choice([*_OFTEN * 3, "compare", "report", "study", "bench"])
        words = self._right(name)
        parameters = [p for p in self._group.commands[name].params if p.opts[0].startswith("--")]
        parameters = [p for p in parameters if p.name not in ("help", "compile")]
        must_fail = name in ("compare", "study", "bench")  # they take too long
        for _ in range(1 if must_fail else rng.choice([0, 1, 1, 2, 3])):
            parameter = rng.choice(parameters)
            if parameter.is_flag:
                words.append(parameter.opts[0])
                continue
            for _ in range(parameter.nargs):
                words += [parameter.opts[0]] if _ == 0 else []
                words.append(self._value(parameter))
        if must_fail:
            words += {"compare": ["--seeds", "0"], "study": ["--workers", "0"]}.get(
                name, ["--rounds", "0"]
            )
        if rng.random() < 0.1:
            strange = rng.choice([*TEXTS, "--what", "-x", "--"])
            words.insert(rng.randrange(1, len(words) + 1), strange)
        if rng.random() < 0.05:
            del words[rng.randrange(1, len(words))]
        return words

    def _right(self, name: str) -> list[str]:
        rng, places = self._rng, self._places
        if rng.random() < 0.3:
            changed = _mutated(self._config, rng)
            (places["run-damaged"] / "config.json").write_text(json.dumps(changed))
        self._made += 1
        out = str(places["folder"].parent / f"out-{self._made}")
        described = str(rng.choice([path for n, path in places.items() if n.startswith("run")]))
        task = rng.choice(["0-1", "shoes", "=1+1", "\x1b]0;x\x07"])
        folder = str(places[rng.choice(["folder", "hostile"])])
        return {
            "train": ["train", "--out", out, *_TRAIN, "--data", rng.choice(["digits", folder])],
            "adapt": ["adapt", described, "--data", folder, "--out", out, "--device", "cpu",
                      *rng.choice([["--seconds", "1"],
                                   ["--method", "embedding", "--steps", "2"]])],
            "predict": ["predict", described, rng.choice([folder, f"{folder}/**/*.png"]),
                        "--device", "cpu", *rng.choice([[], ["--task", task]])],
            "evaluate": ["evaluate", described, "--device", "cpu"],
            "tasks": ["tasks", described],
            "inspect": rng.choice([["inspect", described], ["inspect", "--target", "mlp:4",
                                    "--latent-dim", "8", "--image", "1x4x4"]]),
            "export": ["export", described, "--task", task, "--out", f"{out}.safetensors"],
            "compare": ["compare", "--out", out, *_TRAIN],
            "report": ["report", described, "--out", f"{out}.html"],
            "study": ["study", "variations", "--out", out, "--scale", "smoke"],
            "bench": ["bench", "--out", out, "--quick", "--only", "layers"],
        }[name]  # fmt: skip

    def _value(self, parameter: Any) -> str:
        rng = self._rng
        if parameter.name in ("out", "data", "data_dir", "peers") and rng.random() < 0.7:
            return str(rng.choice([*self._places.values(), "/dev/null", "nowhere", "x" * 300]))
        number = isinstance(parameter.default, (int, float)) or parameter.name in _NUMBERS
        value = rng.choice([*NUMBERS, "2", "3"] if number else TEXTS)
        long = parameter.name in _WORK and value == "2147483648"
        return "2" if long else value


def test_commands(places, trials, record_figures, capsys, monkeypatch):
    # Files with names from bad input would go there.
    monkeypatch.chdir(places["folder"].parent)
    monkeypatch.delenv("SPARSEHYPER_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = Trials()
    commands = Commands(places, random.Random(0))
    for _ in range(trials(60, 2000)):
        words = commands.next()

        def call(words: list[str] = words) -> None:
            capsys.readouterr()
            code = run(words)
            out, err = capsys.readouterr()
            if code not in (0, 1, 2):
                done.fail(f"exit code {code}", (words, err))
            if "Traceback" in err or (code and not err):
                done.fail("no error line", (words, code, err))
            if "\x1b]" in out + err:
                done.fail("an escape sequence that reaches the terminal", (words, out, err))
            if code:
                raise ValueError

        done.made(call, words)
    done.check(record_figures, "commands")
