"""Image files: which are read, where they are found, and their pixels.

Reads PNG, JPEG and WebP, whatever the case of the suffix. Hidden files and files of other kinds are
ignored; a warning reports images in other formats. Needs Pillow, from the ``data`` extra.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsehyper._util.text import by_value
from sparsehyper.lab.data.images import Header, channels_first, decode, in_threads, read_header

FORMATS_READ = "PNG, JPEG and WebP are read"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Suffixes of image formats that are not read; a warning reports such files.
_OTHER_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".cr2", ".dcm", ".dib", ".dng", ".gif", ".heic", ".heif", ".ico"),
    *(".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".mpo", ".nef", ".pbm", ".pcx", ".pgm", ".pnm"),
    *(".ppm", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff"),
)

_T = TypeVar("_T")


def load_images(
    paths: Sequence[Path], image_shape: tuple[int, ...], *, resize: bool = False
) -> Tensor:
    """Read images for a trained model, uint8 ``[n, *image_shape]``.

    Args:
        paths: image files.
        image_shape: channels, height, width that the model takes.
        resize: resize images to that height and width; otherwise they must have it.

    Raises:
        ValueError: an image cannot be read, is in colour for a grey model, or has another size.
    """
    channels, *size = image_shape
    if channels not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, the model takes {channels}")
    for path in paths:
        header = header_of(path)
        if channels == 1 and not header.grey:
            raise ValueError(
                f"image {path} is in colour, the model takes grey images; convert it to grey"
            )
        if not resize and list(header.size) != size:
            raise ValueError(
                f"image {path} is {header.size[0]} × {header.size[1]} (height × width), the model "
                f"takes {size[0]} × {size[1]}; use `resize`"
            )
    return decode_files(paths, grey=channels == 1, size=(size[0], size[1]))


def decode_files(paths: Sequence[Path], *, grey: bool, size: tuple[int, int] | None) -> Tensor:
    """Decode image files of one size, or resized to ``size``, to uint8 ``[n, C, H, W]``.

    Raises:
        ValueError: an image cannot be read.
    """
    read = partial(decode, grey=grey, size=size)
    arrays = in_threads(lambda path: _readable(read, path), paths)
    return torch.from_numpy(channels_first(np.stack(arrays)))


def header_of(path: Path) -> Header:
    """The size and colour of an image; raises ``ValueError`` if it cannot be read."""
    return _readable(read_header, path)


def find_images(place: str | os.PathLike[str]) -> list[Path]:
    """Find the images that a file, a folder or a glob names.

    Folders are searched recursively, without hidden files. Each folder is visited once, since links
    may form a cycle. A file named directly is taken whatever its suffix.

    Raises:
        FileNotFoundError: there are none.
    """
    place = os.fspath(place)
    matches = [Path(place)] if os.path.lexists(place) else sorted(_matches(place))
    found: list[Path] = []
    others: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for match in matches:
        if match.is_dir():
            files = [path for path in _walk(match, seen) if not path.is_dir()]
            found += filter(is_image, files)
            others += filter(is_other_format, files)
        else:
            found.append(match)
    warn_ignored(others)
    if not found:
        raise FileNotFoundError(
            f"no image at {place!r}; give files, folders or globs; {FORMATS_READ}"
        )
    return found


def _readable(read: Callable[[Path], _T], path: Path) -> _T:
    try:
        return read(path)
    except OSError as error:
        raise ValueError(f"cannot read image {path}: {error}") from error


def visible(parent: Path) -> list[Path]:
    shown = (path for path in parent.iterdir() if not path.name.startswith("."))
    return sorted(shown, key=lambda path: by_value(path.name))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def is_other_format(path: Path) -> bool:
    return path.suffix.lower() in _OTHER_SUFFIXES


def warn_ignored(others: list[Path]) -> None:
    if others:
        warnings.warn(
            f"images in other formats are ignored: {others[0]}"
            f"{f' and {len(others) - 1:,} more' if others[1:] else ''}; {FORMATS_READ}",
            stacklevel=2,
        )


def _matches(pattern: str) -> Iterator[Path]:
    """Paths that match a glob, each once; ``**`` is any folder below."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    at = parts.index("**")
    for start in _matches(str(Path(*parts[:at]))) if at else [Path()]:
        for folder in _walk(start, set()):
            if folder.is_dir():
                yield from _matches(str(Path(glob.escape(str(folder)), *parts[at + 1 :])))


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """A folder and everything visible below it, in order, except folders in ``seen``."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(visible(path))
        yield path
