"""Decoding of image files to uint8 arrays. Needs Pillow, from the ``data`` extra.

Whatever the file holds (palette, transparency, 16 bits, CMYK, an EXIF orientation), the result is
8-bit grey ``[H, W]`` or colour ``[H, W, 3]``, upright, with transparency replaced by white.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsehyper._util.extras import require
from sparsehyper._util.files import CheckpointError, open_file

_T = TypeVar("_T")
_R = TypeVar("_R")

# No other decoder is ever started, whatever the file holds.
_FORMATS = ("PNG", "JPEG", "WEBP")
_DEEP = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})  # grey of 16 bits
_GREY = _DEEP | {"1", "L", "LA"}
_MOST_PIXELS = 2**26  # 8,192 × 8,192; decoded, such an image takes 200 MB
_ORIENTATION, _SHORT = 0x0112, 3  # the EXIF tag, and the type of its value


class Header(NamedTuple):
    """Properties of an image that its file states before decoding."""

    size: tuple[int, int]  # height, width of the upright image
    grey: bool


def read_header(encoded: bytes | Path) -> Header:
    """Read the size and colour of an image, without decoding it.

    Raises:
        OSError: it cannot be read as an image.
    """
    with _open(encoded) as picture:
        width, height = picture.size
        turned = _orientation(picture) >= 5
        return Header((width, height) if turned else (height, width), picture.mode in _GREY)


def decode(
    encoded: bytes | Path, *, grey: bool, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode an image to ``[H, W]`` if ``grey``, else to ``[H, W, 3]``.

    Args:
        encoded: a file, or its bytes.
        grey: reduce to one channel.
        size: (height, width) to resize to, bilinear with antialiasing; None keeps the size.

    Raises:
        OSError: it cannot be read as an image, or is damaged.
    """
    image = require("PIL.Image", "data")
    with _open(encoded) as picture:
        orientation, stored = _orientation(picture), picture.size
        picture.load()
        if picture.size != stored:
            raise OSError(f"the header says {stored} (width, height), the pixels {picture.size}")
        mode = "L" if grey else "RGB"
        if picture.mode != mode or picture.has_transparency_data:
            picture = _opaque(picture).convert(mode)
        if orientation != 1:
            picture = picture.transpose(_upright(image)[orientation])
        if size is not None and picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), image.Resampling.BILINEAR)
        return np.asarray(picture)


def in_threads(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """``[function(item) for item in items]`` in a few threads.

    This pays for photographs, which Pillow decodes outside the interpreter's lock. For images of
    about 30 pixels a side a plain loop is twice as fast.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def channels_first(arrays: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[n, H, W]`` or ``[n, H, W, 3]`` to ``[n, C, H, W]``, contiguous."""
    if arrays.ndim == 3:
        return arrays[:, None]
    return np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))


@contextmanager
def _open(encoded: bytes | Path) -> Iterator[Any]:
    """Open an image and read its header; within the block every error becomes an ``OSError``."""
    image = require("PIL.Image", "data")
    try:
        with (
            io.BytesIO(encoded)
            if isinstance(encoded, bytes)
            else open_file(encoded, follow_links=True) as file,
            image.open(file, "r", _FORMATS) as picture,
        ):
            width, height = picture.size
            if not 1 <= width * height <= _MOST_PIXELS:
                raise OSError(
                    f"it has {width} × {height} pixels (width × height); images of 1 to "
                    f"{_MOST_PIXELS:,} are read"
                )
            yield picture
    except CheckpointError as error:
        raise OSError("it is not a regular file") from error
    except image.UnidentifiedImageError as error:  # Pillow's text shows only the Python object
        raise OSError("it is not a PNG, JPEG or WebP image, or it is damaged") from error
    except OSError:
        raise
    # Which exception Pillow raises depends on the format and on where the damage is.
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def _orientation(picture: Any) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if none or an invalid one is given.

    Read here because Pillow's EXIF reader parses everything, with errors and warnings of many
    kinds. What a PNG says after its pixels is ignored: the header must be enough for the size.
    """
    exif = picture.info.get("exif", b"")
    exif = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(count):
            tag, kind, values, value = struct.unpack_from(
                f"{order}HHIH", exif, start + 2 + 12 * entry
            )
            if tag == _ORIENTATION:
                return value if (kind, values) == (_SHORT, 1) and 1 <= value <= 8 else 1
    except struct.error:  # the data ends too early
        pass
    return 1


def _upright(image: Any) -> dict[int, Any]:
    """The transposition that turns each orientation upright."""
    turn = image.Transpose
    return {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }


def _opaque(picture: Any) -> Any:
    """Convert to 8 bits per channel, without transparency."""
    image = require("PIL.Image", "data")
    if picture.mode in _DEEP:
        values = np.asarray(picture).astype(np.float64)
        if isinstance(clear := picture.info.get("transparency"), int):
            values[values == clear] = 2**16 - 1
        return image.fromarray((values / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return image.alpha_composite(image.new("RGBA", picture.size, "white"), picture)
    return picture
