"""Personalised federated learning: a server that makes a model for each client.

After pFedHN (A. Shamsian et al., "Personalized federated learning using hypernetworks", ICML 2021).
The hypernetwork stays at the server. In each round a client gets its model, trains it on its own
data, and returns the change Δθ. For the server's optimiser the gradient of the hypernetwork's
parameters φ is

    -(∂θ/∂φ)ᵀ Δθ

so no data leave a client, and the size of φ costs no communication. Each client here has images of
two of the ten digits. The models are compared with those that each client trains alone, and with
one model for all (federated averaging).

    python examples/federated.py
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding


def clients(number: int, images: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Images and digits of each client, to train on and to test on; two digits a client."""
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float() / 16
    found = []
    for client in range(number):
        own = ((y == client % 10) | (y == (client * 3 + 1) % 10)).nonzero()[:, 0]
        own = own[torch.randperm(len(own))]
        train, test = own[:images], own[images:]
        found.append((x[train], y[train], x[test], y[test]))
    return found


def local_steps(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """What a client does with a model, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        some = torch.randint(len(x), (16,))
        loss = nn.functional.cross_entropy(model(x[some]), y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(models: list[nn.Module], data: list[tuple[Tensor, ...]]) -> float:
    """Mean over clients of the accuracy of their model on their test images."""
    right = [
        (model(x).argmax(1) == y).float().mean()
        for model, (_, _, x, y) in zip(models, data, strict=True)
    ]
    return torch.stack(right).mean().item()


def main(number: int = 20, images: int = 6, rounds: int = 600, steps: int = 5) -> dict:
    """Returns the mean test accuracy over clients of each method."""
    torch.manual_seed(0)
    data = clients(number, images)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(number, dim=32))
    optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
    for step in range(rounds):
        client = step % number
        sent = hnet.generate(client)
        model = copy.deepcopy(module)
        model.load_state_dict({name: tensor.detach() for name, tensor in sent.items()})
        local_steps(model, *data[client][:2], steps)
        returned = model.state_dict()
        change = [(sent[name] - returned[name]).detach() for name in sent]  # -Δθ
        optimizer.zero_grad()
        torch.autograd.backward(list(sent.values()), change)
        optimizer.step()
    personal = [hnet.materialize(client) for client in range(number)]

    average = copy.deepcopy(module)
    for _ in range(rounds // number):  # of all clients, so the same communication
        returned = []
        for client in range(number):
            model = copy.deepcopy(average)
            local_steps(model, *data[client][:2], steps)
            returned.append(model.state_dict())
        mean = {name: torch.stack([r[name] for r in returned]).mean(0) for name in returned[0]}
        average.load_state_dict(mean)

    alone = [copy.deepcopy(module) for _ in range(number)]
    for model, (x, y, _, _) in zip(alone, data, strict=True):
        local_steps(model, x, y, steps * rounds // number)
    found = {
        "a model for each, by the hypernetwork": accuracy(personal, data),
        "one model for all, by averaging": accuracy([average] * number, data),
        "each alone": accuracy(alone, data),
    }
    for method, value in found.items():
        print(f"{method}: {value:.1%}")
    return found


if __name__ == "__main__":
    main()
