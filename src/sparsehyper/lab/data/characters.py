"""Hand-written characters of five alphabets: 136 characters, drawn once by each of 20 people.

The zip of drawings is read as it is published, ``…/ALPHABET/CHARACTER/*.png``: black ink on white,
105×105. Needs Pillow, from the ``data`` extra.

Source: B. Lake et al., "Human-level concept learning through probabilistic program induction"
(Science 2015); MIT licence.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from sparsehyper.lab.data.images import decode
from sparsehyper.lab.data.source import Images, Source
from sparsehyper.lab.data.splits import digests, hold_out

CHARACTERS = "omniglot_small1"
ARCHIVE = "images_background_small1.zip"
SIDE = 28
_LARGEST_FILE = 2**20  # bytes; a drawing has about 300
_TEST_FRACTION = 0.2


def load_characters(folder: Path | None) -> Source:
    """Read the drawings, resized to 28×28, with ink as 255 on 0.

    Classes are named ``ALPHABET_CHARACTER``. A fixed fifth of the drawings of every character is
    the test set.

    Args:
        folder: folder that holds the zip; None if none is known.

    Raises:
        FileNotFoundError: there is no such file; it is not fetched.
        ValueError: the file is damaged or has another layout.
    """
    path = None if folder is None else folder / ARCHIVE
    if path is None or not path.is_file():
        looked = "`data_dir` is not set" if path is None else f"there is no {path}"
        raise FileNotFoundError(
            f"source {CHARACTERS!r} is not here, and is not fetched: {looked}. Give a `data_dir` "
            f"(--data-dir, SPARSEHYPER_DATA) that holds {CHARACTERS}/{ARCHIVE}"
        )
    names, drawings = [], []
    for name, drawing in _drawings(path):
        names.append(name)
        drawings.append(drawing)
    if not names:
        raise ValueError(f"{path} has no ALPHABET/CHARACTER/*.png")
    classes = tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(classes)}
    pixels = torch.from_numpy(255 - np.stack(drawings)[:, None])
    labels = torch.tensor([numbers[name] for name in names])
    held = torch.from_numpy(hold_out(digests(pixels), labels.numpy(), _TEST_FRACTION, seed=0))
    if not held.any():
        raise ValueError(f"no character in {path} has two different drawings, to test on one")
    return Source(
        CHARACTERS,
        classes,
        train=Images(pixels[~held], labels[~held]),
        test=Images(pixels[held], labels[held]),
    )


def _drawings(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The class and the pixels ``[28, 28]`` of each drawing, in order of the files' names."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                parts = PurePosixPath(member.filename).parts
                if member.is_dir() or not parts[-1].endswith(".png"):
                    continue
                if len(parts) < 3:
                    raise ValueError(
                        f"{path} must hold ALPHABET/CHARACTER/*.png, got {member.filename!r}"
                    )
                with archive.open(member) as file:
                    encoded = file.read(_LARGEST_FILE + 1)
                if len(encoded) > _LARGEST_FILE:
                    raise ValueError(
                        f"{member.filename!r} in {path} has more than {_LARGEST_FILE:,} bytes"
                    )
                try:
                    pixels = decode(encoded, grey=True, size=(SIDE, SIDE))
                except OSError as error:
                    raise ValueError(
                        f"cannot read {member.filename!r} in {path}: {error}"
                    ) from error
                yield f"{parts[-3]}_{parts[-2]}", pixels
    # what a damaged or encrypted archive gives
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
