"""Residual networks as targets, for images of any size.

- `ResNet`: K. He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2:
  6n + 2 layers in three stages, with shortcuts that have no parameters. Without a norm,
  convolutions have biases. With four stages it is their section 4.1 on the stem of 4.2, as is usual
  for small images.
- `resnet9`: the shallow network of D. Page, "How to train your ResNet" (2018), of 6,573,130
  parameters for CIFAR-10.
- `thesis_resnet`: that of F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022): 2n
  layers a stage, with the first and the last layer counted; 426,426 parameters for n = 5 and
  CIFAR-10.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import WIDEST, check_choice, check_integer

NORMS = ("batch", "none")
_LAYERS: dict[int, Any] = {  # by the number of sides; the last is that of a convolution
    1: (nn.Conv1d, nn.BatchNorm1d, 5),
    2: (nn.Conv2d, nn.BatchNorm2d, 3),
}


class ResNet(nn.Module):
    """A CIFAR-style residual network with global average pooling, for images of any size.

    Args:
        image_shape: channels, height, width.
        n_classes: number of logits.
        depth: number of layers with weights, 2 · stages · n + 2 for n blocks per stage.
        width: channels of the first stage; each further stage has twice as many.
        stages: number of stages; each after the first halves the sides of the images.
        norm: ``"batch"`` or ``"none"`` after every convolution.

    Raises:
        ValueError: a depth that is not 2 · stages · n + 2, a width or number of stages below 1, or
            an unknown norm.

    >>> sum(p.numel() for p in ResNet((3, 32, 32), 10, depth=32).parameters())
    464154
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        n_classes: int,
        *,
        depth: int = 8,
        width: int = 16,
        stages: int = 3,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_integer("width", width, minimum=1, maximum=WIDEST)
        check_integer("stages", stages, minimum=1, maximum=8)
        layers = 2 * stages  # one block in each stage
        check_integer("depth", depth, minimum=layers + 2, maximum=10_000)
        check_choice("norm", norm, NORMS)
        if depth % layers != 2 % layers:
            some = ", ".join(str(layers * n + 2) for n in (1, 2, 3))
            raise ValueError(f"`depth` must be {layers}n + 2, such as {some}, got {depth}")
        # What it was made with, for recipes.
        self.image_shape, self.n_classes = tuple(image_shape), n_classes
        self.depth, self.width, self.stages, self.norm = depth, width, stages, norm
        self.stem = convolution(image_shape[0], width, 1, norm)
        blocks = []
        channels = width
        for stage in range(stages):
            for block in range((depth - 2) // layers):
                stride = 2 if stage and not block else 1
                blocks.append(_Block(channels, width << stage, stride, norm))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, n_classes]`` of images ``[batch, channels, height, width]``."""
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


def resnet9(
    image_shape: tuple[int, ...], n_classes: int, *, width: int = 64, norm: str = "batch"
) -> nn.Sequential:
    """A residual network of nine layers, two of its blocks with shortcuts; `ResNet`'s arguments.

    >>> sum(p.numel() for p in resnet9((3, 32, 32), 10).parameters())
    6573130
    """
    check_integer("width", width, minimum=1, maximum=WIDEST)
    check_choice("norm", norm, NORMS)

    def layer(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(convolution(n_in, n_out, 1, norm), nn.ReLU())

    def halved(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(layer(n_in, n_out), nn.MaxPool2d(2, ceil_mode=True))

    def block(n: int) -> nn.Module:
        return Shortcut(nn.Sequential(layer(n, n), layer(n, n)))

    return nn.Sequential(
        layer(image_shape[0], width),
        halved(width, 2 * width),
        block(2 * width),
        halved(2 * width, 4 * width),
        halved(4 * width, 8 * width),
        block(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, n_classes),
    )


def thesis_resnet(
    image_shape: tuple[int, ...], n_classes: int, *, blocks: int = 5, width: int = 16
) -> nn.Sequential:
    """The thesis's residual network, without norms.

    Shortcuts are projected where the shape changes. The last block of the first and of the last
    stage has one convolution, so that a stage has 2 · ``blocks`` layers with the stem or the head.

    Args:
        image_shape: channels, height, width.
        n_classes: number of logits.
        blocks: blocks of each of the three stages, n of the thesis, at least 2.
        width: channels of the first stage; each further stage has twice as many.

    >>> sum(p.numel() for p in thesis_resnet((3, 32, 32), 10).parameters())
    426426
    """
    check_integer("blocks", blocks, minimum=2, maximum=1000)
    check_integer("width", width, minimum=1, maximum=WIDEST)
    layers: list[nn.Module] = [convolution(image_shape[0], width, 1, "none"), nn.ReLU()]
    channels = width
    for stage in range(3):
        for number in range(blocks):
            one = number == blocks - 1 and stage != 1
            layers += [_projected(channels, width << stage, 1 if one else 2), nn.ReLU()]
            channels = width << stage
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooled, nn.Linear(channels, n_classes))


def convolution(n_in: int, n_out: int, stride: int, norm: str, *, sides: int = 2) -> nn.Module:
    """A 3 × 3 convolution, or one of 5 steps, then a batch norm or, with ``"none"``, a bias."""
    convolve, normalise, width = _LAYERS[sides]
    layer = convolve(n_in, n_out, width, stride, padding=width // 2, bias=norm == "none")
    return layer if norm == "none" else nn.Sequential(layer, normalise(n_out))


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = convolution(n_in, n_out, stride, norm)
        self.second = convolution(n_out, n_out, 1, norm)
        self.stride = stride
        self.new_channels = n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        # Option A of the paper: subsample the pixels, and pad the new channels with zeros.
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))


class Shortcut(nn.Module):
    """A sum of a module's output and its input, which may be projected."""

    def __init__(self, inner: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.projection = nn.Identity() if projection is None else projection

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.projection(x)


def _projected(n_in: int, n_out: int, convolutions: int) -> Shortcut:
    stride = 1 if n_in == n_out else 2
    inner = [convolution(n_in, n_out, stride, "none")]
    if convolutions == 2:
        inner += [nn.ReLU(), convolution(n_out, n_out, 1, "none")]
    projection = None if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride)
    return Shortcut(nn.Sequential(*inner), projection)
