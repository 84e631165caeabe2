"""Encoded pictures → uint8 arrays. Needs Pillow, from the ``data`` extra.

Whatever the file holds (palette, transparency, 16 bits, CMYK, an EXIF orientation), what comes out
is 8-bit grey ``[H, W]`` or colour ``[H, W, 3]``, upright, any transparency laid over white.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsehyper._extras import require

T = TypeVar("T")
R = TypeVar("R")

# No other decoder is ever started, whatever a file of this name may hold.
_FORMATS = ("PNG", "JPEG", "WEBP")
_DEEP = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})  # grey of 16 bits
_GREY = _DEEP | {"1", "L", "LA"}
_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 exchange height and width


class Header(NamedTuple):
    """What a file says of its picture before it is decoded."""

    size: tuple[int, int]  # height, width, once upright
    grey: bool


def read_header(encoded: bytes | Path) -> Header:
    """The size and colour of a picture, without decoding it.

    Raises:
        OSError: it is no picture that Pillow can read.
    """
    with _open(encoded) as picture:
        width, height = picture.size
        turned = _orientation(picture) >= 5
        return Header((width, height) if turned else (height, width), picture.mode in _GREY)


def decode(
    encoded: bytes | Path, *, grey: bool, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """A picture as ``[H, W]`` when ``grey``, else ``[H, W, 3]``.

    Args:
        encoded: a file, or its bytes.
        grey: reduce to one channel.
        size: (height, width) to resize to, bilinear with antialiasing; None keeps the size.

    Raises:
        OSError: it is no picture that Pillow can read, or it is damaged.
    """
    with _open(encoded) as picture:
        orientation = _orientation(picture)
        try:
            picture.load()
        except (SyntaxError, ValueError, EOFError) as error:
            raise OSError(str(error)) from error
        mode = "L" if grey else "RGB"
        if orientation != 1:
            picture = require("PIL.ImageOps", "data").exif_transpose(picture)
        if picture.mode != mode or picture.has_transparency_data:
            picture = _opaque(picture).convert(mode)
        if size is not None and picture.size != (size[1], size[0]):
            bilinear = require("PIL.Image", "data").Resampling.BILINEAR
            picture = picture.resize((size[1], size[0]), bilinear)
        return np.asarray(picture)


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]`` in a few threads.

    Worth it for photographs, which Pillow decodes outside the interpreter's lock; for images of
    some 30 pixels a side a plain loop is twice as fast.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def channels_first(arrays: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[n, H, W]`` or ``[n, H, W, 3]`` to ``[n, C, H, W]``, contiguous."""
    if arrays.ndim == 3:
        return arrays[:, None]
    return np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))


def _open(encoded: bytes | Path) -> Any:
    image = require("PIL.Image", "data")
    try:
        return image.open(
            io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, "r", _FORMATS
        )
    # What Pillow raises for a damaged header, beside OSError, depends on the format.
    except (SyntaxError, ValueError, EOFError, image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def _orientation(picture: Any) -> int:
    # A PNG may say so after its pixels; to find out would mean decoding every PNG twice.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    return picture.getexif().get(_ORIENTATION, 1)


def _opaque(picture: Any) -> Any:
    """8 bits a channel and no transparency."""
    image = require("PIL.Image", "data")
    if picture.mode in _DEEP:
        values = np.asarray(picture).astype(np.float64)
        return image.fromarray((values / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return image.alpha_composite(image.new("RGBA", picture.size, "white"), picture)
    return picture
