"""Regression over many sites: one table, a formula for each site, and new sites with few rows.

Each site's output depends on five measured columns in its own way, as that of plants, shops or
sensors does. The hypernetwork is compared with one model for all sites together, and with a model
for each site; on new sites with ridge regression on their rows, too.

    python examples/sites.py
"""

from collections.abc import Callable
from functools import partial

import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding, fit_embeddings


def table(sites: int, rows: int) -> tuple[Tensor, Tensor]:
    """Columns ``[sites, rows, 5]`` and outputs ``[sites, rows, 1]``, of unit variance a site."""
    x = torch.randn(sites, rows, 5)
    traits = torch.randn(sites, 1, 3)  # what sites differ in; no column tells
    bent = torch.tanh(x[..., :3] * (1 + 0.5 * traits)) * (1 + traits)
    y = bent.sum(2, keepdim=True) + x[..., 3:4] * x[..., 4:] * traits[..., :1]
    return x, (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)


def fit(model: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Train a model in place."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of all rows."""
    return nn.functional.mse_loss(model(x), y)


def squares(outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of each row."""
    return (outputs - y).square().mean(1)


def network() -> nn.Module:
    layers = [nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)]
    return nn.Sequential(*layers)


def main(sites: int = 100, new: int = 20, rows: int = 60, few: int = 20, steps: int = 3000) -> dict:
    """Returns the share of the variance that each method leaves unexplained, on rows held out."""
    torch.manual_seed(0)
    x, y = table(sites + new, rows + 200)
    seen, held_out = slice(None, rows), slice(rows, None)

    hnet = HyperNetwork(network(), Sparse(), TaskEmbedding(sites, dim=16))

    def of_some_sites() -> Tensor:
        some = torch.randperm(sites)[:10]
        ids = some.repeat_interleave(rows)
        outputs = hnet(x[some, seen].flatten(0, 1), task=ids)
        return squares(outputs, y[some, seen].flatten(0, 1)).mean()

    fit(hnet, of_some_sites, steps, lr=3e-3)
    pooled = network()
    known_x, known_y = x[:sites, seen].flatten(0, 1), y[:sites, seen].flatten(0, 1)
    fit(pooled, partial(loss_of, pooled, known_x, known_y), steps // 5, lr=3e-3)

    def alone(x: Tensor, y: Tensor) -> nn.Module:
        own = network()
        fit(own, partial(loss_of, own, x, y), steps // 15, lr=1e-2)
        return own

    errors: dict[str, list[Tensor]] = {}

    def judge(method: str, site: int, predicted: Tensor) -> None:
        errors.setdefault(method, []).append((predicted - y[site, held_out]).square().mean())

    hnet.eval()
    for site in range(sites):
        judge("known sites, hypernetwork", site, hnet(x[site, held_out], task=site))
        own = alone(x[site, seen], y[site, seen])
        judge("known sites, a model each", site, own(x[site, held_out]))
        judge("known sites, one model for all", site, pooled(x[site, held_out]))
    names = {f"new {site}": (x[site, :few], y[site, :few]) for site in range(sites, sites + new)}
    fit_embeddings(hnet, names)
    for site in range(sites, sites + new):
        by_task = hnet(x[site, held_out], task=f"new {site}")
        judge(f"new sites of {few} rows, hypernetwork", site, by_task)
        own = alone(x[site, :few], y[site, :few])
        judge(f"new sites of {few} rows, a model each", site, own(x[site, held_out]))
        ridge = RidgeCV(alphas=[0.1, 1, 10]).fit(x[site, :few].numpy(), y[site, :few, 0].numpy())
        by_ridge = torch.tensor(ridge.predict(x[site, held_out].numpy())).float()[:, None]
        judge(f"new sites of {few} rows, ridge", site, by_ridge)
        judge(f"new sites of {few} rows, one model for all", site, pooled(x[site, held_out]))
    unexplained = {method: torch.stack(values).mean().item() for method, values in errors.items()}
    for method, value in unexplained.items():
        print(f"{method}: {value:.1%} of the variance unexplained")
    return unexplained


if __name__ == "__main__":
    main()
