"""Image models: small, but with the names, initialisation and peculiarities of the real ones."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class DropPath(nn.Module):
    """Stochastic depth, as in timm: a branch is left out for some samples."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        kept = x.new_empty([len(x)] + [1] * (x.ndim - 1)).bernoulli_(1 - self.probability)
        return x * kept / (1 - self.probability)


class ResNet9(nn.Module):
    """D. Page's network for CIFAR-10 (DAWNBench): blocks with max pooling, two of them residual,
    a max-pooled head without bias, logits scaled by a constant.
    """

    def __init__(self, width: int = 8, n_classes: int = 10) -> None:
        super().__init__()

        def block(n_in: int, n_out: int, pool: bool = False) -> nn.Sequential:
            layers = [
                nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(inplace=True),
            ]
            return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

        self.prep = block(3, width)
        self.layer1 = block(width, 2 * width, pool=True)
        self.res1 = nn.Sequential(block(2 * width, 2 * width), block(2 * width, 2 * width))
        self.layer2 = block(2 * width, 4 * width, pool=True)
        self.layer3 = block(4 * width, 4 * width, pool=True)
        self.res3 = nn.Sequential(block(4 * width, 4 * width), block(4 * width, 4 * width))
        self.head = nn.Sequential(
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, n_classes, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.prep(x))
        x = x + self.res1(x)
        x = self.layer3(self.layer2(x))
        x = x + self.res3(x)
        return self.head(x) * 0.125


class ResNet18(nn.Module):
    """torchvision's `resnet18` with ``zero_init_residual``: its names, its two initialisations,
    downsampling shortcuts with a norm of their own.
    """

    def __init__(self, width: int = 8, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage in range(4):
            blocks = []
            for block in range(2):
                stride = 2 if stage and not block else 1
                blocks.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class BasicBlock(nn.Module):
    """torchvision's, where one ReLU module serves twice and the shortcut may be None."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class VisionTransformer(nn.Module):
    """A ViT (A. Dosovitskiy et al., 2021) with PyTorch's own attention: class token, learned
    positions, pre-norm blocks, dropout and stochastic depth that grows with depth.
    """

    def __init__(self, width: int = 24, depth: int = 3, heads: int = 3, n_classes: int = 5) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 17, width))
        self.pos_drop = nn.Dropout(0.1)
        rates = torch.linspace(0, 0.2, depth).tolist()
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, rate) for rate in rates))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.blocks(self.pos_drop(x + self.pos_embed))
        return self.head(self.norm(x)[:, 0])


class ViTBlock(nn.Module):
    """Attention and an MLP, each after a norm and dropped for some samples in training."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.attn(y, y, y, need_weights=False)[0])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LayerNorm2d(nn.LayerNorm):
    """timm's layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A ConvNeXt in the manner of timm: truncated normal weights, `forward_features` and
    `forward_head`, a classifier that may be taken off, leaving features.
    """

    def __init__(self, widths: tuple[int, ...] = (8, 16), n_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], eps=1e-6))
        stages: list[nn.Module] = [nn.Sequential(ConvNeXtBlock(widths[0], 0.0))]
        for n_in, n_out in pairwise(widths):
            downsample = nn.Sequential(
                LayerNorm2d(n_in, eps=1e-6), nn.Conv2d(n_in, n_out, 2, stride=2)
            )
            blocks = [ConvNeXtBlock(n_out, rate) for rate in (0.1, 0.2)]
            stages.append(nn.Sequential(downsample, *blocks))
        self.stages = nn.Sequential(*stages)
        self.norm_pre = nn.Identity()
        self.num_features = widths[-1]
        self.head = nn.Sequential(
            OrderedDict(
                global_pool=nn.AdaptiveAvgPool2d(1),
                norm=LayerNorm2d(widths[-1], eps=1e-6),
                flatten=nn.Flatten(1),
                drop=nn.Dropout(0.1),
                fc=nn.Linear(widths[-1], n_classes),
            )
        )
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def reset_classifier(self, n_classes: int) -> ConvNeXt:
        self.head.fc = nn.Linear(self.num_features, n_classes) if n_classes else nn.Identity()
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm_pre(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and an MLP over channels, scaled by `gamma` (LayerScale)."""

    def __init__(self, width: int, drop_path: float, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width)
            )
        )
        self.gamma = nn.Parameter(layer_scale * torch.ones(width))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        y = y.mul(self.gamma).permute(0, 3, 1, 2)
        return self.drop_path(y) + x


class UNet(nn.Module):
    """A U-Net (O. Ronneberger et al., 2015) with group norms: skips that are concatenated, up by
    transposed convolutions, one logit map a class.
    """

    def __init__(self, widths: tuple[int, ...] = (8, 16, 24), n_classes: int = 3) -> None:
        super().__init__()

        def twice(n_in: int, n_out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (n_in, n_out):
                conv = nn.Conv2d(channels, n_out, 3, padding=1, bias=False)
                layers += [conv, nn.GroupNorm(4, n_out), nn.SiLU()]
            return nn.Sequential(*layers)

        pairs = list(pairwise(widths))
        self.inc = twice(2, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), twice(n_in, n_out)) for n_in, n_out in pairs
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(n_out, n_in, 2, stride=2) for n_in, n_out in reversed(pairs)
        )
        self.merge = nn.ModuleList(twice(2 * n_in, n_in) for n_in, _ in reversed(pairs))
        self.outc = nn.Conv2d(widths[0], n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        skips = [x]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.outc(x)


class FrozenBatchNorm2d(nn.Module):
    """A batch norm all of whose numbers are buffers, as in torchvision's detection models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(width) + 0.5)
        self.register_buffer("bias", torch.randn(width))
        self.register_buffer("running_mean", torch.randn(width))
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Transfer(nn.Module):
    """Transfer learning: a frozen backbone with batch norm that stays in evaluation mode, and a
    head to train, with a batch norm of its own.
    """

    def __init__(self, width: int = 8, n_classes: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            FrozenBatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        norm = self.backbone[4]
        norm.running_mean.normal_()  # as if trained
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(1000)
        self.backbone.requires_grad_(False)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 16),
            nn.BatchNorm1d(16, momentum=None),
            nn.ReLU(),
            nn.Linear(16, n_classes),
        )

    def train(self, mode: bool = True) -> Transfer:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


class Discriminator(nn.Module):
    """A discriminator under spectral norm (T. Miyato et al., 2018), whose power iteration writes
    to buffers in training.
    """

    def __init__(self, width: int = 8, norm=spectral_norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(nn.Conv2d(3, width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            norm(nn.Linear(2 * width * 16, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, 0]


class MaxNormConv2d(nn.Conv2d):
    """braindecode's `Conv2dWithConstraint`: the weight's data is put within a norm at each call."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1)
        return super().forward(x)


class EEGNet(nn.Module):
    """EEGNet (V. Lawhern et al., 2018): depthwise convolutions over time and electrodes of signals
    ``[batch, electrodes, time]``, a max-norm constraint, batch norm with other constants.
    """

    def __init__(self, electrodes: int = 6, n_classes: int = 3) -> None:
        super().__init__()
        self.temporal = nn.Conv2d(1, 4, (1, 9), padding=(0, 4), bias=False)
        self.bn1 = nn.BatchNorm2d(4, momentum=0.01, eps=1e-3)
        self.spatial = MaxNormConv2d(4, 8, (electrodes, 1), groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(8, momentum=0.01, eps=1e-3)
        self.separable = nn.Sequential(
            nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=8, bias=False),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.BatchNorm2d(8, momentum=0.01, eps=1e-3),
        )
        self.drop = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(8, n_classes, (1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.temporal(x[:, None]))
        x = self.drop(F.avg_pool2d(F.elu(self.bn2(self.spatial(x))), (1, 4)))
        x = self.drop(F.avg_pool2d(F.elu(self.separable(x)), (1, 2)))
        return self.classifier(x).flatten(1)


class VAE(nn.Module):
    """A variational autoencoder: random codes in training, their mean in evaluation, and an
    output of three tensors.
    """

    def __init__(self, code: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Flatten()
        )
        self.mean = nn.Linear(8 * 16, code)
        self.log_var = nn.Linear(8 * 16, code)
        self.decoder = nn.Sequential(
            nn.Linear(code, 8 * 16),
            nn.Unflatten(1, (8, 4, 4)),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        code = mean
        if self.training:
            code = mean + (log_var / 2).exp() * torch.randn_like(mean)
        return {"image": self.decoder(code), "mean": mean, "log_var": log_var}
