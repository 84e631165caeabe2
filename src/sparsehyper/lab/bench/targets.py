"""Targets of the benchmarks, as plain modules.

- `resnet426k`: the built-in target ``thesis_resnet`` for CIFAR-10, 426,426 parameters.
- `ResNet18`: K. He et al., "Deep residual learning for image recognition" (CVPR 2016).
- `ViT`: A. Dosovitskiy et al., "An image is worth 16×16 words" (ICLR 2021); B/16 by default.
- `GPT2`: A. Radford et al., "Language models are unsupervised multitask learners" (2019); the
  small one by default, its output layer tied to the token embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper.lab.runs import build_target


@dataclass(frozen=True)
class Large:
    """A target of the scale benchmark.

    Args:
        make: builds the module.
        numel: number of its parameters.
        batch: makes the inputs and labels of a step: a small batch, because the cost of
            parameters is measured.
    """

    make: Callable[[], nn.Module]
    numel: int
    batch: Callable[[], tuple[Tensor, Tensor]]


def resnet426k() -> nn.Module:
    """Three stages of 16, 32 and 64 channels."""
    return build_target("thesis_resnet", (3, 32, 32), 10)


def mlp(*widths: int) -> nn.Module:
    """Flattened images, ReLU between layers of these widths."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images to images."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """Images ``[batch, 3, height, width]`` to ``[batch, 1000]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(64)
        shapes = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        self.blocks = nn.Sequential(
            *(
                block
                for n_in, n_out, stride in shapes
                for block in (BasicBlock(n_in, n_out, stride), BasicBlock(n_out, n_out, 1))
            )
        )
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.max_pool2d(self.bn(self.conv(x)).relu(), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and an MLP of four times the width, each with a residual connection."""

    def __init__(self, width: int, heads: int, *, causal: bool, gelu: str, eps: float) -> None:
        super().__init__()
        self.heads, self.causal, self.gelu = heads, causal, gelu
        self.norm1 = nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, width]`` to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.projection(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.gelu))


class ViT(nn.Module):
    """Images ``[batch, 3, 224, 224]`` to ``[batch, 1000]``."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 14 * 14 + 1, width))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, heads, causal=False, gelu="none", eps=1e-6)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPT2(nn.Module):
    """Tokens ``[batch, length]`` to logits ``[batch, vocabulary, length]``."""

    def __init__(
        self, vocabulary: int = 50257, length: int = 1024, width: int = 768, depth: int = 12
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, width // 64, causal=True, gelu="tanh", eps=1e-5)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width, 1e-5)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits, with the vocabulary in dimension 1, as `cross_entropy` expects."""
        positions = torch.arange(x.shape[1], device=x.device)
        y = self.blocks(self.tokens(x) + self.positions(positions))
        return self.head(self.norm(y)).transpose(1, 2)


def _images(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 224, 224), torch.randint(1000, (count,))


def _text(length: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(50257, (1, length + 1))
    return text[:, :-1], text[:, 1:]


LARGE_TARGETS = {
    "resnet18": Large(ResNet18, 11_689_512, lambda: _images(4)),
    "vit_b16": Large(ViT, 86_567_656, lambda: _images(2)),
    "gpt2_small": Large(GPT2, 124_439_808, lambda: _text(128)),
    "tiny": Large(
        lambda: mlp(3 * 224 * 224, 1, 1000), 152_529, lambda: _images(1)
    ),  # checks that everything runs
}
