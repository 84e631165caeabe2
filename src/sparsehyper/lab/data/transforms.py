"""Batched image operations.

The transforms of tasks (`Permute`, `Rotate`, `ShiftHue`) hold one setting per variant, and alter
each image by its own variant: from float32 images ``[batch, C, H, W]`` in [0, 1] and int64 variants
``[batch]`` to images of the same shape. The augmentations take images of any dtype:
`crop_and_flip` only moves pixels, `affine` resamples them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper._util.devices import to_device


class Transform(ABC):
    """A transform that alters each image by the variant of its task.

    Attributes:
        settings: one row per variant.
    """

    settings: Tensor

    def __init__(self, settings: Tensor) -> None:
        self.settings = settings

    @abstractmethod
    def __call__(self, x: Tensor, variant: Tensor) -> Tensor:
        """Alter images.

        Args:
            x: float32 ``[batch, C, H, W]`` in [0, 1].
            variant: int64 ``[batch]``.
        """


class Permute(Transform):
    """Reorder the pixels of every channel: output pixel p is input pixel ``settings[variant, p]``.

    Args:
        settings: int64 ``[variants, H * W]``, each row a permutation.

    >>> x = torch.arange(4.0).view(1, 1, 2, 2)
    >>> Permute(torch.tensor([[3, 2, 1, 0]]))(x, torch.tensor([0])).flatten()
    tensor([3., 2., 1., 0.])
    """

    def __call__(self, x: Tensor, variant: Tensor) -> Tensor:
        source = self.settings[variant].unsqueeze(1).expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, source).view_as(x)


class Rotate(Transform):
    """Rotate anticlockwise about the centre; bilinear, with black outside the image.

    Args:
        settings: float64 ``[variants]``, angles in degrees.

    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> Rotate(torch.tensor([90.0]))(x, torch.tensor([0])).round().flatten()
    tensor([2., 4., 1., 3.])
    """

    def __call__(self, x: Tensor, variant: Tensor) -> Tensor:
        angle = self.settings.double().deg2rad().view(-1, 1, 1)
        cos, sin = angle.cos().to(x.dtype)[variant], angle.sin().to(x.dtype)[variant]
        height, width = x.shape[2:]
        # Source of each output pixel, in pixels from the centre.
        down = (torch.arange(height, device=x.device) - (height - 1) / 2).view(-1, 1)
        right = torch.arange(width, device=x.device) - (width - 1) / 2
        source_right = (cos * right - sin * down) * (2 / width)
        source_down = (sin * right + cos * down) * (2 / height)
        grid = torch.stack([source_right, source_down], dim=-1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class ShiftHue(Transform):
    """Shift the hue of RGB images in the HSV model; value and saturation stay.

    Source: A. R. Smith, "Color gamut transform pairs" (SIGGRAPH 1978).

    Args:
        settings: float64 ``[variants]``, shifts in turns: 1/3 turns red into green.

    >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    >>> ShiftHue(torch.tensor([0.5]))(red, torch.tensor([0])).flatten()
    tensor([0., 1., 1.])
    """

    def __call__(self, x: Tensor, variant: Tensor) -> Tensor:
        shift = self.settings.to(x.dtype)[variant].view(-1, 1, 1)
        red, green, blue = x.unbind(1)
        value = x.amax(1)
        chroma = value - x.amin(1)
        width = chroma.where(chroma > 0, 1)  # a grey pixel has no hue
        sixths = torch.where(
            value == red,
            (green - blue) / width,
            torch.where(value == green, (blue - red) / width + 2, (red - green) / width + 4),
        )
        sixths = sixths + 6 * shift
        channels = []
        for offset in (5, 3, 1):
            k = (sixths + offset).remainder(6)
            channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
        return torch.stack(channels, dim=1)


def crop_and_flip(
    x: Tensor, down: Tensor | None = None, right: Tensor | None = None, flip: Tensor | None = None
) -> Tensor:
    """Move a window of the image's size over each image continued by reflection, and mirror some.

    The edge pixel is not repeated: ``abc`` continues as ``cb abc ba``.

    Args:
        x: images ``[batch, C, H, W]`` of any dtype.
        down: number of rows to move each window, int64 ``[batch]``, below H in magnitude; None for
            0.
        right: number of columns to move each window, int64 ``[batch]``, below W in magnitude; None
            for 0.
        flip: whether to mirror each window left to right, bool ``[batch]``; None for none.

    >>> x = torch.tensor([1, 2, 3]).view(1, 1, 1, 3)
    >>> crop_and_flip(x, right=torch.tensor([1])).flatten()
    tensor([2, 3, 2])
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device).expand(len(x), -1)
    columns = torch.arange(width, device=x.device).expand(len(x), -1)
    if flip is not None:
        columns = torch.where(flip.unsqueeze(1), width - 1 - columns, columns)
    if down is not None:
        rows = _reflect(rows + down.unsqueeze(1), height)
    if right is not None:
        columns = _reflect(columns + right.unsqueeze(1), width)
    source = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1)
    source = source.unsqueeze(1).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, source).view_as(x)


def affine(x: Tensor, turn: Tensor, size: Tensor, shift: Tensor) -> Tensor:
    """Shift each image, then turn and scale it about its centre; bilinear, edges go on outside.

    Args:
        x: images ``[batch, C, H, W]`` of any dtype.
        turn: angles in degrees, anticlockwise, float ``[batch]``.
        size: factors of the images' size, above 0, float ``[batch]``.
        shift: shifts to the right and down, in widths and heights, float ``[batch, 2]``.

    Returns:
        float32 ``[batch, C, H, W]``, in the range of ``x``.

    >>> x = torch.tensor([1, 2, 3]).view(1, 1, 1, 3)
    >>> nothing, right = torch.zeros(1), torch.tensor([[1 / 3, 0.0]])
    >>> affine(x, turn=nothing, size=nothing + 1, shift=right).flatten().round()
    tensor([1., 1., 2.])
    """
    height, width = x.shape[2:]
    angle = turn.double().deg2rad()
    cos, sin = angle.cos() / size, angle.sin() / size
    # From output to source, in half sides from the centre.
    turned = [cos, -sin * height / width, sin * width / height, cos]
    source = torch.cat([torch.stack(turned, 1).view(-1, 2, 2), -2 * shift.unsqueeze(2)], 2)
    grid = F.affine_grid(to_device(source.float(), x.device), list(x.shape), align_corners=False)
    return F.grid_sample(
        x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _reflect(index: Tensor, length: int) -> Tensor:
    return (length - 1) - ((length - 1) - index.abs()).abs()
