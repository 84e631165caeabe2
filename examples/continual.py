"""Continual learning: pairs of digits one after another, without the images of those before.

After J. von Oswald et al., "Continual learning with hypernetworks" (ICLR 2020): a penalty holds the
models of earlier pairs where they are. It is compared with the same hypernetwork without a penalty,
with one ordinary model for all pairs, and with learning all pairs at once.

    python examples/continual.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsehyper import HyperNetwork, OutputRegulariser, Sparse, TaskEmbedding

PAIRS = ["0 or 1", "2 or 3", "4 or 5", "6 or 7", "8 or 9"]
DIM = 32  # of an embedding


def pairs() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Images and labels of each pair to train on, and to test on."""
    x, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float() / 16
    tasks = []
    for pair in range(len(PAIRS)):
        own, y = x[digits // 2 == pair], digits[digits // 2 == pair] % 2
        tasks.append((own[:200], y[:200], own[200:], y[200:]))
    return tasks


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def draw(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    some = torch.randint(len(x), (50,))
    return x[some], y[some]


def one_after_another(tasks: list, steps: int, beta: float) -> HyperNetwork:
    """A hypernetwork that grows by one embedding a task."""
    hnet = HyperNetwork(network(), Sparse(), TaskEmbedding(PAIRS[:1], DIM))
    regulariser = OutputRegulariser(hnet, beta)
    for name, (x, y, _, _) in zip(PAIRS, tasks, strict=True):
        if name not in hnet.task_names:
            hnet.add_task(name, torch.randn(DIM))
        optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
        for _ in range(steps):
            images, labels = draw(x, y)
            loss = nn.functional.cross_entropy(hnet(images, task=name), labels) + regulariser()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        regulariser.hold(name)
    return hnet


def at_once(tasks: list, steps: int) -> HyperNetwork:
    """A hypernetwork that sees all tasks in turn, with as many steps in all."""
    hnet = HyperNetwork(network(), Sparse(), TaskEmbedding(PAIRS, DIM))
    optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
    for step in range(steps * len(tasks)):
        task = step % len(tasks)
        images, labels = draw(*tasks[task][:2])
        optimizer.zero_grad()
        nn.functional.cross_entropy(hnet(images, task=task), labels).backward()
        optimizer.step()
    return hnet


def one_model(tasks: list, steps: int) -> nn.Module:
    """An ordinary model, trained on one task after another."""
    model = network()
    for x, y, _, _ in tasks:
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(steps):
            images, labels = draw(x, y)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model


def main(steps: int = 200) -> dict[str, tuple[float, float]]:
    """Returns test accuracy of each method after the last pair: mean over pairs, and the worst."""
    torch.manual_seed(0)
    tasks = pairs()
    hnets = {
        "one after another, held": one_after_another(tasks, steps, beta=0.1),
        "one after another, no penalty": one_after_another(tasks, steps, beta=0),
        "all at once": at_once(tasks, steps),
    }
    models = {name: [hnet.materialize(pair) for pair in PAIRS] for name, hnet in hnets.items()}
    models["one ordinary model, one after another"] = [one_model(tasks, steps)] * len(PAIRS)

    found = {}
    for method, own in models.items():
        right = torch.stack([
            (model(x).argmax(1) == y).float().mean()
            for model, (_, _, x, y) in zip(own, tasks, strict=True)
        ])  # fmt: skip
        found[method] = right.mean().item(), right.min().item()
        print(f"{method}: {found[method][0]:.1%} right, worst pair {found[method][1]:.1%}")
    return found


if __name__ == "__main__":
    main()
