"""Modules of unusual structure: shared parts, parameter containers, buffers that change, gradients
taken within the forward pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal


class Sine(nn.Module):
    """A layer of a SIREN."""

    def __init__(self, n_in: int, n_out: int, *, first: bool = False, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        self.linear = nn.Linear(n_in, n_out)
        bound = 1 / n_in if first else math.sqrt(6 / n_in) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Module):
    """An image as a function of coordinates (V. Sitzmann et al., 2020), with the paper's
    initialisation, by which it stands or falls.
    """

    def __init__(self, width: int = 32, channels: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(Sine(2, width, first=True), Sine(width, width), Sine(width, width))
        self.final = nn.Linear(width, channels)
        bound = math.sqrt(6 / width) / 30
        nn.init.uniform_(self.final.weight, -bound, bound)

    def forward(self, coordinates: Tensor) -> Tensor:
        return self.final(self.net(coordinates))


class SharedGraph(nn.Module):
    """A graph of shared parts: a siamese encoder on two inputs, that is also part of a chain under
    another name, a linear layer in two places, a decoder that is the encoder's transpose, one
    parameter under three names.
    """

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, width), nn.Tanh())
        self.block = nn.Linear(width, width)
        self.chain = nn.Sequential(self.block, nn.Tanh(), self.block, nn.Tanh())
        self.siamese = nn.ModuleList([self.encoder, self.encoder])
        self.gain = nn.Parameter(torch.ones(width))
        self.again = self.gain
        self.inner = nn.Module()
        self.inner.gain = self.gain
        self.other = nn.Linear(width, width)
        self.other.bias = self.block.bias
        self.unused = None
        self.register_parameter("nothing", None)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        pair = [side(x) * self.gain for side, x in zip(self.siamese, (left, right), strict=True)]
        joint = self.other(self.chain(pair[0] - pair[1])) * self.again + self.inner.gain
        return joint, F.linear(joint, self.encoder[0].weight.T)


class Adapted(nn.Module):
    """A frozen layer with low-rank adapters in a `ParameterDict`, as peft's LoRA keeps them, a
    `ParameterList` of prompts, nested containers, and a scalar temperature as CLIP has it.
    """

    def __init__(self, width: int = 8, rank: int = 2, n_classes: int = 3) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, width).requires_grad_(False)
        self.lora = nn.ParameterDict(
            {
                "A": nn.Parameter(torch.randn(rank, width) / math.sqrt(width)),
                "B": nn.Parameter(torch.zeros(width, rank)),
            }
        )
        self.prompts = nn.ParameterList([torch.randn(width) for _ in range(3)])
        self.heads = nn.ModuleDict(
            {"main": nn.Linear(width, n_classes), "more": nn.ParameterList([torch.ones(n_classes)])}
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6))
        self.active = "main"

    def forward(self, x: Tensor) -> Tensor:
        x = x + sum(prompt.tanh() for prompt in self.prompts)
        x = self.base_layer(x) + x @ self.lora["A"].T @ self.lora["B"].T
        logits = self.heads[self.active](F.normalize(x, dim=-1)) + self.heads["more"][0]
        return logits * self.logit_scale.exp()


def pruned() -> nn.Module:
    """An MLP pruned as lottery tickets are: masks in buffers, weights that a hook computes."""
    module = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    prune.ln_structured(module[2], "weight", amount=0.25, n=2, dim=1)
    return module


class Bags(nn.Module):
    """Text as a bag of words: an `EmbeddingBag` and a mean over an embedding with padding."""

    def __init__(self, vocabulary: int = 20, width: int = 8, n_classes: int = 3) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, width, mode="sum", padding_idx=0)
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.output = nn.Linear(2 * width, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = (tokens != 0)[..., None]
        mean = (self.words(tokens) * seen).sum(1) / seen.sum(1).clamp(min=1)
        return self.output(torch.cat([self.bag(tokens), mean], dim=1))


class GraphNetwork(nn.Module):
    """A graph convolutional network on one graph that all samples share, given as edges; the
    normalisation is a buffer, and messages are added where they go.
    """

    def __init__(self, nodes: int = 7, width: int = 8, n_classes: int = 2) -> None:
        super().__init__()
        edges = torch.tensor([[i, (i + 1) % nodes] for i in range(nodes)]).T
        edges = torch.cat([edges, edges.flip(0), torch.arange(nodes).expand(2, -1)], dim=1)
        self.register_buffer("edges", edges)
        degree = torch.bincount(edges[1], minlength=nodes).float()
        self.register_buffer("norm", (degree[edges[0]] * degree[edges[1]]).rsqrt(), False)
        self.layers = nn.ModuleList([nn.Linear(4, width), nn.Linear(width, width)])
        self.skip = orthogonal(nn.Linear(width, width, bias=False))
        self.output = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        source, to = self.edges
        for layer in self.layers:
            h = layer(x)
            messages = h[:, source] * self.norm[:, None]
            x = torch.zeros_like(h).index_add(1, to, messages).relu()
        return self.output((x + self.skip(x)).mean(1))


class SparseGraph(nn.Module):
    """A graph network whose adjacency is a sparse matrix, made anew and so not saved."""

    def __init__(self, nodes: int = 8, width: int = 6) -> None:
        super().__init__()
        adjacency = torch.eye(nodes).roll(1, 0) + torch.eye(nodes) / 2
        self.register_buffer("adjacency", adjacency.to_sparse(), persistent=False)
        self.layer = nn.Linear(nodes, width)
        self.output = nn.Linear(width, 2)

    def forward(self, signals: Tensor) -> Tensor:
        return self.output(self.layer(torch.sparse.mm(self.adjacency, signals.T).T).relu())


class Fourier(nn.Module):
    """Convolution by fixed complex filters (as in S4 and FNet), of single and double precision, one
    of them not saved.
    """

    def __init__(self, length: int = 16, width: int = 6) -> None:
        super().__init__()
        self.lift = nn.Linear(1, width)
        n = length // 2 + 1
        self.register_buffer("filters", torch.randn(width, n, dtype=torch.complex64))
        self.register_buffer("phase", torch.exp(1j * torch.arange(n)), persistent=False)
        self.mix = nn.Bilinear(width, width, width)
        self.output = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x[..., None]).transpose(1, 2)
        spectrum = torch.fft.rfft(h) * self.filters * self.phase
        h = torch.fft.irfft(spectrum, n=h.shape[-1]).transpose(1, 2).contiguous()
        return self.output(self.mix(h, h.tanh()))[..., 0]


class Energy(nn.Module):
    """A conservative force field, as neural potentials and Hamiltonian networks are: the output is
    the gradient, taken within the forward pass, of an energy.
    """

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.potential = nn.Sequential(
            nn.Linear(3, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus()
        )
        self.output = nn.Linear(width, 1, bias=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            energy = self.output(self.potential(positions))[..., 0]
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy, -gradient


class Quantised(nn.Module):
    """A vector-quantised autoencoder whose codebook is a buffer that follows the data in training
    (A. van den Oord et al., 2017, appendix A.1), with a flag for the first batch.
    """

    def __init__(self, width: int = 6, codes: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Linear(10, width)
        self.decoder = nn.Linear(width, 10)
        self.register_buffer("codebook", torch.randn(codes, width))
        self.register_buffer("sizes", torch.ones(codes))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        nearest = torch.cdist(h, self.codebook).argmin(-1)
        if self.training:
            with torch.no_grad():
                hits = F.one_hot(nearest, len(self.sizes)).to(h.dtype)
                self.sizes.mul_(0.9).add_(0.1 * hits.sum(0))
                self.codebook = self.codebook + 0.1 * hits.T @ (h - self.codebook[nearest])
                self.started.fill_(True)
        code = self.codebook[nearest]
        return self.decoder(h + (code - h).detach())
