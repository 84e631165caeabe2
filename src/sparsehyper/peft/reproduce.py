"""A hypernetwork that generates given adapters, from their files.

Factors have no unique values: for any invertible Q, B Q and Q⁻¹ A make the same change. So that a
mean of factors means something, those of each task are first made

1. balanced: B = U √S and A = √S Vᵀ, where U S Vᵀ is the change; and
2. alike: turned by the orthogonal Q that brings them closest to the mean of all tasks (Procrustes).

The mean is the base. Generator and embeddings are then fitted to each task's difference from it:

    θ(task) = mean + std ⊙ G(z(task)),   std: of a tensor's numbers over tasks
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_integer, check_number
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Generator
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.peft.directories import Factors, in_several_places, read_peft
from sparsehyper.peft.tensors import from_peft
from sparsehyper.target.adapters import lora
from sparsehyper.target.adapters.layers import is_adaptable
from sparsehyper.target.adapters.low_rank import Change, changes

_ROUNDS = 3  # of turning all tasks' factors towards their mean
_LEAST_STD = 0.01  # of a tensor that all tasks share, relative to its numbers
_CHECK_EVERY = 25  # steps


class Reproduced(NamedTuple):
    """A hypernetwork and how well it generates the adapters that it was made from.

    Attributes:
        hnet: The hypernetwork, with a task for each adapter.
        errors: ‖change generated − change given‖ / ‖change given‖ of each task, over all weights.
    """

    hnet: HyperNetwork
    errors: dict[str, float]


def load_peft(
    module: nn.Module,
    directories: Mapping[str, str | os.PathLike[str]],
    generator: Generator,
    dim: int = 64,
    *,
    tolerance: float = 0.01,
    steps: int = 2000,
    lr: float = 0.01,
    seed: int = 0,
) -> Reproduced:
    """A hypernetwork that generates existing LoRA adapters, to train on or to adapt from.

    Layers that an adapter does not change get a change of zero there, and a lower rank is filled up
    with zeros. Scaling factors become part of B. Modules that adapters hold as a whole, such as
    last layers, are generated too; all must have the same.

    Args:
        module: the pretrained module, as it was given to peft; copied.
        directories: adapter directories of peft by names of tasks.
        generator: the kind of generator. To come close to any adapters it needs about as many
            weights for each generated number as there are tasks: ``Dense()`` with an embedding
            longer than the number of tasks, or ``Sparse(fan_in=…)``. With fewer it finds what they
            have in common.
        dim: length of an embedding.
        tolerance: stop when the greatest of `Reproduced.errors` is smaller.
        steps: most steps of Adam, each on all tasks. A warning says if they did not suffice.
        lr: learning rate at the beginning; it falls to 0 along a cosine.
        seed: seed of the generator.

    Raises:
        FileNotFoundError: a directory lacks a file.
        ValueError: an adapter that is not plain LoRA, or that has layers that ``module`` or, for
            whole modules, another adapter does not have, or of other sizes.

    Source of the alignment: P. Schönemann, "A generalized solution of the orthogonal Procrustes
    problem" (Psychometrika, 1966).
    """
    check_integer("steps", steps, minimum=1)
    check_number("tolerance", tolerance, above=0)
    check_number("lr", lr, above=0)
    if not directories:
        raise ValueError("`directories` must name at least one adapter, got none")
    read = {task: read_peft(path) for task, path in directories.items()}
    layers = list(dict.fromkeys(name for found in read.values() for name in found.layers))
    rank = max(
        tensor.shape[0]
        for found in read.values()
        for factors in found.layers.values()
        for name, tensor in factors.tensors.items()
        if "_A" in name
    )
    known = {name for name, layer in module.named_modules() if is_adaptable(layer)}
    if missing := [name for name in layers if name not in known]:
        raise ValueError(
            f"`directories` have a change of {missing[0]!r}, and `module` has no such layer that "
            "could be changed; give it as it was given to peft"
        )
    several = in_several_places(module)
    whole = {name for found in read.values() for name in found.others}
    if shared := sorted(several & {*layers, *whole}):
        raise ValueError(
            f"`module` has {shared[0]!r} in several places, and an adapter of peft changes one of "
            "them alone"
        )
    adapted = lora(module, rank, re.compile("|".join(map(re.escape, layers))))
    places = [change for change in changes(adapted) if change.name in layers]
    factors = []
    for change in places:
        own = []
        for task, found in read.items():
            try:
                own.append(_given(change, found.layers.get(change.name)))
            except ValueError as error:
                raise ValueError(f"{str(directories[task])!r} does not fit: {error}") from error
        factors.append(_aligned(own, rank))
    wanted = _others(adapted, {task: found.others for task, found in read.items()})
    for change, (A, B) in zip(places, factors, strict=True):
        wanted |= {f"{change.path}.A": A, f"{change.path}.B": B}
    for name, tensor in wanted.items():
        adapted.get_parameter(name).requires_grad_().data.copy_(tensor.mean(0))
    hnet = HyperNetwork(
        adapted, generator, TaskEmbedding(list(read), dim), base="residual", seed=seed
    )
    wanted = {spec.name: wanted[spec.name] for spec in hnet.target.layout}
    errors = _fit(hnet, wanted, tolerance, steps, lr)
    return Reproduced(hnet, dict(zip(read, errors, strict=True)))


def _others(module: nn.Module, given: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters of whole modules ``[tasks, …]``, by name."""
    own = dict(module.named_parameters())
    names = dict.fromkeys(name for tensors in given.values() for name in tensors)
    for name in names:
        expected = list(own[name].shape) if name in own else "none"
        for task, tensors in given.items():
            found = list(tensors[name].shape) if name in tensors else "none"
            if found != expected or found == "none":
                raise ValueError(
                    f"the adapter of task {task!r} must have a parameter {name!r} as `module` and "
                    f"all other adapters have, of shape {expected}, got {found}"
                )
    return {name: torch.stack([given[task][name] for task in given]) for name in names}


def _given(change: Change, found: Factors | None) -> tuple[Tensor, Tensor]:
    """A and B of one task's change, with the factor in B."""
    if found is None:
        return torch.zeros_like(change.part.A).float(), torch.zeros_like(change.part.B).float()
    A, B = from_peft(change, dict(found.tensors))
    device = change.part.A.device
    return A.to(device).float(), found.factor * B.to(device).float()


def _aligned(factors: list[tuple[Tensor, Tensor]], rank: int) -> tuple[Tensor, Tensor]:
    """A ``[tasks, rank, in]`` and B ``[tasks, out, rank]``, balanced and alike."""
    balanced = [_balanced(A, B, rank) for A, B in factors]
    A, B = (torch.stack(tensors) for tensors in zip(*balanced, strict=True))
    reference = torch.cat([A.mT, B], 1)[0]
    for _ in range(_ROUNDS):
        u, _s, v = torch.linalg.svd(torch.cat([A.mT, B], 1).mT @ reference)
        A, B = (u @ v).mT @ A, B @ (u @ v)
        reference = torch.cat([A.mT, B], 1).mean(0)
    return A, B


def _balanced(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the same change B A with equal norms, and ``rank`` rows and columns."""
    q_b, r_b = torch.linalg.qr(B)
    q_a, r_a = torch.linalg.qr(A.mT)
    u, s, v = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    missing = rank - len(s)
    A, B = s.sqrt()[:, None] * v @ q_a.mT, q_b @ u * s.sqrt()
    return nn.functional.pad(A, (0, 0, 0, missing)), nn.functional.pad(B, (0, missing))


def _fit(
    hnet: HyperNetwork, wanted: dict[str, Tensor], tolerance: float, steps: int, lr: float
) -> list[float]:
    """Fit generator and embeddings to each task's tensors; the relative errors of its changes."""
    base = hnet.target.base
    assert base is not None
    wanted = {name: tensor.to(base) for name, tensor in wanted.items()}
    flat = torch.cat([tensor.flatten(1) for tensor in wanted.values()], 1)
    stds = torch.stack([_std(tensor) for tensor in wanted.values()])
    state = hnet.state_dict()
    state["target.moments"] = torch.stack([torch.zeros_like(stds), stds])
    hnet.load_state_dict(state)
    sizes = torch.tensor([spec.numel for spec in hnet.target.layout], device=stds.device)
    with torch.no_grad():
        raw = (flat - base) / stds.repeat_interleave(sizes)
    embeddings = hnet.task_embedding.weight
    optimizer = torch.optim.Adam([*hnet.generator.parameters(), embeddings], lr)
    errors = [math.inf]
    for step in range(steps + 1):
        found = hnet.raw_theta(embeddings)
        if step % _CHECK_EVERY == 0 or step == steps:
            errors = _errors(hnet, found, wanted)
            if max(errors) < tolerance or step == steps:
                break
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        (found - raw).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    if max(errors) >= tolerance:
        warnings.warn(
            f"the generated adapters differ from the given ones by {max(errors):.3g}, more than "
            f"`tolerance` {tolerance:g}; use a generator with more weights, or more `steps`",
            stacklevel=3,
        )
    return errors


def _std(tensor: Tensor) -> Tensor:
    """Standard deviation over tasks ``[tasks, …]`` of the numbers of a tensor."""
    least = _LEAST_STD * tensor.square().mean().sqrt()
    return (tensor - tensor.mean(0)).square().mean().sqrt().clamp(min=least).clamp(min=1e-8)


@torch.no_grad()
def _errors(hnet: HyperNetwork, raw: Tensor, wanted: dict[str, Tensor]) -> list[float]:
    """‖change generated − change given‖ / ‖change given‖ of each task, over all weights."""
    found = dict(zip(wanted, hnet.target.unpack(raw), strict=True))
    squares = norms = torch.zeros(len(raw), device=raw.device)
    for name, given in wanted.items():
        A, B = name, f"{name.removesuffix('.A')}.B"
        if name.endswith(".A") and B in wanted:
            difference = torch.cat([found[B], -wanted[B]], 2), torch.cat([found[A], given], 1)
            squares = squares + _square(*difference)
            norms = norms + _square(wanted[B], given)
        elif f"{name.removesuffix('.B')}.A" not in wanted:
            squares = squares + (found[name] - given).flatten(1).square().sum(1)
            norms = norms + given.flatten(1).square().sum(1)
    return (squares / norms.clamp(min=1e-12)).clamp(min=0).sqrt().tolist()


def _square(B: Tensor, A: Tensor) -> Tensor:
    """‖B A‖² of each task, without making B A."""
    return ((B.mT @ B) * (A @ A.mT)).sum((1, 2))
