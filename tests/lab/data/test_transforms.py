import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from sparsehyper.lab.data.transforms import Permute, Rotate, ShiftHue, affine, crop_and_flip


def test_permute_moves_each_image_by_its_own_variant_and_all_channels_alike():
    table = torch.stack([torch.randperm(12), torch.randperm(12)])
    x = torch.rand(5, 3, 3, 4)
    variant = torch.tensor([0, 1, 1, 0, 1])
    out = Permute(table)(x, variant)
    for image, moved, v in zip(x, out, variant, strict=True):
        assert torch.equal(moved.flatten(1), image.flatten(1)[:, table[v]])


def test_rotate_by_nothing_is_the_identity():
    x = torch.rand(2, 3, 7, 5)
    torch.testing.assert_close(Rotate(torch.tensor([0.0]))(x, torch.tensor([0, 0])), x)


@pytest.mark.parametrize(("angle", "quarters"), [(90.0, 1), (180.0, 2), (-90.0, 3), (360.0, 0)])
def test_rotate_by_quarter_turns_is_anticlockwise(angle, quarters):
    x = torch.rand(1, 2, 6, 6)
    out = Rotate(torch.tensor([angle]))(x, torch.tensor([0]))
    torch.testing.assert_close(out, x.rot90(quarters, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(31, 31), (24, 40)])
def test_rotate_agrees_with_pillow(shape):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.random((5, 5)).astype(np.float32)).resize(shape[::-1], 2)
    expected = torch.from_numpy(np.array(smooth.rotate(30, Image.Resampling.BILINEAR)))
    x = torch.from_numpy(np.array(smooth))[None, None]
    out = Rotate(torch.tensor([30.0]))(x, torch.tensor([0]))[0, 0]
    # Pillow keeps no partial pixels at the border.
    inside = expected > 0
    assert (out - expected)[inside].abs().median() < 1e-3
    assert out[0, 0] == 0


def test_each_image_turns_by_its_own_angle():
    x = torch.rand(1, 1, 4, 4).repeat(3, 1, 1, 1)
    out = Rotate(torch.tensor([0.0, 180.0]))(x, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(out[1], x[1].flip(1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[2], x[2])


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_agrees_with_colorsys(shift):
    x = torch.rand(2, 3, 4, 4)
    x[0, :, 0, 0] = 0.5  # grey, black and white have no hue
    x[0, :, 0, 1] = 0.0
    x[0, :, 0, 2] = 1.0
    out = ShiftHue(torch.tensor([shift], dtype=torch.float64))(x, torch.tensor([0, 0]))
    for before, after in zip(
        x.movedim(1, -1).reshape(-1, 3).tolist(), out.movedim(1, -1).reshape(-1, 3), strict=True
    ):
        h, s, v = colorsys.rgb_to_hsv(*before)
        expected = torch.tensor(colorsys.hsv_to_rgb((h + shift) % 1, s, v))
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


def test_crop_is_a_window_of_the_image_padded_by_reflection():
    x = torch.rand(4, 2, 6, 9)
    down, right = torch.tensor([0, -2, 3, 5]), torch.tensor([-3, 0, 2, -8])
    out = crop_and_flip(x, down, right)
    for image, moved, d, r in zip(x, out, down.tolist(), right.tolist(), strict=True):
        padded = np.pad(image, [(0, 0), (5, 5), (8, 8)], mode="reflect")
        window = padded[:, 5 + d : 11 + d, 8 + r : 17 + r]
        np.testing.assert_array_equal(moved, window)


def test_flip_mirrors_the_chosen_images_after_cropping():
    x = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    right = torch.tensor([1, 1, -1])
    flip = torch.tensor([True, False, True])
    cropped, both = crop_and_flip(x, right=right), crop_and_flip(x, right=right, flip=flip)
    assert both.dtype == torch.uint8
    assert torch.equal(both[1], cropped[1])
    assert torch.equal(both[::2], cropped[::2].flip(-1))


def test_no_images():
    x, none = torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64)
    assert Permute(torch.arange(16)[None])(x, none).shape == x.shape
    assert ShiftHue(torch.tensor([0.1]))(x, none).shape == x.shape
    assert crop_and_flip(x, none, none).shape == x.shape


def _affine(x, turn=0.0, size=1.0, right=0.0, down=0.0):
    own = torch.ones(len(x))
    return affine(x, turn * own, size * own, torch.tensor([[right, down]]).expand(len(x), -1))


def test_affine_shifts_whole_pixels_and_continues_the_edge():
    x = torch.randint(256, (2, 3, 4, 8), dtype=torch.uint8)
    out = _affine(x, right=2 / 8, down=-1 / 4)
    torch.testing.assert_close(out[:, :, :-1, 2:], x[:, :, 1:, :-2].float())
    torch.testing.assert_close(out[:, :, :-1, :2], x[:, :, 1:, :1].expand(-1, -1, -1, 2).float())
    torch.testing.assert_close(out[:, :, -1], out[:, :, -2])
    torch.testing.assert_close(_affine(x), x.float())


@pytest.mark.parametrize("shape", [(6, 6), (24, 40)])
def test_affine_turns_as_rotate_does(shape):
    x = torch.rand(1, 2, *shape)
    expected = Rotate(torch.tensor([30.0]))(x, torch.tensor([0]))
    centre = (..., slice(shape[0] // 3, -(shape[0] // 3)), slice(shape[1] // 3, -(shape[1] // 3)))
    torch.testing.assert_close(_affine(x, turn=30.0)[centre], expected[centre])


def test_affine_scales_about_the_centre_after_the_shift():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 7:9, 9:11] = 1  # its middle is 2 to the right of the centre
    twice = torch.zeros_like(x)
    twice[..., 6:10, 6:10] = 1
    torch.testing.assert_close((_affine(x, size=2.0, right=-2 / 16) > 0.5).float(), twice)


def test_each_image_has_its_own_affine_map():
    x = torch.rand(1, 1, 4, 4).repeat(3, 1, 1, 1)
    turn, size, shift = torch.tensor([0.0, 180.0, 0.0]), torch.ones(3), torch.zeros(3, 2)
    shift[2] = torch.tensor([0.25, 0.0])
    out = affine(x, turn, size, shift)
    torch.testing.assert_close(out[0], x[0])
    torch.testing.assert_close(out[1], x[1].flip(1, 2))
    torch.testing.assert_close(out[2, :, :, 1:], x[2, :, :, :-1])
