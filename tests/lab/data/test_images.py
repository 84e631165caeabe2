import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sparsehyper.lab.data.images import channels_first, decode, in_threads, read_header


def _encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def grey() -> np.ndarray:
    return np.arange(15, dtype=np.uint8).reshape(3, 5) * 17


def test_grey_and_colour_come_out_as_they_went_in(grey):
    colour = np.stack([grey, grey[::-1], 255 - grey], axis=-1)
    np.testing.assert_array_equal(decode(_encode(Image.fromarray(grey)), grey=True), grey)
    np.testing.assert_array_equal(decode(_encode(Image.fromarray(colour)), grey=False), colour)


def test_grey_file_as_colour_repeats_the_channel(grey):
    out = decode(_encode(Image.fromarray(grey)), grey=False)
    np.testing.assert_array_equal(out, np.repeat(grey[..., None], 3, axis=-1))


def test_sixteen_bits_are_scaled_to_eight(grey):
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    encoded = _encode(deep)
    assert read_header(encoded).grey
    np.testing.assert_array_equal(decode(encoded, grey=True), grey)


def test_one_bit_is_black_and_white():
    encoded = _encode(Image.fromarray(np.eye(4, dtype=bool)))
    assert read_header(encoded) == ((4, 4), True)
    np.testing.assert_array_equal(decode(encoded, grey=True), np.eye(4, dtype=np.uint8) * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    clear = Image.new(mode, (2, 2), (0,) * len(mode))
    assert (decode(_encode(clear), grey=mode == "LA") == 255).all()


def test_a_transparent_colour_without_an_alpha_channel_is_laid_over_white():
    encoded = _encode(Image.new("RGB", (2, 2), (10, 20, 30)), transparency=(10, 20, 30))
    assert (decode(encoded, grey=False) == 255).all()


def test_palette_is_looked_up():
    picture = Image.new("RGB", (2, 2), (200, 100, 0)).quantize()
    encoded = _encode(picture)
    assert not read_header(encoded).grey
    assert decode(encoded, grey=False)[0, 0].tolist() == [200, 100, 0]


def test_cmyk_becomes_rgb():
    encoded = _encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = decode(encoded, grey=False)[4, 4]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(kind):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, 16:] = 255  # white on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: right is down
    encoded = _encode(Image.fromarray(pixels), kind, exif=exif)
    assert read_header(encoded).size == (32, 16)
    out = decode(encoded, grey=False)
    assert out.shape == (32, 16, 3)
    assert out[4].max() < 30
    assert out[-4].min() > 225


def test_resizing_gives_the_size_asked_for_and_averages():
    board = (np.indices((40, 40)).sum(0) % 2 * 255).astype(np.uint8)
    out = decode(_encode(Image.fromarray(board)), grey=True, size=(4, 8))
    assert out.shape == (4, 8)
    assert abs(out.astype(int) - 128).max() < 10


def test_damaged_files_are_oserrors(tmp_path, grey):
    encoded = _encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    )
    for damaged in (b"", b"no picture", encoded[:60], encoded[: len(encoded) // 2]):
        with pytest.raises(OSError):
            decode(damaged, grey=True)
        path = Path(tmp_path, "damaged.png")
        path.write_bytes(damaged)
        with pytest.raises(OSError):
            decode(path, grey=True)


def test_other_formats_are_not_decoded(grey):
    with pytest.raises(OSError, match=r"not a PNG, JPEG or WebP image"):
        decode(_encode(Image.fromarray(grey), "TIFF"), grey=True)


def test_channels_first():
    assert channels_first(np.zeros((7, 2, 3), np.uint8)).shape == (7, 1, 2, 3)
    assert channels_first(np.zeros((7, 2, 3, 3), np.uint8)).shape == (7, 3, 2, 3)


def test_in_threads_keeps_the_order():
    assert in_threads(lambda i: i * i, range(100)) == [i * i for i in range(100)]


def _with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with a chunk after its header, or in place of that."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:8] + chunk + png[33:] if name == b"IHDR" else png[:33] + chunk + png[33:]


def _exif(kind: int, count: int, value: bytes, *, tag: int = 0x0112, entries: int = 1) -> bytes:
    return b"II*\0" + struct.pack("<IHHHI", 8, entries, tag, kind, count) + value + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"garbage!",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        _exif(2, 2, b"6\0\0\0"),  # as text
        _exif(1, 1, b"\6\0\0\0"),  # as bytes
        _exif(7, 4, b"\6\0\0\0"),  # of an undefined type
        _exif(3, 2**32 - 1, b"\6\0\0\0"),  # an endless list
        _exif(3, 1, b"\x09\0\0\0"),
        _exif(3, 1, b"\0\0\0\0"),
        _exif(3, 1, b"\6\0\0\0", tag=0x8769, entries=65535),  # a directory of directories
        _exif(3, 1, b"\6\0\0\0", tag=0x0100, entries=65535),
    ],
)
def test_exif_that_says_nothing_valid_is_no_orientation(grey, exif):
    encoded = _with_chunk(_encode(Image.fromarray(grey)), b"eXIf", exif)
    assert read_header(encoded).size == grey.shape
    np.testing.assert_array_equal(decode(encoded, grey=True), grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_is_turned_as_pillow_does(grey, orientation, order):
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    exif = start + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)
    encoded = _with_chunk(_encode(Image.fromarray(grey)), b"eXIf", exif)
    with Image.open(io.BytesIO(encoded)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(decode(encoded, grey=True), expected)
    assert read_header(encoded).size == expected.shape


def test_a_palette_that_is_not_there(grey):
    encoded = _encode(Image.fromarray(grey))
    header = struct.pack(">IIBBBBB", 5, 3, 8, 3, 0, 0, 0)
    with pytest.raises(OSError):
        decode(_with_chunk(encoded, b"IHDR", header), grey=False)


@pytest.mark.parametrize(("width", "height"), [(0, 3), (5, 0), (2**16, 2**12), (2**31 - 1, 1)])
def test_pictures_of_no_size_or_of_too_large_a_one_are_refused_by_their_headers(
    grey, width, height
):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    encoded = _with_chunk(_encode(Image.fromarray(grey)), b"IHDR", header)
    for read in (read_header, lambda encoded: decode(encoded, grey=True)):
        with pytest.raises(OSError):
            read(encoded)


def test_the_largest_picture_is_told(grey):
    header = struct.pack(">IIBBBBB", 2**13, 2**13 + 1, 8, 0, 0, 0, 0)
    encoded = _with_chunk(_encode(Image.fromarray(grey)), b"IHDR", header)
    message = r"8,?192 × 8,?193 pixels .*; images of 1 to 67,108,864 are read"
    with pytest.raises(OSError, match=message):
        decode(encoded, grey=True)


def test_text_that_swells_is_refused(grey):
    body = b"Comment\0\0" + zlib.compress(bytes(2**26))
    encoded = _with_chunk(_encode(Image.fromarray(grey)), b"zTXt", body)
    with pytest.raises(OSError, match="too large"):
        decode(encoded, grey=True)


def test_sixteen_bits_with_a_transparent_shade():
    shades = np.array([[0, 40_000], [1000, 65_535]], np.uint16)
    encoded = _encode(Image.fromarray(shades), transparency=1000)
    assert decode(encoded, grey=True).tolist() == [[0, 156], [255, 255]]


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (read_header, lambda path: decode(path, grey=True)):
        with pytest.raises(OSError, match=r"^it is not a regular file$"):
            read(path)
