"""Made-up sites, and the models of them that are trained here: see ``run.py``."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding

KNOWN, NEW, ROWS, TRAIN, TEST, FEATURES = 60, 30, 120, 96, 200, 8
ACTIVATIONS = {"gelu": nn.GELU, "tanh": nn.Tanh}
LEARNING_RATES = {"gelu": 3e-3, "tanh": 5e-3}  # of the head's features

Model = TypeVar("Model", "WithHead", "Pooled")
Rows = tuple[Tensor, Tensor]  # x [sites, n, FEATURES] and y [sites, n]


def make_sites(kind: str, seed: int) -> tuple[Rows, Rows]:
    """All rows of known and new sites; the last ``TEST`` of each are for the test."""
    rng = torch.Generator().manual_seed(2 * seed + (kind != "linear"))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    sites, count = KNOWN + NEW, ROWS + TEST
    hidden = normal(sites, 3)
    x = 0.3 * normal(sites, 1, FEATURES) + normal(sites, count, FEATURES)
    common, loading = 0.6 * normal(FEATURES), 0.35 * normal(3, FEATURES)
    slopes = common + hidden @ loading + 0.2 * normal(sites, FEATURES)
    offsets = 0.5 * hidden @ normal(3) + 0.3 * normal(sites)
    y = torch.einsum("snf,sf->sn", x, slopes) + offsets[:, None]
    if kind == "nonlinear":
        loading = F.normalize(normal(4, 3), dim=1)
        a, b, c, d = (1 + 0.5 * hidden @ loading.T + 0.15 * normal(sites, 4)).T[:, :, None]
        turned = F.normalize(normal(FEATURES) + 0.7 * hidden @ normal(3, FEATURES), dim=1)
        y = 0.6 * y + a * torch.sin(1.5 * x[..., 0] + hidden[:, :1])
        y = y + 0.5 * b * x[..., 1] * x[..., 2] + c * (x[..., 3] - 0.5 * hidden[:, 1:2]).relu()
        y = y + d * torch.tanh(2 * torch.einsum("snf,sf->sn", x, turned))
    y = y / y.std() + (0.2 if kind == "linear" else 0.25) * normal(sites, count)
    y = (y - y[:KNOWN, :ROWS].mean()) / y[:KNOWN, :ROWS].std()
    return (x[:KNOWN], y[:KNOWN]), (x[KNOWN:], y[KNOWN:])


def r2(predicted: Tensor, y: Tensor) -> float:
    """Mean R² over sites."""
    total = (y - y.mean(1, keepdim=True)).square().sum(1)
    return (1 - (predicted - y).square().sum(1) / total).mean().item()


def first(rows: Rows, count: int) -> Rows:
    return rows[0][:, :count], rows[1][:, :count]


class Head(nn.Module):
    """Bayesian linear regression of each site; prior N(mean, root rootᵀ) shared by all."""

    def __init__(self, features: int) -> None:
        super().__init__()
        scales = [features**-0.5] * features + [0.3] * (FEATURES + 1)
        self.mean = nn.Parameter(torch.zeros(len(scales)))
        self.root = nn.Parameter(torch.tensor(scales).diag())
        self.log_noise = nn.Parameter(torch.tensor(0.3).log())

    def _normal_equations(self, phi: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        phi, noise = phi.double(), (2 * self.log_noise).exp().double()
        white, residual = phi @ self.root.double(), y.double() - phi @ self.mean.double()
        gram = white.mT @ white + noise * torch.eye(phi.shape[2], dtype=phi.dtype)
        return torch.linalg.cholesky(gram), white.mT @ residual[..., None], residual, noise

    def loss(self, phi: Tensor, y: Tensor) -> Tensor:
        """-2 log marginal likelihood of each site's rows ``[sites]``, divided by their number."""
        factor, moment, residual, noise = self._normal_equations(phi, y)
        explained = torch.linalg.solve_triangular(factor, moment, upper=False).square().sum((1, 2))
        n, width = phi.shape[1:]
        log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        square = (residual.square().sum(1) - explained) / noise
        return (square + log_determinant + (n - width) * noise.log()) / n

    def predict(self, phi: Tensor, y: Tensor, test: Tensor) -> Tensor:
        """Posterior means ``[sites, m]`` at the test rows' features."""
        factor, moment, _, _ = self._normal_equations(phi, y)
        weights = self.root.double() @ torch.cholesky_solve(moment, factor)
        return (test.double() @ (weights[..., 0] + self.mean)[..., None])[..., 0].float()

    @torch.no_grad()
    def refitted(self, phi: Tensor, y: Tensor, rounds: int = 40, pseudo: float = 5.0) -> Head:
        """A copy with a prior fitted to all sites by expectation maximisation.

        Args:
            phi, y: features and targets of the known sites.
            rounds: number of rounds.
            pseudo: number of sites that the covariance's own diagonal counts for.
        """
        phi, y = phi.double(), y.double()
        gram, moment = phi.mT @ phi, (phi.mT @ y[..., None])[..., 0]
        mean, cov = self.mean.double(), (self.root @ self.root.T).double()
        noise, eye = (2 * self.log_noise).exp().double(), 1e-8 * torch.eye(phi.shape[2]).double()
        for _ in range(rounds):
            precision = torch.linalg.inv(cov + eye)
            posterior = torch.linalg.inv(precision + gram / noise)
            weights = torch.einsum("sij,sj->si", posterior, moment / noise + precision @ mean)
            mean = weights.mean(0)
            spread = (posterior.sum(0) + (weights - mean).T @ (weights - mean)) / len(y)
            cov = (len(y) * spread + pseudo * spread.diagonal().diag()) / (len(y) + pseudo)
            residual = y - torch.einsum("snf,sf->sn", phi, weights)
            noise = (residual.square().sum() + (posterior * gram).sum()) / y.numel()
        other = copy.deepcopy(self)
        other.mean.copy_(mean), other.root.copy_(torch.linalg.cholesky(cov + eye))
        other.log_noise.copy_(noise.log() / 2)
        return other


class Net(nn.Module):
    """An MLP that returns its last hidden layer and its output."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[act]()
        self.first, self.second = nn.Linear(FEATURES, 64), nn.Linear(64, 32)
        self.last = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.act(self.second(self.act(self.first(x))))
        return hidden, self.last(hidden)[..., 0]


class WithHead(nn.Module):
    """A hypernetwork whose output the head corrects; or, not embedded, a shared network."""

    updates, patience = 400, 150

    def __init__(self, setting: tuple[str, float], seed: int, embedded: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        act, decay = setting
        sites = TaskEmbedding(KNOWN, dim=8, seed=seed)
        self.net, self.head = Net(act), Head(32)
        self.hnet = HyperNetwork(
            self.net, Sparse(), sites, generate=["first.bias", "last.*"],
            base="residual", scale=0.2, seed=seed,
        )  # fmt: skip
        if not embedded:  # the raw vector is 0: only the base is left
            for parameter in self.hnet.generator.parameters():
                nn.init.zeros_(parameter).requires_grad_(False)
        self.net.requires_grad_(False)  # the hypernetwork has a copy
        lr = LEARNING_RATES[act]
        self.groups = [
            {
                "params": [*self.hnet.target.parameters(), *self.head.parameters()],
                "lr": lr,
                "weight_decay": decay,
            },
            {"params": [sites.weight, *self.hnet.generator.parameters()], "lr": lr},
        ]

    @property
    def z(self) -> Tensor:
        return self.hnet.task_embedding.weight

    def features(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the head takes, and the output that it corrects."""
        layout = self.hnet.target.layout
        flat = self.hnet.theta(z).split([spec.numel for spec in layout], 1)
        generated = {
            spec.name: part.unflatten(1, spec.shape)
            for spec, part in zip(layout, flat, strict=True)
        }
        shared = dict(self.hnet.target.module.named_parameters())

        def run(own: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(self.net, shared | own, rows)

        hidden, output = vmap(run)(generated, x)
        return torch.cat([hidden, x, torch.ones_like(x[..., :1])], 2), output

    def losses(self, rows: Rows, z: Tensor) -> Tensor:
        phi, output = self.features(rows[0], z)
        return self.head.loss(phi, rows[1] - output)

    def predict(self, rows: Rows, test: Tensor, z: Tensor) -> Tensor:
        phi, output = self.features(torch.cat([rows[0], test], 1), z)
        n = rows[1].shape[1]
        return output[:, n:] + self.head.predict(phi[:, :n], rows[1] - output[:, :n], phi[:, n:])

    def refit(self, rows: Rows) -> None:
        """Fit the head's prior to the known sites, with all else fixed."""
        phi, output = self.features(rows[0], self.z)
        self.head = self.head.refitted(phi, rows[1] - output)


class Pooled(nn.Module):
    """One MLP for all sites, with an embedding of the site among its inputs."""

    updates, patience = 1500, 400

    def __init__(self, setting: tuple[str, float], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        act, decay = setting
        self.z = nn.Parameter(0.3 * torch.randn(KNOWN, 8))
        self.net = nn.Sequential(
            nn.Linear(FEATURES + 8, 64), ACTIVATIONS[act](), nn.Linear(64, 64),
            ACTIVATIONS[act](), nn.Linear(64, 1),
        )  # fmt: skip
        self.groups = [
            {"params": self.net.parameters(), "lr": 3e-3, "weight_decay": decay},
            {"params": [self.z], "lr": 3e-3, "weight_decay": 0.1},
        ]

    def predict(self, _: Rows, test: Tensor, z: Tensor) -> Tensor:
        site = z[:, None].expand(-1, test.shape[1], -1)
        return self.net(torch.cat([test, site], 2))[..., 0]

    def losses(self, rows: Rows, z: Tensor) -> Tensor:
        return (self.predict(rows, rows[0], z) - rows[1]).square().mean(1)


def train(model: Model, rows: Rows, seed: int) -> tuple[Model, float]:
    """Train on 20 sites an update; the best state by the mean square error of validation rows."""
    fit, valid = first(rows, TRAIN), (rows[0][:, TRAIN:ROWS], rows[1][:, TRAIN:ROWS])
    optimizer, rng = torch.optim.AdamW(model.groups, weight_decay=0.0), torch.Generator()
    rates, best, state, at = [g["lr"] for g in optimizer.param_groups], math.inf, {}, 0
    rng.manual_seed(seed)
    for step in range(model.updates):
        factor = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / model.updates)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        some = torch.randperm(KNOWN, generator=rng)[:20]
        loss = model.losses((fit[0][some], fit[1][some]), model.z[some]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            with torch.no_grad():
                error = (model.predict(fit, valid[0], model.z) - valid[1]).square().mean().item()
            if error < best:
                best, state, at = error, copy.deepcopy(model.state_dict()), step
            if step - at >= model.patience:
                break
    model.load_state_dict(state)
    return model.requires_grad_(False), best


def fitted(model: WithHead | Pooled, rows: Rows, prior: float, steps: int = 80) -> Tensor:
    """Embeddings of new sites, under a normal prior fitted to the known ones."""
    known = model.hnet.normalise(model.z) if isinstance(model, WithHead) else model.z
    mean, cov = known.mean(0), known.T.cov() + 0.01 * torch.eye(known.shape[1])
    root, n = torch.linalg.cholesky(cov), rows[1].shape[1]
    e = torch.zeros(len(rows[1]), known.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([e], lr=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
        losses = n * model.losses(rows, mean + e @ root.T) + prior * e.square().sum(1)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return (mean + e @ root.T).detach()
