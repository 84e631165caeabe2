import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsehyper.data.images import channels_first, decode, in_threads, read_header


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
    with pytest.raises(OSError, match=r"cannot identify"):
        decode(_encode(Image.fromarray(grey), "TIFF"), grey=True)


def test_channels_first():
    assert channels_first(np.zeros((7, 2, 3), np.uint8)).shape == (7, 1, 2, 3)
    assert channels_first(np.zeros((7, 2, 3, 3), np.uint8)).shape == (7, 3, 2, 3)


def test_in_threads_keeps_the_order():
    assert in_threads(lambda i: i * i, range(100)) == [i * i for i in range(100)]
