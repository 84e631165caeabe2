"""Every target by name, with random data and a suitable loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from helpers.zoo_images import (
    VAE,
    ConvNeXt,
    Discriminator,
    EEGNet,
    ResNet9,
    ResNet18,
    Transfer,
    UNet,
    VisionTransformer,
)
from helpers.zoo_sequences import (
    TCN,
    Attentive,
    Config,
    GPT2LMHeadModel,
    GRUTagger,
    LSTMClassifier,
    MixtureOfExperts,
    PackedTagger,
    RotaryLM,
    Translator,
)
from helpers.zoo_structures import (
    Adapted,
    Bags,
    Energy,
    Fourier,
    GraphNetwork,
    Quantised,
    SharedGraph,
    Siren,
    SparseGraph,
    pruned,
)
from sparsehyper.lab.runs.targets import build_target


@dataclass
class Batch:
    """Arguments of a target, and the loss of its output."""

    args: tuple[Any, ...]
    loss: Callable[[Any], Tensor]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One target.

    Args:
        make: a fresh module.
        batch: one task's data, drawn anew at each call.
        steps: training steps for each task.
        lr: learning rate of Adam.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    steps: int = 20
    lr: float = 1e-2


def images(*shape: int, classes: int, batch: int = 6) -> Callable[[], Batch]:
    def draw() -> Batch:
        labels = torch.randint(classes, (batch,))
        return Batch((torch.randn(batch, *shape),), lambda out: F.cross_entropy(out, labels))

    return draw


def regression(*shape: int, to: tuple[int, ...], batch: int = 6) -> Callable[[], Batch]:
    def draw() -> Batch:
        wanted = torch.randn(batch, *to)
        return Batch((torch.randn(batch, *shape),), lambda out: F.mse_loss(out, wanted))

    return draw


def segmentation() -> Batch:
    labels = torch.randint(3, (4, 16, 16))
    return Batch((torch.randn(4, 2, 16, 16),), lambda out: F.cross_entropy(out, labels))


def pixels() -> Batch:
    """Coordinates and values of all pixels of a smooth image."""
    side = torch.linspace(-1, 1, 12)
    at = torch.cartesian_prod(side, side)
    wanted = torch.sin(at @ torch.randn(2, 1) * 3 + torch.randn(1))
    return Batch((at,), lambda out: F.mse_loss(out, wanted))


def adversary() -> Batch:
    real = torch.arange(6) % 2
    return Batch(
        (torch.randn(6, 3, 16, 16),),
        lambda out: F.binary_cross_entropy_with_logits(out, real.float()),
    )


def autoencoding() -> Batch:
    x = torch.randn(6, 1, 8, 8)

    def loss(out: dict[str, Tensor]) -> Tensor:
        mean, log_var = out["mean"], out["log_var"]
        divergence = (mean.square() + log_var.exp() - 1 - log_var).mean() / 2
        return F.mse_loss(out["image"], x) + 0.1 * divergence

    return Batch((x,), loss)


def signals() -> Batch:
    labels = torch.randint(3, (6,))
    return Batch((torch.randn(6, 6, 32),), lambda out: F.cross_entropy(out, labels))


def _tokens(vocabulary: int, length: int, batch: int = 5) -> tuple[Tensor, Tensor]:
    """Sentences padded with 0, and their lengths."""
    lengths = torch.randint(2, length + 1, (batch,))
    lengths[0] = length
    tokens = torch.randint(1, vocabulary, (batch, length))
    return tokens * (torch.arange(length) < lengths[:, None]), lengths


def sentences(classes: int) -> Callable[[], Batch]:
    def draw() -> Batch:
        labels = torch.randint(classes, (5,))
        return Batch(_tokens(30, 8), lambda out: F.cross_entropy(out, labels))

    return draw


def tags(*, with_lengths: bool) -> Callable[[], Batch]:
    def draw() -> Batch:
        tokens, lengths = _tokens(30, 8)
        labels = torch.randint(4, tokens.shape)
        args = (tokens, lengths) if with_lengths else (tokens,)
        return Batch(args, lambda out: F.cross_entropy(out, labels))

    return draw


def bags() -> Batch:
    labels = torch.randint(3, (5,))
    return Batch((_tokens(20, 8)[0],), lambda out: F.cross_entropy(out, labels))


def translation() -> Batch:
    source, _ = _tokens(30, 7)
    target = torch.randint(30, (5, 6))
    return Batch(
        (source, target[:, :-1]),
        lambda out: F.cross_entropy(out, target[:, 1:]),
        {"padding": source == 0},
    )


def text() -> Batch:
    tokens = torch.randint(40, (5, 11))
    return Batch((tokens[:, :-1],), lambda out: F.cross_entropy(out, tokens[:, 1:]))


def prompts() -> Batch:
    """Text for a model in the style of transformers, padded on the left."""
    tokens = torch.randint(40, (5, 11))
    padding = torch.arange(10) >= torch.randint(4, (5, 1))
    wanted = tokens[:, 1:].masked_fill(~padding, -100)
    return Batch(
        (tokens[:, :-1],),
        lambda out: F.cross_entropy(out["logits"].transpose(1, 2), wanted),
        {"attention_mask": padding.long()},
    )


def pairs() -> Batch:
    left, right = torch.randn(2, 6, 4)
    wanted = torch.randn(6, 4)
    return Batch(
        (left, right), lambda out: F.mse_loss(out[1], wanted) + 0.1 * out[0].square().mean()
    )


def forces() -> Batch:
    energies, gradients = torch.randn(6), torch.randn(6, 3)
    return Batch(
        (torch.randn(6, 3),),
        lambda out: F.mse_loss(out[0], energies) + F.mse_loss(out[1], gradients),
    )


TARGETS = {
    "mlp 400-400-400": Entry(
        lambda: build_target("mlp:400-400-400", (1, 28, 28), 10),
        images(1, 28, 28, classes=10),
        steps=8,
        lr=2e-3,
    ),
    "resnet32": Entry(
        lambda: build_target("resnet32", (3, 8, 8), 10),
        images(3, 8, 8, classes=10),
        steps=8,
        lr=2e-3,
    ),
    "resnet9": Entry(ResNet9, images(3, 16, 16, classes=10)),
    "resnet18, batch norm": Entry(ResNet18, images(3, 32, 32, classes=10)),
    "vit": Entry(VisionTransformer, images(3, 16, 16, classes=5)),
    "convnext": Entry(ConvNeXt, images(3, 16, 16, classes=5)),
    "convnext, features": Entry(
        lambda: ConvNeXt().reset_classifier(0), regression(3, 16, 16, to=(16,))
    ),
    "u-net": Entry(UNet, segmentation),
    "frozen backbone": Entry(Transfer, images(3, 16, 16, classes=4)),
    "discriminator, spectral norm": Entry(Discriminator, adversary),
    "discriminator, spectral norm by a hook": Entry(
        lambda: Discriminator(norm=spectral_norm), adversary
    ),
    "eegnet, max norm": Entry(EEGNet, signals),
    "vae": Entry(VAE, autoencoding),
    "lstm": Entry(LSTMClassifier, sentences(3)),
    "gru": Entry(GRUTagger, tags(with_lengths=False)),
    "rnn, packed": Entry(PackedTagger, tags(with_lengths=True), lr=5e-3),
    "transformer, translation": Entry(Translator, translation),
    "gpt2 of transformers": Entry(lambda: GPT2LMHeadModel(Config()), prompts),
    "llama, complex rotations": Entry(RotaryLM, text),
    "tcn, weight norm": Entry(TCN, regression(2, 12, to=(12,))),
    "attention kept": Entry(Attentive, images(5, 12, classes=3)),
    "mixture of experts": Entry(MixtureOfExperts, images(5, 12, classes=3)),
    "siren": Entry(Siren, pixels, steps=40, lr=1e-3),
    "shared graph": Entry(SharedGraph, pairs),
    "adapters": Entry(Adapted, images(8, classes=3)),
    "adapters of rank 0": Entry(lambda: Adapted(rank=0), images(8, classes=3)),
    "pruned": Entry(pruned, images(8, classes=3)),
    "bags of words": Entry(Bags, bags),
    "graph network, orthogonal": Entry(GraphNetwork, images(7, 4, classes=2)),
    "graph network, sparse matrix": Entry(SparseGraph, images(8, classes=2)),
    "fourier, complex buffers": Entry(Fourier, regression(16, to=(16,))),
    "energy": Entry(Energy, forces),
    "vector quantisation": Entry(Quantised, regression(10, to=(10,))),
}
