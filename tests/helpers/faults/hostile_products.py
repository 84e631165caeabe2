"""Calls of the products with hostile arguments, counted as refused, right or wrong."""

from __future__ import annotations

import random
import sys

import torch

from sparsehyper.sparse.functional import sparse_chain, sparse_linear
from sparsehyper.sparse.topology import circulant_sources
from sparsehyper.sparse.wirings import Circulant, Indexed

SIZES = (0, 1, 2, 3, 7, 40)
NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 6, 7, 39, 40, 2**31 - 1, 2**31, 2**63 - 1)
DTYPES = (torch.float32,) * 12 + (torch.float64, torch.bfloat16, torch.int32, torch.complex64)


def tensor(rng: random.Random, shape: list[int]) -> torch.Tensor:
    """A tensor that is mostly as asked for."""
    while rng.random() < 0.08:
        change = rng.randrange(3)
        if change == 0:
            shape = [*shape, rng.choice(SIZES)]
        elif change == 1:
            shape = shape[:-1]
        elif shape:
            shape = [*shape]
            shape[rng.randrange(len(shape))] = rng.choice(SIZES)
    made = torch.randn(shape).to(rng.choice(DTYPES))
    kind = rng.randrange(40)
    if kind == 0 and made.ndim == 2:
        return made.T.contiguous().T
    if kind == 1 and made.is_floating_point():
        return made.to_sparse()
    if kind == 3:
        return made.to("meta")
    if kind == 4:
        return torch._efficientzerotensor(shape)
    if kind == 5 and made.is_floating_point():
        return torch._neg_view(made)
    return made


def numbers(rng: random.Random, count: int, n: int) -> list[int]:
    if rng.random() < 0.1:
        count = max(0, count + rng.choice((-1, 1)))
    drawn = [rng.randrange(max(1, n)) for _ in range(count)]
    if drawn and rng.random() < 0.15:
        drawn[rng.randrange(count)] = rng.choice(NUMBERS)
    return drawn


def plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor._is_zerotensor():  # PyTorch itself turns some of these into arbitrary numbers
        return torch.zeros(tensor.shape, dtype=torch.double)
    return tensor.detach().to_dense().double()


def dense(x: torch.Tensor, weight: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    return (x[:, sources.long()] * weight).sum(1)


def trial(rng: random.Random) -> bool:
    """Make one call; return whether its result is right, and let its errors through."""
    n, m, k, rows = (rng.choice(SIZES) for _ in range(4))
    x, w, g = tensor(rng, [rows, n]), tensor(rng, [k, m]), tensor(rng, [rows, m])
    operators = torch.ops.sparsehyper
    if rng.random() < 0.5:
        shifts = numbers(rng, k * -(-m // n) if n else 0, n)
        way, adjoint = operators.circulant, operators.circulant_adjoint
        wiring, of_copies = shifts, [shifts[i : i + k] for i in range(0, len(shifts), max(1, k))]
    else:
        drawn = [min(max(i, -(2**31)), 2**31 - 1) for i in numbers(rng, k * m, n)]
        wiring = torch.tensor(drawn[: k * m] + [0] * (k * m - len(drawn)), dtype=torch.int32)
        wiring = wiring.view(k, m)
        if rng.random() < 0.1:
            wiring = tensor(rng, [k, m]).to(rng.choice((torch.int64, torch.int32, torch.float32)))
        way, adjoint = operators.indexed, operators.indexed_adjoint
    call = rng.randrange(4)
    if call == 0:
        y = way(x, w, wiring)
    elif call == 1:
        gx, gw = adjoint(g, x, w, wiring, True, True)
    elif isinstance(wiring, list):
        planned = Circulant(n, of_copies)
    else:
        planned = Indexed(n, wiring)
    if call == 2:
        y = sparse_linear(x, w, planned)
    elif call == 3:
        x, w = x.detach(), w.detach()
        y = sparse_chain(x.requires_grad_(), [w.requires_grad_()], [planned])
        if not isinstance(wiring, list) and wiring.numel() and rng.random() < 0.3:
            wiring.detach().numpy().flat[0] = rng.choice(NUMBERS[1:-2])
        if rng.random() < 0.2:
            w.data = tensor(rng, [k, m])
        gx, gw = torch.autograd.grad(y.sum(), [x, w])
        g = torch.ones_like(y)
    if any(t.is_meta for t in (x, w)):
        return True
    # Neither the wiring nor the shapes can be bad here, or the call would have raised.
    x, w, g = (plain(t).requires_grad_() for t in (x, w, g))
    sources = wiring
    if isinstance(wiring, list):
        sources = circulant_sources(torch.tensor(wiring).view(-1, k), n, m)
    expected = dense(x, w, sources)
    if call in (0, 2):
        return torch.allclose(y.double(), expected, rtol=0.1, atol=0.1)
    of_x, of_w = torch.autograd.grad(expected, [x, w], g)
    return torch.allclose(gx.double(), of_x, rtol=0.1, atol=0.1) and torch.allclose(
        gw.double(), of_w, rtol=0.1, atol=0.1
    )


def main(trials: int) -> None:
    refused = right = wrong = 0
    for seed in range(trials):
        torch.manual_seed(seed)
        try:
            fine = trial(random.Random(seed))
        except Exception:  # any Python error is a refusal
            refused += 1
            continue
        right += fine
        wrong += not fine
        if not fine:
            print("wrong: seed", seed, file=sys.stderr)
    print(refused, right, wrong)
