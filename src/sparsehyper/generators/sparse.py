"""The sparse generator: an MLP whose layers grow from the embedding to all N parameters.

Hidden layers grow exponentially (by ``growth``) and every unit has few connections, so the cost is
proportional to N whatever the latent size. With linear fan-in and growth 2 it is
Σ_l (l + 1) / 2^l ≈ 4 weights per generated parameter.

Source: F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022). Without an activation
this is the thesis's *linear* generator (*affine* with a bias), with one its *MLP*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice, check_integer, check_number
from sparsehyper._util.random import seeded, spawn_seeds
from sparsehyper.generators.base import (
    CALIBRATED_WIDTH,
    Generator,
    calibration_factor,
    largest,
    random_embeddings,
    too_small,
)
from sparsehyper.layout import Layout, count_numbers
from sparsehyper.sparse import (
    TOPOLOGIES,
    SparseLinear,
    chain,
    layer_fan_ins,
    layer_sizes,
    shared_columns,
)

# Slopes on the negative side, by name. Initialisation needs nothing else.
ACTIVATIONS = {"none": 1.0, "prelu": 0.25, "leaky_relu": 0.01, "relu": 0.0, "abs": -1.0}

# Shares are found in steps of a factor 2^(1 / 64), about 1%.
_STEPS_PER_OCTAVE = 64


@dataclass(frozen=True)
class Sparse(Generator):
    """A sparse MLP from the embedding to all parameters at once.

    Args:
        fan_in: number of connections of a unit: ``"linear"`` (1 at the output layer, one more for
            each layer back), ``"geometric"`` (⌈1.5^l⌉) or an integer for all layers.
        growth: ratio of a layer's width to that of the layer before, above 1. A larger growth
            costs less, down to one weight per generated parameter.
        topology: rule by which sources are drawn, one of ``sparsehyper.sparse.TOPOLOGIES``.
        sigma: width of the ``local`` and ``mixed`` topologies, in units of the layer before;
            None for a quarter of the latent size, as in the thesis.
        activation: activation between layers: ``"none"`` (a linear generator), ``"prelu"`` (one
            learned slope per layer, 0.25 at first), ``"leaky_relu"`` (0.01), ``"relu"`` or
            ``"abs"``.
        bias: add a learned bias to every unit, which starts at zero.
        share: number of outputs of a layer that use the same weight, at least 1; see
            `SparseLinear`. Above 1 the generator can have fewer weights than the parameters it
            generates.

    Raises:
        ValueError: a value outside its range or an unknown name.

    >>> generator = Sparse(growth=2).build(latent_dim=16, layout=1000)
    >>> generator(torch.randn(3, 16)).shape
    torch.Size([3, 1000])
    """

    kind = "sparse"

    fan_in: str | int = "linear"
    growth: float = 2.0
    topology: str = "circulant"
    sigma: float | None = None
    activation: str = "none"
    bias: bool = False
    share: float = 1

    def __post_init__(self) -> None:
        layer_fan_ins(self.fan_in, 1)
        check_number("growth", self.growth, above=1)
        check_choice("topology", self.topology, TOPOLOGIES)
        if self.sigma is not None:
            check_number("sigma", self.sigma, minimum=0)
        check_choice("activation", self.activation, ACTIVATIONS)
        if not isinstance(self.bias, bool):
            raise TypeError(f"`bias` must be true or false, got {self.bias!r}")
        check_number("share", self.share, minimum=1)

    def build(self, latent_dim: int, layout: Layout, seed: int = 0) -> nn.Module:
        """Build the module."""
        return _SparseMLP(self, latent_dim, count_numbers(layout), seed)

    def count_parameters(self, latent_dim: int, layout: Layout) -> int:
        """Number of trainable parameters."""
        shapes = self.layer_shapes(latent_dim, count_numbers(layout))
        slopes = len(shapes) - 1 if self.activation == "prelu" else 0
        columns = [shared_columns(n_in, n_out, self.share) for n_in, n_out, _ in shapes]
        weights = zip(columns, shapes, strict=True)
        return sum(n * (k + self.bias) for n, (_, _, k) in weights) + slopes

    def with_budget(self, budget: int, latent_dim: int, layout: Layout) -> Self:
        """The largest generator within a budget.

        Varies ``share``, to the smallest that fits. If nothing has to be shared, it varies
        ``fan_in`` instead: to the most connections for every unit that fit, if that adds at least
        one weight for each generated parameter.
        """
        check_integer("budget", budget, minimum=1)
        numel = count_numbers(layout)
        doublings = numel.bit_length()

        def count(**settings: float) -> int:
            return replace(self, **settings).count_parameters(latent_dim, numel)  # type: ignore[arg-type]

        def share(step: int) -> float:  # step 0 shares the most
            return 2 ** (doublings - step / _STEPS_PER_OCTAVE)

        smallest = count(share=share(0))
        if smallest > budget:
            raise too_small("sparse", budget, smallest, "a larger `growth` makes it smaller")
        if (unshared := count(share=1)) > budget:
            steps = _STEPS_PER_OCTAVE * doublings
            step = largest(lambda step: count(share=share(step)) <= budget, 0, steps)
            return replace(self, share=share(step))
        most = max(1, budget // numel)  # the output layer alone has numel · fan_in weights
        fan_in = largest(lambda k: count(share=1, fan_in=k) <= budget, 1, most)
        if count(share=1, fan_in=fan_in) < unshared + numel:
            return replace(self, share=1)
        return replace(self, share=1, fan_in=fan_in)

    def layer_shapes(self, latent_dim: int, numel: int) -> list[tuple[int, int, int]]:
        """``(n_in, n_out, fan_in)`` of every layer, first to last."""
        sizes = [latent_dim, *layer_sizes(latent_dim, numel, self.growth)]
        fan_ins = layer_fan_ins(self.fan_in, len(sizes) - 1)
        return [
            (n_in, n_out, min(k, n_in))
            for n_in, n_out, k in zip(sizes, sizes[1:], fan_ins, strict=False)
        ]


class _SparseMLP(nn.Module):
    def __init__(self, spec: Sparse, latent_dim: int, numel: int, seed: int) -> None:
        super().__init__()
        shapes = spec.layer_shapes(latent_dim, numel)
        slope = ACTIVATIONS[spec.activation]
        layers = [
            SparseLinear(
                n_in,
                n_out,
                fan_in,
                topology=spec.topology,
                sigma=latent_dim / 4 if spec.sigma is None else spec.sigma,
                negative_slope=1.0 if first else slope,
                bias=spec.bias,
                share=spec.share,
                seed=layer_seed,
            )
            for first, (n_in, n_out, fan_in), layer_seed in zip(
                [True] + [False] * (len(shapes) - 1),
                shapes,
                spawn_seeds(seed, len(shapes)),
                strict=True,
            )
        ]
        activations = [_activation(spec.activation) for _ in shapes[1:]]
        self.linear = spec.activation == "none" and not spec.bias
        z = random_embeddings(latent_dim, seeded(seed))
        _calibrate(layers, activations, _fewest(z) if self.linear else z)
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(activations)

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, latent_dim]`` to ``[batch, numel]``."""
        # Hooks of a layer run when it is called.
        if self.linear and not any(layer._forward_pre_hooks for layer in self.layers):
            return chain(list(self.layers), z)  # type: ignore[arg-type]
        x = self.layers[0](z)
        for activation, layer in zip(self.activations, self.layers[1:], strict=True):
            x = layer(activation(x))
        return x


class _Abs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def _activation(name: str) -> nn.Module:
    slope = ACTIVATIONS[name]
    makers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "prelu": lambda: nn.PReLU(init=slope),
        "leaky_relu": lambda: nn.LeakyReLU(slope),
        "relu": nn.ReLU,
        "abs": _Abs,
    }
    return makers[name]()


def _fewest(z: Tensor) -> Tensor:
    """At most as many embeddings as dimensions, of the same second moment after any linear map.

    For z = Q R, where the columns of Q are orthonormal, ‖z M‖ = ‖R M‖ for every matrix M.
    """
    if len(z) <= z.shape[1]:
        return z
    _, r = torch.linalg.qr(z, mode="r")
    return r * (len(r) / len(z)) ** 0.5


@torch.no_grad()
def _calibrate(layers: list[SparseLinear], activations: list[nn.Module], z: Tensor) -> None:
    """Rescale each narrow layer so that its outputs for embeddings z have unit second moment.

    On average over networks the weights' variance ensures that already; a single network of
    narrow layers may be 20% off.
    """
    x: Tensor | None = z
    for before, layer in zip([nn.Identity(), *activations], layers, strict=True):
        if (
            layer.out_features > CALIBRATED_WIDTH
        ):  # this layer and all after it are too wide to simulate
            x = None
        if x is not None:
            y = layer.double()(before.double()(x))
            factor = calibration_factor(y)
            layer.float().weight.mul_(factor)
            before.float()
            x = y * factor
        elif layer.columns <= CALIBRATED_WIDTH:  # a wide layer with few weights
            variance = 2 / ((1 + layer.negative_slope**2) * layer.fan_in)
            layer.weight.mul_(calibration_factor(layer.weight.double() / variance**0.5))
